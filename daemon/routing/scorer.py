"""Scores conversations with a router, in a thread of its own, so that the event loop never waits for ONNX.

The router `causal_llm` has the local model judge instead, in its own process and within a time limit.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import platformdirs

from daemon.config import Routing
from daemon.routing.judge import LocalJudge, NotJudgedError
from daemon.routing.policy import Reason, conversation_score
from daemon.routing.recent import Sight
from daemon.routing.turn_vectors import TurnVectors
from models.interface import Message
from models.store import Store, StoreError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from routers.calibration import Calibration
    from routers.causal_llm import Reading
    from routers.correction import Correction
    from routers.follow_up import FollowUps
    from routers.interface import Router
    from routers.knn import Neighbour

T = TypeVar("T")

log = logging.getLogger(__name__)

TURNS = 8
"""User turns that are scored: the first and the latest; what lies between has decayed to nothing."""
LITTLE_WORDS, LITTLE_CHARACTERS = 6, 40
"""A follow-up of at most so many says how to go on, not what about: "continue", "now in Python", "e em português?"."""
CAUSAL = "causal_llm"
RETRY_SECONDS = 5.0
"""A router that cannot be loaded (its encoder may not have been pulled) is tried again after so long."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a router saw in a conversation."""

    score: float | None
    """P(the strong model's answer is preferred); `None` where there is none, for the reason in `unscored`."""
    threshold: float
    router: str | None
    """`name@version`."""
    milliseconds: float
    unscored: Reason = Reason.NO_ROUTER
    neighbours: "Sequence[Neighbour]" = ()
    """Of the hardest turn, nearest first, where the router goes by known prompts."""
    calibration: "Calibration | None" = None
    """Of the router's scores, where there is a score."""
    sight: Sight | None = None
    """What a verdict on the decision would be kept with, where the router sees prompts through the encoder."""


@dataclass(frozen=True, slots=True)
class Loaded:
    router: "Router"
    threshold: float
    """Where the request names none."""
    calibration: "Calibration"
    label: str
    """`name@version`, with the number of the correction where there is one: `mf@4a14e013bc1e+f2`."""
    correction: "Correction | None"
    """What this user's verdicts made of the scores."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A local model's judgements, calibrated."""

    reading: "Reading"
    threshold: float
    """As of `Loaded`."""


class UnknownRouterError(ValueError):
    """No router has this name."""


class NoEncoderError(Exception):
    """There is no encoder to embed with; the message says why, in one line for people."""


