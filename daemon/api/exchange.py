"""One request and its answer, as upcall remembers them: who answered and why, what it took; never a word of either."""

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from daemon.accounts.budget import Hold
from daemon.accounts.ledger import Ledger, Record, values
from daemon.api.explain import explanation, headers, new_request_id
from daemon.api.wish import Asked
from daemon.dispatcher import Bill, Chosen
from models.interface import Event, Failure, Finish, Native, PromptRead, TextDelta, ToolCallDelta, Usage

log = logging.getLogger(__name__)

UNSETTLED = ("x-upcall-route", "x-upcall-model", "x-upcall-reason")
"""Headers that say what another model's turn would change."""


class Exchange:
    """Follows the answer to one request on its way to the client; `close` it whatever happens."""

    def __init__(self, wire: str, ask: Asked, ledger: Ledger) -> None:
        self.id = new_request_id()
        self._time = time.time()
        self.created = int(self._time)
        """Seconds since the epoch."""
        self.prompt = self.usage = Usage(0, 0)
        """What is known of it before the first word, and at the end."""
        self.ok = False
        """Whether the answer is whole."""
        self.outcome = "cancelled"
        """See `Record`; nothing but the client's leaving ends an exchange without a word."""
        self._wire = wire
        self._ask = ask
        self._ledger = ledger
        self._start = time.perf_counter()
        self._first_word: float | None = None
        self._chosen: Chosen | None = None
        self._bill: Bill | None = None
        self._holds: list[Hold] = []
        self._error: str | None = None

    async def follow(self, items: AsyncGenerator[Chosen | Bill | Event, None]) -> AsyncGenerator[Event, None]:
        """The events among `items`, noted as they pass."""
        async with aclosing(items):
            async for item in items:
                match item:
                    case Chosen():
                        self._chosen = item
                        self._error = item.failed
                        if item.hold:
                            self._holds.append(item.hold)
                        continue
                    case Bill():
                        self._bill = item
                        continue
                    case PromptRead():
                        # No word of the answer: another model may still give it.
                        self.prompt = Usage(item.prompt_tokens, 0, item.cached_tokens)
                        continue
                    case TextDelta() | ToolCallDelta() | Native():
                        self._first_word = self._first_word or time.perf_counter() - self._start
                    case Usage():
                        self.usage = item
                    case Finish():
                        self.outcome, self.ok = "ok", True
                    case Failure():
                        self._error = self.outcome = item.code
                        self.ok = False
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

    @property
    def headers_so_far(self) -> dict[str, str]:
        """`headers` while it waits: without who answers, and why, where that may still be another model."""
        assert self._chosen is not None
        decision = self._chosen.decision
        settled = decision.route == "local" and (decision.degraded or self._ask.wish.route == "local")
        return {name: value for name, value in self.headers.items() if settled or name not in UNSETTLED}

    def close(self) -> None:
        """Record it, and log one line about it."""
        record = self._record()
        self._ledger.record(record)
        log.info(
            "request=%(id)s wire=%(wire)s outcome=%(outcome)s route=%(route)s reason=%(reason)s score=%(score)s "
            "model=%(model)s prompt_tokens=%(prompt_tokens)d completion_tokens=%(completion_tokens)d "
            "first_ms=%(first_ms)d total_ms=%(total_ms)d",
            {**values(record), "first_ms": record.first_ms or 0},
        )

    def _record(self) -> Record:
        chosen = self._chosen
        decision = chosen.decision if chosen else None
        scored = decision is not None and decision.score is not None
        paid = sum(hold.usd for hold in self._holds)
        # What goes to a cloud whose price is not known costs nobody knows what.
        cost = paid if self._holds or (decision and decision.route == "local") else None
        return Record(
            id=self.id,
            time=self._time,
            wire=self._wire,
            outcome=self.outcome,
            error=self._error,
            route=decision.route if decision else None,
            reason=decision.reason.code if decision else None,
            degraded=decision.degraded if decision else False,
            router=decision.router if decision else None,
            score=decision.score if decision else None,
            threshold=decision.threshold if decision and scored else None,
            router_ms=chosen.router_ms if chosen and scored else None,
            model=chosen.model if chosen else None,
            prompt_tokens=self.usage.prompt_tokens,
            completion_tokens=self.usage.completion_tokens,
            cached_tokens=self.usage.cached_tokens,
            first_ms=None if self._first_word is None else 1000 * self._first_word,
            total_ms=1000 * (time.perf_counter() - self._start),
            cost_usd=cost,
            saved_usd=self._bill.saved if self._bill else None,
            estimated=any(hold.estimated for hold in self._holds),
            confidence=chosen.verdict.confidence if chosen and chosen.verdict else None,
            wasted_tokens=chosen.wasted_tokens if chosen else 0,
        )
