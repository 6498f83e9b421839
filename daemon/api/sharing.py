"""How much may go up: what the settings say, what that comes to by the ledger's scores, and how to change it."""

import asyncio
from bisect import bisect_left

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from daemon.accounts.history import opened
from daemon.accounts.ledger import Ledger, LedgerError
from daemon.api.errors import ApiError
from daemon.config import Routing
from daemon.processes.workers import Workers
from daemon.routing.scorer import Scorer

ENOUGH_SCORES = 20
"""Of the user's own, before they say more than the sample that came with the router."""
PARAMETERS = [
    {
        "name": "cloud_share",
        "in": "query",
        "required": False,
        "schema": {"type": "number", "minimum": 0, "maximum": 1},
    }
]
"""Of `GET /upcall/routing`: a share to try."""


class RoutingBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    cloud_share: float = Field(ge=0, le=1)


class Sharing:
    def __init__(self, settings: Routing, workers: Workers, scorer: Scorer, ledger: Ledger) -> None:
        self._settings = settings
        self._workers = workers
        self._scorer = scorer
        self._ledger = ledger

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/upcall/routing", self.expect), web.put("/upcall/routing", self.set)]

    async def expect(self, request: web.Request) -> web.Response:
        """The threshold of a share, the settings' own where none is named, and the share that would really go up."""
        try:
            asked = RoutingBody(cloud_share=float(request.query.get("cloud_share", self._settings.cloud_share)))
        except ValueError:
            raise ApiError(400, "cloud_share must be a number from 0 to 1.", param="cloud_share") from None
        threshold, router = await self._scorer.threshold(asked.cloud_share)
        fixed = self._settings.threshold
        scores = await asyncio.to_thread(self._own_scores, router)
        # What a fixed threshold comes to, only own scores tell.
        expected = asked.cloud_share if threshold is not None and fixed is None else None
        threshold = threshold if fixed is None else fixed
        if threshold is not None and scores:
            expected = (len(scores) - bisect_left(scores, threshold)) / len(scores)
        return web.json_response(
            {
                "router": router,
                "cloud_share": asked.cloud_share if fixed is None else None,
                "threshold": threshold,
                "expected_share": expected,
                "own_scores": len(scores),
            }
        )

    async def set(self, request: web.Request) -> web.Response:
        """Let another share go up from now on; it holds until the settings name another."""
        try:
            share = RoutingBody.model_validate_json(await request.read()).cloud_share
        except ValidationError:
            raise ApiError(400, 'The body must be {"cloud_share": S} with S from 0 to 1.') from None
        if self._settings.threshold is not None:
            raise ApiError(409, "The settings fix a threshold (routing.threshold); take it out there first.")
        if refusal := await self._workers.set_cloud_share(share):
            raise ApiError(503, f"The share is as it was: {refusal}.")
        return web.json_response({"cloud_share": share})

    def _own_scores(self, router: str | None) -> list[float]:
        """Ascending; none where there are too few to go by."""
        if router is None or not self._ledger.enabled:
            return []
        try:
            with opened(self._ledger.path) as past:
                scores = sorted(past.scores(router))
        except LedgerError:
            return []
        return scores if len(scores) >= ENOUGH_SCORES else []