class Scorer:
    def __init__(self, routing: Routing, store: Store, judge: LocalJudge | None = None) -> None:
        """`judge` is what the router `causal_llm` asks; without one there is no such router here."""
        self._judge = judge
        self._routing = routing
        self._store = store
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="router")
        self._loaded: dict[str, Loaded] = {}
        self._readings: dict[str, Calibrated] = {}
        self._failed: dict[str, float] = {}
        self._follow_ups: FollowUps | None = None
        self._vectors = TurnVectors()
        self._corrections = _stamps()
        self.trouble = ""
        """Why the settings' router is not loaded: one line for people, or nothing."""

    async def load(self) -> None:
        """Load the settings' router ahead of the first request; a failure shows in `trouble`."""
        if self._judge and self._routing.router == CAUSAL:
            await self._judged(self._judge, (), None)
        else:
            await self._in_thread(self._load, self._routing.router)

    async def look(
        self, messages: Sequence[Message], router: str | None = None, threshold: float | None = None
    ) -> Look:
        """Score the user's turns one by one and combine them. Raises `UnknownRouterError`."""
        turns, name = user_turns(messages), router or self._routing.router
        if self._judge and name == CAUSAL:
            return await self._judged(self._judge, turns, threshold)
        return await self._in_thread(self._look, turns, name, threshold)

    async def threshold(self, cloud_share: float) -> tuple[float | None, str | None]:
        """Where the settings' router lets `cloud_share` of ordinary prompts go up, and its `name@version`.

        Both are `None` where the router is not loaded.
        """
        return await self._in_thread(self._threshold, cloud_share)

    async def routers(self) -> Sequence[str]:
        """The names of all routers."""
        return await self._in_thread(self._names)

    async def embed(self, text: str) -> Sequence[float]:
        """A unit vector for `text`: of a long one, the mean direction of its pieces. Raises `NoEncoderError`."""
        pieces = await self._in_thread(_pieces, text)
        # A call for each: prompts are scored in between, and what nobody waits for any more stops.
        vectors = [await self._in_thread(self._embed, piece) for piece in pieces]
        return await self._in_thread(_mean_direction, pieces, vectors)

    @property
    def outdated(self) -> bool:
        """Whether corrections were learnt, or taken back, since this was made."""
        return self._corrections != _stamps()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _look(self, turns: Sequence[str], name: str, threshold: float | None) -> Look:
        start = time.perf_counter()
        loaded = self._load(name)
        if loaded is None:
            return Look(None, 1.0, None, 0.0)
        if not turns:
            return Look(None, 1.0, None, 0.0, Reason.NO_USER_TURN)
        limit = loaded.threshold if threshold is None else threshold
        score, sight, near = self._rated(loaded, turns, limit)
        taken = _milliseconds(start)
        return Look(score, limit, loaded.label, taken, neighbours=near, calibration=loaded.calibration, sight=sight)

    async def _judged(self, judge: LocalJudge, turns: Sequence[str], threshold: float | None) -> Look:
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self._routing.judge_seconds):
                loaded = await self._in_thread(self._load_reading, await judge.model_sha256())
                if loaded and turns:
                    judgement = await judge.judge(*await self._in_thread(_questions, turns))
                    # Another model may have taken the place of the one that was asked for its name.
                    loaded = await self._in_thread(self._load_reading, judgement.model_sha256)
        except (TimeoutError, NotJudgedError):
            return Look(None, 1.0, None, _milliseconds(start), Reason.NOT_JUDGED)
        if loaded is None:
            return Look(None, 1.0, None, _milliseconds(start), Reason.NOT_CALIBRATED)
        if not turns:
            return Look(None, 1.0, None, 0.0, Reason.NO_USER_TURN)
        score = conversation_score([float(score) for score in loaded.reading.rate(judgement.logprobs)])
        limit, label = loaded.threshold if threshold is None else threshold, f"{CAUSAL}@{loaded.reading.version}"
        return Look(score, limit, label, _milliseconds(start), calibration=loaded.reading.calibration)

    def _load_reading(self, model_sha256: str) -> "Calibrated | None":
        from routers.causal_llm import reading
        from routers.interface import RouterError

        key = f"{CAUSAL} {model_sha256}"
        if key in self._readings:
            return self._readings[key]
        if time.monotonic() < self._failed.get(key, 0):
            return None
        try:
            found = reading(model_sha256)
            raw = self._routing.threshold if self._routing.router == CAUSAL else None
            threshold = found.calibration.threshold(self._routing.cloud_share) if raw is None else raw
        except RouterError as error:
            self._failed[key] = time.monotonic() + RETRY_SECONDS
            self._trouble(CAUSAL, str(error))
            return None
        self._trouble(CAUSAL, "")
        self._readings[key] = Calibrated(found, threshold)
        return self._readings[key]

    def _threshold(self, cloud_share: float) -> tuple[float | None, str | None]:
        if self._routing.router == CAUSAL:
            for judged in self._readings.values():
                return judged.reading.calibration.threshold(cloud_share), f"{CAUSAL}@{judged.reading.version}"
            return None, None
        loaded = self._load(self._routing.router)
        if loaded is None:
            return None, None
        return loaded.calibration.threshold(cloud_share), loaded.label

    def _names(self) -> Sequence[str]:
        from routers.registry import NAMES

        return sorted(NAMES)

    def _embed(self, piece: str) -> "NDArray[np.float32]":
        from routers.encoder import shared
        from routers.interface import RouterError

        try:
            return shared(self._store.path("use-multilingual")).embed([piece])
        except (RouterError, StoreError, OSError) as error:
            raise NoEncoderError(str(error)) from None

    def _load(self, name: str) -> "Loaded | None":
        # Imported here, in the thread, so that the gateway listens before ONNX is loaded.
        from routers import correction
        from routers.calibration import in_force
        from routers.interface import RouterError
        from routers.registry import NAMES, load

        if name not in NAMES:
            raise UnknownRouterError(f"There is no router {name!r}; there are {', '.join(sorted(NAMES))}.")
        if name in self._loaded:
            return self._loaded[name]
        if time.monotonic() < self._failed.get(name, 0):
            return None
        # The settings' raw threshold is on the scale of the settings' router.
        raw = self._routing.threshold if name == self._routing.router else None
        try:
            router = load(name, self._store.path("use-multilingual"))
            calibration = in_force(name, own_calibrations())
            threshold = calibration.threshold(self._routing.cloud_share) if raw is None else raw
            learnt = correction.in_force(name, router.version, own_corrections())
        except (RouterError, StoreError, OSError) as error:
            self._failed[name] = time.monotonic() + RETRY_SECONDS
            self._trouble(name, str(error))
            return None
        self._trouble(name, "")
        label = f"{name}@{router.version}"
        if learnt:
            label += f"+f{learnt[1]}"
            log.info("the router is %s: %d verdicts correct its scores", label, learnt[0].n)
        self._loaded[name] = Loaded(router, threshold, calibration, label, learnt[0] if learnt else None)
        return self._loaded[name]

    def _rated(
        self, loaded: Loaded, turns: Sequence[str], limit: float
    ) -> "tuple[float, Sight | None, Sequence[Neighbour]]":
        """The score of the conversation; what the router saw, where it goes by embeddings, of the turn that decides on
        which side of `limit` that is; and the neighbours of the hardest."""
        from routers.correction import EmbeddingRouter
        from routers.follow_up import FollowUps
        from routers.knn import NearestNeighboursRouter

        router = loaded.router
        if not isinstance(router, EmbeddingRouter):
            return conversation_score([float(score) for score in router.score(turns)]), None, ()
        vectors = self._vectors.of(router.encoder, turns)
        if len(turns) > 1:
            self._follow_ups = self._follow_ups or FollowUps()
            counts = ~self._follow_ups.are(vectors)
            counts[0] = True
            turns, vectors = [turn for turn, one in zip(turns, counts, strict=True) if one], vectors[counts]
        own = router.score_embedded(turns, vectors)
        scores = [float(score) for score in (loaded.correction.of(own, vectors) if loaded.correction else own)]
        score, hardest = conversation_score(scores), scores.index(max(scores))
        # Once a hard turn has decayed the conversation goes where its latest would.
        row = hardest if (scores[hardest] >= limit) == (score >= limit) else len(scores) - 1
        sight = Sight(f"{router.name}@{router.version}", float(own[row]), vectors[row].astype("<f2").tobytes())
        return score, sight, router.explain(vectors[hardest]) if isinstance(router, NearestNeighboursRouter) else ()

    def _trouble(self, name: str, text: str) -> None:
        if name == self._routing.router:
            if text and text != self.trouble:
                log.error("no prompt goes up, because the router %s is not loaded: %s", name, text)
            self.trouble = text


