"""The second look: the first tokens of a local answer are held back until they say whether the answer will do."""

import asyncio
import base64
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from daemon import resolve
from daemon.config import Settings
from daemon.processes.workers import Workers
from daemon.routing.judge import LocalJudge, NotJudgedError
from daemon.routing.policy import Decision, Reason
from daemon.routing.scorer import Look, Scorer
from models.client import WorkerClient
from models.interface import ChatRequest, Confidence, Event, Failure, Finish, Hidden, Progress
from models.store import Store, StoreError

if TYPE_CHECKING:
    from routers.second_look import SecondLook

log = logging.getLogger(__name__)

RETRY_SECONDS = 60.0
"""A second look that could not be loaded (`upcall learn-model` may not have run) is tried again after so long."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the second look says of an answer, before anything of it is passed on."""

    confidence: float
    """P(the cloud model's answer is not preferred)."""
    threshold: float
    """Below which the answer will not do."""
    tokens: int
    """Of the answer, that were held back so far."""
    milliseconds: float
    """That the first of them was held back for."""

    @property
    def doubtful(self) -> bool:
        return self.confidence < self.threshold


@dataclass(slots=True)
class _Attempt:
    """What is known of an answer that has begun."""

    held: list[Event] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    hidden: str | None = None
    begun: float | None = None
    """When its first token was there, on the monotonic clock."""

    def add(self, event: Event) -> None:
        self.held.append(event)
        match event:
            case Confidence():
                self.begun = self.begun or time.monotonic()
                self.entropies.append(event.entropy)
                self.margins.append(event.margin)
            case Hidden():
                self.hidden = event.values

    def left(self, seconds: float) -> float | None:
        """Of `seconds` from its first token; `None` before that."""
        return None if self.begun is None else max(self.begun + seconds - time.monotonic(), 0.0)


class SecondLooks:
    """Looks at the local answers whose prompts the router was nearly undecided about."""

    def __init__(self, settings: Settings, scorer: Scorer, workers: Workers) -> None:
        self._settings = settings
        self._limits = settings.second_look
        self._scorer = scorer
        self._sha256 = LocalJudge(workers).model_sha256
        self._workers = workers
        self._client: WorkerClient | None = None
        """That is looked at; another one may host another model."""
        self._loading: asyncio.Task[SecondLook | None] | None = None
        self._failed = 0.0
        self._alone = asyncio.Lock()

    def wanted(self, decision: Decision, look: Look, request: ChatRequest) -> bool:
        """Whether the local model tells how sure it is, and somebody is to hear that: the client, where it is privacy
        that keeps a prompt here, and otherwise the dispatcher, where the score lies in the band below the threshold.
        """
        if not self._limits.enabled or self._settings.local.endpoint or request.n > 1 or look.calibration is None:
            return False
        heard = decision.reason in (Reason.BELOW_THRESHOLD, Reason.PRIVACY)
        if not (heard and decision.by_score) or look.score is None:
            return False
        return look.score >= look.calibration.nearest_below(look.threshold, self._limits.band)

    async def over(
        self, events: AsyncGenerator[Event, None], request: ChatRequest, decision: Decision
    ) -> AsyncGenerator[Event | Verdict, None]:
        """`events` of a local answer; before the first of them a `Verdict`, unless there is none in time.

        An answer that fails while it is held back is nothing but that failure.
        """
        seconds = self._limits.milliseconds / 1000
        preparing = asyncio.create_task(self._prepared(request, decision))
        attempt = _Attempt()
        coming: asyncio.Future[Event | None] | None = None
        try:
            while len(attempt.margins) < self._limits.tokens:
                # Not a timeout around the generator: that would break off what it waits for.
                coming = asyncio.ensure_future(anext(events, None))
                done, _ = await asyncio.wait([coming], timeout=attempt.left(seconds))
                if not done:
                    break
                event, coming = coming.result(), None
                if isinstance(event, Failure):
                    yield event
                    return
                if event is None:
                    break
                if isinstance(event, Progress):
                    continue  # A stream that opened now could not say in its headers what the verdict is.
                attempt.add(event)
                if isinstance(event, Finish):
                    break
            if verdict := await self._verdict(attempt, preparing, seconds):
                yield verdict
            for event in attempt.held:
                yield event
            if coming and (event := await coming):
                yield event
            async for event in events:
                yield event
        finally:
            preparing.cancel()
            if coming and not coming.done():
                coming.cancel()
                await asyncio.wait([coming])
            await events.aclose()

    async def _verdict(
        self, attempt: _Attempt, preparing: "asyncio.Task[tuple[SecondLook, float] | None]", seconds: float
    ) -> Verdict | None:
        from routers.interface import RouterError

        if attempt.begun is None:
            return None
        ready = None
        with suppress(TimeoutError):
            ready = await asyncio.wait_for(preparing, attempt.left(seconds))
        if ready is None:
            return None
        look, first_score = ready
        if look.width and attempt.hidden is None:
            return None  # It comes with the second token, and there is none, or not in time.
        try:
            async with self._alone:
                worse = await asyncio.to_thread(_judged, look, first_score, attempt)
        except RouterError as error:
            log.warning("no second look: %s", error)
            return None
        threshold = self._limits.threshold
        if threshold is None:
            threshold = 1 - look.calibration.threshold(self._settings.routing.cloud_share)
        held = 1000 * (time.monotonic() - attempt.begun)
        return Verdict(1 - worse, threshold, len(attempt.margins), held)

    async def _prepared(self, request: ChatRequest, decision: Decision) -> "tuple[SecondLook, float] | None":
        """What the verdict takes beside the answer, made ready while the local model reads the prompt."""
        from routers.second_look import FIRST_LOOK

        look = await self._loaded()
        if look is None or decision.router is None:
            return None
        score = decision.score
        if not decision.router.startswith(f"{FIRST_LOOK}@"):
            score = (await self._scorer.look(request.messages, FIRST_LOOK)).score
        return None if score is None else (look, score)

    async def _loaded(self) -> "SecondLook | None":
        client = await self._workers.get("local")
        again = self._failed and time.monotonic() > self._failed + RETRY_SECONDS
        if self._loading is None or client is not self._client or again:
            self._client, self._failed = client, 0.0
            self._loading = asyncio.create_task(self._load())
        # A request that ends leaves it to the next.
        return await asyncio.shield(self._loading)

    async def _load(self) -> "SecondLook | None":
        from routers.interface import RouterError

        try:
            llama = await asyncio.to_thread(resolve.local, self._settings.local, Store())
            return await asyncio.to_thread(_find, Path(llama.path), await self._sha256())
        except (RouterError, StoreError) as error:
            why = str(error)
        except NotJudgedError:
            why = "the local model does not tell what it is"
        except OSError as error:
            why = f"{error.filename} cannot be read ({error.strerror}): check its owner and mode"
        self._failed = time.monotonic()
        log.warning("no second look: %s", why)
        return None


def _find(model: Path, sha256: str) -> "SecondLook":
    from routers.second_look import SecondLook

    return SecondLook.find(model, sha256)


def _judged(look: "SecondLook", first_score: float, attempt: _Attempt) -> float:
    import numpy as np

    # Little-endian float16, as it travels; only a second look that was trained for the model takes it.
    hidden = None
    if look.width and attempt.hidden is not None:
        hidden = np.frombuffer(base64.b64decode(attempt.hidden), "<f2").astype(np.float32)
    return look.judge(first_score, hidden, attempt.entropies, attempt.margins)
