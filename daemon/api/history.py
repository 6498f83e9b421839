"""What the ledger holds, for the dashboard and for scripts: figures, decisions, and a live feed of both."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from aiohttp import web

from daemon import config
from daemon.accounts.budget import Budget
from daemon.accounts.history import History as Past
from daemon.accounts.history import UnknownDecisionError, opened, shown
from daemon.accounts.ledger import Ledger, LedgerError
from daemon.api.control import Control
from daemon.api.errors import ApiError
from daemon.routing.policy import Reason

T = TypeVar("T")

MOST_DECISIONS = 1000
REASONS = {reason.code: reason.value for reason in Reason}
STATUS_SECONDS = 3.0
"""Between two `status` events of the feed."""
NUMBER = {"type": "integer", "minimum": 1, "maximum": MOST_DECISIONS, "default": 50}
PARAMETERS = [
    {"name": "limit", "in": "query", "required": False, "schema": NUMBER},
    {"name": "after", "in": "query", "required": False, "schema": {"type": "string"}},
    {"name": "before", "in": "query", "required": False, "schema": {"type": "string"}},
]
"""Of `GET /upcall/decisions`: how many, and newer or older than which id."""


class History:
    def __init__(self, budget: Budget, limits: config.Budget, control: Control) -> None:
        self._ledger = budget.ledger
        self._budget = budget
        self._limits = limits
        self._control = control

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/upcall/stats", self.stats),
            web.get("/upcall/decisions", self.decisions),
            web.get("/upcall/decisions/{id}", self.decision),
            web.get("/upcall/events", self.events),
        ]

    async def close(self, _: web.Application) -> None:
        """End every feed: its clients come back, to whoever serves then."""
        self._ledger.end_feeds()

    async def stats(self, _: web.Request) -> web.Response:
        def look(past: Past) -> dict[str, Any]:
            return {**past.stats(), "scores": past.score_quantiles(), "reasons": REASONS}

        return web.json_response({**await self._ask(look), "budget": self._budget.shown(self._limits)})

    async def decisions(self, request: web.Request) -> web.Response:
        query = request.query
        limit = query.get("limit", "50")
        if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= MOST_DECISIONS):
            raise ApiError(400, f"limit must be a number from 1 to {MOST_DECISIONS}.", param="limit")
        found = await self._ask(lambda past: past.decisions(int(limit), query.get("after"), query.get("before")))
        return web.json_response({"decisions": [shown(record) for record in found]})

    async def decision(self, request: web.Request) -> web.Response:
        return web.json_response(shown(await self._ask(lambda past: past.find(request.match_info["id"]))))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: a `decision` for each request that ends, a `status` at first and every few seconds."""
        response = web.StreamResponse(headers={"Cache-Control": "no-store"})
        response.content_type = "text/event-stream"
        await response.prepare(request)
        async with self._ledger.feed() as records:
            following = True
            while following:
                await response.write(_event("status", await self._status()))
                with suppress(TimeoutError):
                    async with asyncio.timeout(STATUS_SECONDS):
                        while record := await records.get():
                            await response.write(_event("decision", shown(record)))
                        following = False
        return response

    async def _status(self) -> dict[str, Any]:
        return {**await self._control.status(), "budget": self._budget.shown(self._limits)}

    async def _ask(self, question: Callable[[Past], T]) -> T:
        return await asked(self._ledger, question)


async def asked(ledger: Ledger, question: Callable[[Past], T]) -> T:
    """The answer from the file, with all that was recorded before now. Raises `ApiError`."""
    if not ledger.enabled:
        raise ApiError(404, "There is no ledger, because ledger.enabled is false in the settings.")
    await ledger.written()

    def answer() -> T:
        with opened(ledger.path) as past:
            return question(past)

    try:
        return await asyncio.to_thread(answer)
    except UnknownDecisionError as error:
        raise ApiError(404, f"{error}.", code="unknown_decision") from None
    except LedgerError as error:
        raise ApiError(503, f"{error}.", code="ledger") from None


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
