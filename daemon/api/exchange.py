"""One request and its answer, as upcall remembers them: who answered and why, what it took; never a word of either."""

import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

from daemon.api.explain import explanation, headers, new_request_id
from daemon.api.wish import Asked
from daemon.dispatcher import Bill, Chosen
from models.interface import Event, Failure, Finish, TextDelta, ToolCallDelta, Usage

log = logging.getLogger(__name__)


class Exchange:
    """Follows the answer to one request on its way to the client; `close` it whatever happens."""

    def __init__(self, wire: str, ask: Asked) -> None:
        self.id = new_request_id()
        self.created = int(time.time())
        """Seconds since the epoch."""
        self.usage = Usage(0, 0)
        self.ok = False
        """Whether the answer is whole."""
        self._wire = wire
        self._ask = ask
        self._start = time.perf_counter()
        self._first_word: float | None = None
        self._chosen: Chosen | None = None
        self._bill: Bill | None = None
        self._outcome = "cancelled"

    async def follow(self, items: AsyncGenerator[Chosen | Bill | Event, None]) -> AsyncGenerator[Event, None]:
        """The events among `items`, noted as they pass."""
        async for item in items:
            match item:
                case Chosen():
                    self._chosen = item
                    continue
                case Bill():
                    self._bill = item
                    continue
                case TextDelta() | ToolCallDelta():
                    self._first_word = self._first_word or time.perf_counter() - self._start
                case Usage():
                    self.usage = item
                case Finish():
                    self._outcome, self.ok = "ok", True
                case Failure():
                    self._outcome, self.ok = item.code, False
            yield item

    @property
    def model(self) -> str:
        """The name of the model that answers."""
        assert self._chosen is not None
        return self._chosen.model

    @property
    def seconds(self) -> tuple[float, float]:
        """From the request to the answer's first word, and to now."""
        total = time.perf_counter() - self._start
        return self._first_word or total, total

    @property
    def explanation(self) -> dict[str, Any] | None:
        """The decision for the body, where the request asked for it."""
        assert self._chosen is not None
        return explanation(self._chosen, self.id, self._bill) if self._ask.explain else None

    @property
    def headers(self) -> dict[str, str]:
        """The decision as response headers, as far as it is known."""
        assert self._chosen is not None
        return headers(self._chosen, self.id, self._ask.warning, self._bill)

    def close(self) -> None:
        """Log one line about it."""
        if self._chosen is None:
            return
        decision = self._chosen.decision
        log.info(
            "request=%(request)s wire=%(wire)s outcome=%(outcome)s route=%(route)s reason=%(reason)s score=%(score)s "
            "model=%(model)s prompt_tokens=%(prompt_tokens)d completion_tokens=%(completion_tokens)d "
            "first_ms=%(first_ms)d total_ms=%(total_ms)d",
            {
                "request": self.id,
                "wire": self._wire,
                "outcome": self._outcome,
                "route": decision.route,
                "reason": decision.reason.code,
                "score": decision.score,
                "model": self._chosen.model,
                "prompt_tokens": self.usage.prompt_tokens,
                "completion_tokens": self.usage.completion_tokens,
                "first_ms": round(1000 * (self._first_word or 0)),
                "total_ms": round(1000 * (time.perf_counter() - self._start)),
            },
        )
