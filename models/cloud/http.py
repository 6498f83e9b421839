"""Asks for streams of server-sent events, each provider over connections of its own that take nothing from the
environment. The SDKs' way to send a prompt and to read a stream takes three times as long as aiohttp's."""

import asyncio
import json
import socket
import ssl
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

import aiohttp

from models.cloud.settings import CloudSettings

KEEP_ALIVE: Final = 60.0
"""Seconds that an idle connection is kept for the next prompt; the SDKs' five are shorter than a person reads."""
SOCKET_OPTIONS: Final = [
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
]
"""After so long without a word from the other side's kernel a connection is gone (tcp(7)), and not when an answer is
due: one to a machine that was switched off, or of a network that this one has left, looks open for minutes."""
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


class Alive:
    """In the place of an event: the provider says that it is at work, by a comment or a ping."""


ALIVE: Final = Alive()


class Http:
    """Make it where the event loop runs. Raises aiohttp's errors, and the two above."""

    def __init__(self, settings: CloudSettings, tls: ssl.SSLContext) -> None:
        self._proxy = settings.proxy
        self._open: set[aiohttp.ClientResponse] = set()
        self._settings, self._tls = settings, tls
        self._slept = _slept()
        self._before: aiohttp.ClientSession | None = None
        """Of before the machine last slept: its answers under way may still come, its idle connections lead nowhere."""
        self._session = self._new_session()

    def _new_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                # Not the one of c-ares, which some environments have: it knows neither nsswitch.conf nor mDNS.
                resolver=aiohttp.ThreadedResolver(),
                ssl=self._tls,
                limit=0,
                keepalive_timeout=KEEP_ALIVE,
                socket_factory=_socket,
            ),
            timeout=aiohttp.ClientTimeout(total=None, connect=self._settings.connect_timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "upcall", "Accept-Encoding": "identity"},
            trust_env=False,
        )

    async def post(
        self, url: str, headers: Mapping[str, str], body: Mapping[str, Any]
    ) -> AsyncGenerator[bytes | Alive, None]:
        """Send `body`, and give the data of each event of the answer."""
        if _slept() - self._slept > _NAP:
            self._slept = _slept()
            gone, self._before, self._session = self._before, self._session, self._new_session()
            if gone:
                await gone.close()
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
        for session in (self._session, self._before):
            if session:
                await session.close()

    async def _events(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes | Alive, None]:
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
                    elif line.startswith(b":"):
                        yield ALIVE
                del held[:start]
                searched = len(held)
                if gathered + searched > _LONGEST_EVENT:
                    raise EventTooLongError
        finally:
            self._open.discard(response)
            response.release()
            # A connection that was not read to its end closes in the loop's next turn.
            await asyncio.sleep(0)


def _slept() -> float:
    """Seconds that the machine was asleep since it was started: no clock that connections age by counts them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


_NAP: Final = 1.0


def _socket(address: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    for option in SOCKET_OPTIONS:
        made.setsockopt(*option)
    return made


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
