"""What the router saw of the latest prompts, in memory alone: minutes, until a verdict on a decision asks for it."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from daemon.config import Settings

MOST = 200
"""Decisions that are held; beyond, the oldest is let go."""
SECONDS = 1800.0
"""How long each is held."""


@dataclass(frozen=True, slots=True)
class Sight:
    """The user turn that decided where a conversation went, as the router saw it."""

    router: str
    """`name@version`, as it shipped."""
    score: float
    """By it, before any correction."""
    vector: bytes
    """The turn's embedding: little-endian float16."""


def may_keep(settings: Settings, privacy: bool) -> bool:
    """Whether embeddings may be held, and kept with a verdict."""
    feedback = settings.feedback
    return feedback.enabled and settings.ledger.enabled and (feedback.keep_in_privacy or not privacy)


class Recent:
    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._held: OrderedDict[str, tuple[float, Sight]] = OrderedDict()

    def note(self, id: str, sight: Sight) -> None:
        """Hold `sight` as that of request `id`, and let go of what is too old or too many."""
        self._held[id] = (self._now(), sight)
        self._let_go()

    def of(self, id: str) -> Sight | None:
        """What is held of request `id`."""
        self._let_go()
        return self._held[id][1] if id in self._held else None

    def drop(self, id: str) -> None:
        """Let go of request `id`."""
        self._held.pop(id, None)

    def clear(self) -> None:
        """Let go of everything."""
        self._held.clear()

    async def age(self) -> None:
        """Let go of what is too old though nobody asks. Never returns."""
        while True:
            await asyncio.sleep(SECONDS / 30)
            self._let_go()

    def _let_go(self) -> None:
        oldest = self._now() - SECONDS
        while self._held and (len(self._held) > MOST or next(iter(self._held.values()))[0] < oldest):
            self._held.popitem(last=False)
