"""Asks for streams of server-sent events, each provider over connections of its own that take nothing from the
environment. The SDKs' way to send a prompt and to read a stream takes three times as long as aiohttp's."""

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

import aiohttp

from models.cloud.settings import CloudSettings

KEEP_ALIVE: Final = 60.0
"""Seconds that an idle connection is kept for the next prompt; the SDKs' five are shorter than a person reads."""
_LONGEST_EVENT: Final = 64 * 2**20
"""Bytes: no frame to the gateway is longer."""
_LONGEST_ERROR: Final = 2**20


class AnsweredError(Exception):
    """The provider answered with an error: by its status, or inside a stream, where `status` is 0."""

    def __init__(self, status: int, body: object, headers: Mapping[str, str]) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.body = body
        self.headers = headers


class EventTooLongError(Exception):
    """An event without an end."""


class Http:
    """Make it where the event loop runs. Raises aiohttp's errors, and the two above."""

    def __init__(self, settings: CloudSettings, tls: ssl.SSLContext) -> None:
        self._proxy = settings.proxy
        self._open: set[aiohttp.ClientResponse] = set()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                # Not the one of c-ares, which some environments have: it knows neither nsswitch.conf nor mDNS.
                resolver=aiohttp.ThreadedResolver(),
                ssl=tls,
                limit=0,
                keepalive_timeout=KEEP_ALIVE,
            ),
            timeout=aiohttp.ClientTimeout(total=None, connect=settings.connect_timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "upcall", "Accept-Encoding": "identity"},
            trust_env=False,
        )

    async def post(self, url: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        """Send `body`, and give the data of each event of the answer."""
        response = await self._session.post(
            url,
            headers={**headers, "Content-Type": "application/json", "Accept": "text/event-stream"},
            data=json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode(),
            # A redirect would carry a key along to another host.
            allow_redirects=False,
            proxy=self._proxy,
        )
        if response.status >= 300:
            async with response:
                raise AnsweredError(response.status, await _error_body(response), response.headers)
        return self._events(response)

    async def close(self) -> None:
        """Running answers break off."""
        # aiohttp's own close would leave their readers waiting.
        for response in self._open:
            response.close()
        await self._session.close()

    async def _events(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
        # https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
        held, data, searched, gathered = bytearray(), list[bytes](), 0, 0
        self._open.add(response)
        try:
            async for piece in response.content.iter_any():
                held += piece
                start = 0
                while (end := held.find(b"\n", max(start, searched))) >= 0:
                    line = bytes(held[start:end]).removesuffix(b"\r")
                    start = end + 1
                    if line.startswith(b"data:"):
                        data.append(line[5:].removeprefix(b" "))
                        gathered += len(line)
                    elif not line and data:
                        yield b"\n".join(data)
                        data, gathered = [], 0
                del held[:start]
                searched = len(held)
                if gathered + searched > _LONGEST_EVENT:
                    raise EventTooLongError
        finally:
            self._open.discard(response)
            response.release()
            # A connection that was not read to its end closes in the loop's next turn.
            await asyncio.sleep(0)


async def _error_body(response: aiohttp.ClientResponse) -> object:
    held = bytearray()
    async for piece in response.content.iter_any():
        held += piece
        if len(held) > _LONGEST_ERROR:
            return None
    try:
        return json.loads(held)
    except ValueError:
        return None
