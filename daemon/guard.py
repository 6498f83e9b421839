"""What a request must look like before anything reads it: the defence of a loopback server against web pages.

A browser lets any page send requests to 127.0.0.1. DNS rebinding makes them same-origin and leaves their Origin out, so
only the Host header tells them apart; a JSON content type keeps forms out, since setting it takes a CORS preflight,
which upcall grants to the origins in its settings alone.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Container
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from daemon.api.errors import ApiError
from daemon.config import Server

BODY_SECONDS = 30.0
"""For the whole body, from the end of the head."""
CONTROL_HEADER = "x-upcall-control"
"""What pages send with every change. Only one of the same origin, or of an origin in the settings, can send it."""
BROWSER_HEADERS = (hdrs.ORIGIN, hdrs.REFERER, hdrs.COOKIE, "Sec-Fetch-Site", "Sec-Fetch-Mode", "Accept-Language")
"""Fetch, W3C Fetch Metadata: a browser sends at least one of these with every POST, whatever the page wants."""
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE",
    "Access-Control-Allow-Headers": "*, Authorization, Content-Type",
    "Access-Control-Max-Age": "600",
}


class Guard:
    """Refuses what is not meant for this server or not sent by whom it serves, on every path."""

    def __init__(
        self, settings: Server, port: Callable[[], int], token_sha256: Callable[[], str | None], public: Container[str]
    ) -> None:
        """`public` has the paths that are served without the token."""
        self._settings = settings
        self._public = public
        self._names = frozenset(name.lower().strip("[]") for name in settings.allowed_hosts)
        self._any_address = not settings.is_loopback
        self._port = port
        self._token_sha256 = token_sha256
        self._open: Counter[str] = Counter()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if _is_local(request):
            _check_peer(request)
        else:
            self._check_host(request)
        origin = self._check_origin(request)
        if origin and request.method == hdrs.METH_OPTIONS:
            return web.Response(status=204, headers=PREFLIGHT)
        self._check_token(request)
        return await self._handle(request, handler)

    async def grant(self, request: web.Request, response: web.StreamResponse) -> None:
        """For the application's `on_response_prepare`, where streams and errors pass, too."""
        if (origin := request.headers.get(hdrs.ORIGIN)) in self._settings.allowed_origins:
            response.headers.update(
                {"Access-Control-Allow-Origin": str(origin), "Vary": "Origin", "Access-Control-Expose-Headers": "*"}
            )

    async def _handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        client = request.remote or ""
        if self._open[client] >= self._settings.max_concurrent:
            message = f"This client has {self._open[client]} requests open, which is the most (server.max_concurrent)."
            raise ApiError(429, message, retry_after=1)
        self._open[client] += 1
        try:
            await _check_body(request)
            return await handler(request)
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]

    def _check_host(self, request: web.Request) -> None:
        hosts = request.headers.getall(hdrs.HOST, [])
        # RFC 9112 §3.2.2: with an absolute-form target its authority counts, so the two must agree.
        absolute = not request.raw_path.startswith("/") and urlsplit(request.raw_path).netloc
        named = len(hosts) == 1 and (self._is_ours(hosts[0]) or self._is_listed(hosts[0]))
        if not named or (absolute and absolute != hosts[0]):
            raise ApiError(
                403,
                "The Host header does not name this server; use http://127.0.0.1 or http://localhost with its port, "
                "or add the name to server.allowed_hosts in config.toml.",
            )

    def _is_ours(self, host: str) -> bool:
        try:
            parts = urlsplit(f"//{host}")
            name, stated = parts.hostname or "", parts.port or 80
        except ValueError:
            return False
        if parts.netloc != host or "@" in host or stated != self._port():
            return False
        if name == "localhost" or name.endswith(".localhost") or name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        # No page can be served from an address that it does not control, so a literal is never a rebound name.
        return address.is_loopback or self._any_address

    def _is_listed(self, host: str) -> bool:
        """Whether the settings name it: a proxy before upcall has a port of its own."""
        try:
            parts = urlsplit(f"//{host}")
            name, _ = parts.hostname or "", parts.port
        except ValueError:
            return False
        return name in self._names and parts.netloc == host and "@" not in host

    def _check_origin(self, request: web.Request) -> str | None:
        """The origin that was granted access, if the request has one of another site."""
        origin = request.headers.get(hdrs.ORIGIN)
        if origin and request.method == hdrs.METH_PUT and CONTROL_HEADER not in request.headers:
            raise ApiError(403, f"A page that changes something must send the header {CONTROL_HEADER}.")
        if origin is None or self._is_ours(origin.removeprefix("http://")):
            return None
        if origin in self._settings.allowed_origins:
            return origin
        raise ApiError(403, "Pages of this origin may not use upcall; add it to server.allowed_origins if they should.")

    def _check_token(self, request: web.Request) -> None:
        if not self._settings.token or request.path in self._public:
            return
        bearer = request.headers.get(hdrs.AUTHORIZATION, "").removeprefix("Bearer ")
        sent = bearer or request.headers.get("x-api-key", "")
        digest = hashlib.sha256(sent.encode(errors="surrogateescape")).hexdigest()
        if not sent or not hmac.compare_digest(digest, self._token_sha256() or ""):
            raise ApiError(
                401,
                "A token is needed: send Authorization: Bearer with the one that `upcall key set server` stored.",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _is_local(request: web.Request) -> bool:
    sock = request.transport.get_extra_info("socket") if request.transport else None
    return sock is not None and sock.family == socket.AF_UNIX


def _check_peer(request: web.Request) -> None:
    """On a Unix socket the kernel says who asks (SO_PEERCRED, unix(7)), so no header has to."""
    assert request.transport is not None
    sock = request.transport.get_extra_info("socket")
    _, user, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    if user != os.getuid():
        raise ApiError(403, "This socket serves the user that runs upcall, and nobody else.")


def _is_json(request: web.Request) -> bool:
    if hdrs.CONTENT_TYPE in request.headers:
        return request.content_type == "application/json"
    # Some clients of Ollama leave it out. So may a page, but its browser then says where the request comes from.
    browser = any(name in request.headers for name in BROWSER_HEADERS)
    return request.path.startswith("/api/") and not browser


async def _check_body(request: web.Request) -> None:
    if request.method not in (hdrs.METH_POST, hdrs.METH_PUT, hdrs.METH_PATCH, hdrs.METH_DELETE):
        return
    if request.method != hdrs.METH_DELETE and not _is_json(request):
        raise ApiError(415, "The body must be JSON: send the header Content-Type: application/json.")
    if hdrs.CONTENT_ENCODING in request.headers:
        raise ApiError(415, "Compressed bodies are not accepted; leave Content-Encoding out.")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            await request.read()
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {BODY_SECONDS:.0f} seconds.") from None