def user_turns(messages: Sequence[Message]) -> list[str]:
    """The text of the first and the latest user messages, oldest first, without short follow-ups that say nothing.

    So whatever the router made of such a follow-up, it cannot move the conversation. Longer ones take a look at what
    they say (`routers/follow_up.py`).
    """
    turns = [text_of(message) for message in messages if message["role"] == "user"]
    return [*turns[:1], *[turn for turn in turns[1:] if not _says_little(turn)][1 - TURNS :]]


def _says_little(turn: str) -> bool:
    said = turn.strip()
    if len(said) > LITTLE_CHARACTERS:  # first, since this runs in the event loop's thread
        return False
    # Chinese, Japanese and Thai put no blanks between words, which have about two characters.
    words = len(re.findall(r"[^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]+", said))
    words += len(re.findall(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]", said)) // 2
    return words <= LITTLE_WORDS


def _questions(turns: Sequence[str]) -> tuple[list[str], Sequence[str]]:
    from routers.causal_llm import LABELS, question

    return [question(turn) for turn in turns], LABELS


def _pieces(text: str) -> Sequence[str]:
    from routers.encoder import HEAD, TAIL

    size = HEAD + TAIL
    return [text[start : start + size] for start in range(0, len(text), size)] or [""]


def _mean_direction(pieces: Sequence[str], vectors: "Sequence[NDArray[np.float32]]") -> Sequence[float]:
    import numpy as np

    mean = np.average(np.concatenate(vectors), axis=0, weights=[len(piece) + 1 for piece in pieces])
    vector: list[float] = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32).tolist()
    return vector


def _milliseconds(start: float) -> float:
    return (time.perf_counter() - start) * 1000


def text_of(message: Message) -> str:
    """The text of a message's content, whether a string or parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content or () if part.get("type") == "text")


def own_calibrations() -> Path:
    """The folder of the calibrations that people made of their own scores."""
    return platformdirs.user_state_path("upcall") / "calibrations"


def own_corrections() -> Path:
    """The folder of the corrections that were learnt from people's verdicts."""
    return platformdirs.user_state_path("upcall") / "corrections"


def _stamps() -> list[tuple[str, int]]:
    return sorted((path.name, path.stat().st_mtime_ns) for path in own_corrections().glob("*.json"))
