"""`GET /metrics`, for Prometheus."""

from aiohttp import web

from daemon.accounts.metrics import Metrics
from daemon.api.control import Control


class Exposition:
    def __init__(self, metrics: Metrics, control: Control) -> None:
        self._metrics = metrics
        self._control = control

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/metrics", self.metrics)]

    async def metrics(self, _: web.Request) -> web.Response:
        text = self._metrics.text(await self._control.status())
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
