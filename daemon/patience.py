"""Closes connections that hold a place without asking anything: aiohttp waits for a request's head for ever."""

import asyncio
import time

from aiohttp import web
from aiohttp.typedefs import Handler

HEAD_SECONDS = 15.0
"""From the connection, or from the last answer, to a whole request head."""
KEPT_ALIVE_SECONDS = 75.0
"""aiohttp itself closes what is idle and silent after this; what trickles it never closes."""
BUSY = float("inf")


class Patience:
    """Watches one server's connections."""

    def __init__(self) -> None:
        self._waiting_since: dict[object, float] = {}

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Connections with a request under way are left alone; it has limits of its own."""
        self._waiting_since[request.protocol] = BUSY
        try:
            return await handler(request)
        finally:
            self._waiting_since[request.protocol] = time.monotonic() + KEPT_ALIVE_SECONDS

    async def watch(self, server: web.Server) -> None:
        """Never returns."""
        while True:
            await asyncio.sleep(HEAD_SECONDS / 5)
            now = time.monotonic()
            connections = server.connections
            self._waiting_since = {each: self._waiting_since.get(each, now) for each in connections}
            for connection in connections:
                if now - self._waiting_since[connection] > HEAD_SECONDS:
                    connection.force_close()
