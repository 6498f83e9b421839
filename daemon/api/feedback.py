"""`POST /v1/feedback`: whether a prompt was answered in the right place."""

import sqlite3

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from daemon.accounts.ledger import Ledger
from daemon.api.errors import ApiError
from daemon.api.history import asked
from daemon.config import Settings
from daemon.processes.workers import Workers
from daemon.routing import recent
from daemon.routing.feedback import Verdict, keep

WRITE_SECONDS = 10.0
"""What the ledger gets to write a verdict."""


class FeedbackBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field(min_length=1, max_length=64)
    """What the answer's x-upcall-request-id begins with, or `last`."""
    verdict: Verdict
    """On where it was answered, here or in the cloud."""


class Feedback:
    def __init__(self, settings: Settings, workers: Workers, ledger: Ledger, held: recent.Recent) -> None:
        self._settings = settings
        self._workers = workers
        self._ledger = ledger
        self._recent = held

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/v1/feedback", self.judge)]

    async def judge(self, request: web.Request) -> web.Response:
        """Keep a verdict, and with it the embedding of the prompt where that is still held and may be kept."""
        if not self._settings.feedback.enabled:
            raise ApiError(404, "No feedback is taken, because feedback.enabled is false in the settings.")
        try:
            body = FeedbackBody.model_validate_json(await request.read())
        except ValidationError:
            raise ApiError(
                400, 'The body must be {"id": ID, "verdict": "right"} or "wrong", with the id of a request.'
            ) from None
        record = await asked(self._ledger, lambda past: past.find(body.id))
        if record.route is None:
            raise ApiError(409, "Nothing was decided on this request, so that no verdict can be on it.")
        may_keep = recent.may_keep(self._settings, self._workers.standing.privacy)
        sight = self._recent.of(record.id) if may_keep else None
        held = False

        def write(connection: sqlite3.Connection) -> None:
            nonlocal held
            held = keep(connection, record, body.verdict, sight)

        self._ledger.write(write)
        if not await self._ledger.written(WRITE_SECONDS):
            raise ApiError(503, f"The verdict is not kept yet: {self._ledger.trouble or 'the ledger is slow'}.")
        self._recent.drop(record.id)
        return web.json_response({"id": record.id, "verdict": body.verdict, "embedding_kept": held})
