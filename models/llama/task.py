"""What the engine is given to do, and the way back for what comes of it."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.interface import Confidence, Failure, Hidden, Progress, TextDelta
from models.llama.sampler import Candidates

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ended:
    """A choice is complete; what it took."""

    reason: Literal["stop", "length"]
    choice: int
    completion_tokens: int
    cached_tokens: int
    stop: str | None = None
    """The stop string that ended it."""


Output: TypeAlias = TextDelta | Confidence | Hidden | Progress | Ended | Failure


class Outbox:
    """Carries what the engine's thread says about a request to the event loop that waits for it."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Output] = asyncio.Queue()
        self.get = self._queue.get
        self.put = self._queue.put_nowait


class Mail:
    """What a step has to say, handed over with one wake-up for each event loop and not one for each token."""

    def __init__(self) -> None:
        self._items: list[tuple[Outbox, Output]] = []

    def put(self, outbox: Outbox, output: Output) -> None:
        self._items.append((outbox, output))

    def post(self) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Outbox, Output]]] = {}
        for outbox, output in self._items:
            by_loop.setdefault(outbox.loop, []).append((outbox, output))
        self._items.clear()
        for loop, items in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver, items)
            except RuntimeError:  # its loop is closed: nobody waits any more
                _log.debug("an event loop closed before its answers came")


def _deliver(items: Sequence[tuple[Outbox, Output]]) -> None:
    for outbox, output in items:
        outbox.put(output)


class Picks(Protocol):
    """What picks the next token of a task: a `Sampler`."""

    def sample(self, row: NDArray[np.float32], argmax: int, candidates: Candidates) -> int: ...


@dataclass(eq=False, slots=True, kw_only=True)
class Task:
    """One choice of a request, ready to run."""

    prompt: NDArray[np.int32]
    max_tokens: int
    sampler: Picks
    stops: Sequence[str]
    logprobs: int | None
    """Alternatives to report per token; None: no logprobs at all."""
    choice: int
    outbox: Outbox
    cancelled: bool = False
    position: int = -1
    """Its place in the queue, as last reported."""

    @property
    def reserve(self) -> int:
        return len(self.prompt) + self.max_tokens
