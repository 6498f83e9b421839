"""upcall's own endpoints: how it does, and its privacy switch."""

import itertools
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError

from daemon.api.errors import ApiError
from daemon.config import Settings
from daemon.confine import weakest
from daemon.processes.workers import Workers
from daemon.routing.scorer import Scorer


class PrivacyBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    on: bool


class Control:
    def __init__(self, settings: Settings, workers: Workers, scorer: Scorer) -> None:
        self._settings = settings
        self._workers = workers
        self._scorer = scorer

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/healthz", self.healthz), web.put("/upcall/privacy", self.privacy)]

    async def healthz(self, _: web.Request) -> web.Response:
        """200 while requests are answered by someone; the parts tell by whom."""
        return web.json_response(await self.status())

    async def status(self) -> dict[str, Any]:
        """How upcall and its parts do."""
        standing = self._workers.standing
        local, clouds = await self._workers.local_status(), await self._clouds()
        return {
            "status": "ok" if local.state in ("ready", "unloaded") and not self._scorer.trouble else "degraded",
            "privacy": standing.privacy,
            "kernel": {
                "barrier": weakest(standing.confined.values()),
                **{name: str(confinement) for name, confinement in standing.confined.items()},
            },
            "memory_bytes": self._workers.memory(),
            "local": {
                "model": local.name,
                "state": local.state,
                "context_length": local.context_length,
                "detail": local.detail,
                "running": local.running,
                "waiting": local.waiting,
            },
            "cloud": {
                "model": self._settings.cloud.model,
                "has_key": standing.has_key,
                "detail": clouds[0]["detail"] if clouds[0]["resting"] else standing.key,
                "resting": all(cloud["resting"] for cloud in clouds),
                "models": clouds,
            },
            "router": {"name": self._settings.routing.router, "detail": self._scorer.trouble},
        }

    async def _clouds(self) -> list[dict[str, Any]]:
        """Each cloud model in order of preference."""
        statuses = await self._workers.cloud_statuses()
        # Keys are still looked for after a start, and the worker exists only while it is needed.
        known = itertools.zip_longest(self._settings.cloud.endpoints, self._workers.standing.keys, statuses)
        return [
            {
                "model": endpoint.model,
                "has_key": key is not None and key.there,
                "detail": (status.detail if status else "") or (key.detail if key else ""),
                "resting": status is not None and status.state == "failed",
            }
            for endpoint, key, status in known
            if endpoint
        ]

    async def privacy(self, request: web.Request) -> web.Response:
        try:
            on = PrivacyBody.model_validate_json(await request.read()).on
        except ValidationError:
            raise ApiError(400, 'The body must be {"on": true} or {"on": false}.') from None
        trouble = await self._workers.set_privacy(on)
        standing = self._workers.standing
        if standing.privacy != on:
            raise ApiError(409 if standing.pinned else 503, trouble)
        return web.json_response({"on": on, **({"detail": trouble} if trouble else {})})
