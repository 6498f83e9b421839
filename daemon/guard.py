"""What a request must look like before anything reads it: the defence of a loopback server against web pages.

A browser lets any page send requests to 127.0.0.1. DNS rebinding makes them same-origin, so only the Host header tells
them apart; a JSON content type keeps forms out, since setting it takes a CORS preflight, which upcall never grants.
"""

import ipaddress
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from daemon.api.errors import ApiError


def guard(allowed_hosts: Iterable[str], port: Callable[[], int]) -> Middleware:
    """A middleware that refuses foreign hosts, content types other than JSON, and encoded bodies, on every path."""
    names = frozenset(name.lower() for name in allowed_hosts)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        _check_host(request, names, port())
        if request.method in (hdrs.METH_POST, hdrs.METH_PUT, hdrs.METH_PATCH):
            if request.content_type != "application/json":
                raise ApiError(415, "The body must be JSON: send the header Content-Type: application/json.")
            if hdrs.CONTENT_ENCODING in request.headers:
                raise ApiError(415, "Compressed bodies are not accepted; leave Content-Encoding out.")
        return await handler(request)

    return middleware


def _check_host(request: web.Request, names: frozenset[str], port: int) -> None:
    hosts = request.headers.getall(hdrs.HOST, [])
    if len(hosts) != 1 or not _is_ours(hosts[0], names, port):
        raise ApiError(
            403,
            "The Host header does not name this server; use http://127.0.0.1 or http://localhost with its port, "
            "or add the name to server.allowed_hosts in config.toml.",
        )


def _is_ours(host: str, names: frozenset[str], port: int) -> bool:
    try:
        parts = urlsplit(f"//{host}")
        name, stated = parts.hostname or "", parts.port or 80
    except ValueError:
        return False
    if parts.netloc != host or "@" in host or stated != port:
        return False
    if name == "localhost" or name.endswith(".localhost") or name in names:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
