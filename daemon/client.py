"""How the command line talks to a running daemon: JSON over loopback HTTP."""

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from daemon.config import Server

SECONDS = 15.0
SERVER = "upcall"
"""What the daemon calls itself in every answer (RFC 9110 §10.2.4), so that another program is not taken for it."""


class DaemonError(Exception):
    """The daemon refused; the message is its own, for people."""


class NotRunning(DaemonError):  # noqa: N818 - a state of the daemon, not a fault
    """No upcall answers at the daemon's address."""


class StrangerError(NotRunning):
    """Something else answers there, or an upcall of a version before this one's header."""


class TokenUnreadable(DaemonError):  # noqa: N818 - as above
    """The daemon asks for a token that cannot be read here."""


def call(
    server: Server,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = SECONDS,
) -> dict[str, Any]:
    """One request to the daemon that `server` describes. Raises `DaemonError` and its kinds."""
    with _request(server, method, path, body, headers, timeout) as response:
        answer: dict[str, Any] = json.loads(response.read())
        return answer


def stream(
    server: Server, path: str, body: dict[str, Any], headers: Mapping[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events, as they come. Raises as `call` does."""
    with _request(server, "POST", path, body, headers, timeout=None) as response:
        whole = False
        for line in response:
            whole = whole or line.startswith(b"data: [DONE]")
            if line.startswith(b"data: {"):
                item: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
                if "error" in item:
                    raise DaemonError(item["error"]["message"])
                yield item
        if not whole:
            raise DaemonError("the answer was cut off: upcall ended or was restarted; ask again")


@contextmanager
def _request(
    server: Server,
    method: str,
    path: str,
    body: dict[str, Any] | None,
    headers: Mapping[str, str] | None,
    timeout: float | None,
) -> Iterator[http.client.HTTPResponse]:
    connection = _Connection(server, timeout)
    sent = {"Content-Type": "application/json", **_authorization(server), **(headers or {})}
    try:
        connection.request(method, path, None if body is None else json.dumps(body).encode(), sent)
        response = connection.getresponse()
        if response.headers.get("Server") != SERVER:
            raise StrangerError(
                f"something that is not this upcall answers at {connection.where}: stop it, or set server.port; an "
                "upcall that ran before an upgrade must be started again"
            )
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise DaemonError(json.loads(response.read())["error"]["message"])
        yield response
    except (OSError, http.client.HTTPException) as error:
        message = f"no upcall daemon answers at {connection.where} ({error}); start one with `upcall serve`"
        raise NotRunning(message) from None
    finally:
        connection.close()


class _Connection(http.client.HTTPConnection):
    """Over TCP or the Unix socket, whichever the daemon listens on; a proxy in the environment is not asked."""

    def __init__(self, server: Server, timeout: float | None) -> None:
        super().__init__(server.host, server.port, timeout=timeout)
        self._path = server.socket
        self.where = str(server.socket or f"{server.host}:{server.port}")

    def connect(self) -> None:
        if self._path is None:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path.expanduser()))


def _authorization(server: Server) -> dict[str, str]:
    if not server.token:
        return {}
    from daemon.keys import SERVER_TOKEN, KeyUnavailable, find

    try:
        return {"Authorization": f"Bearer {find(SERVER_TOKEN)}"}
    except KeyUnavailable as error:
        raise TokenUnreadable(f"the daemon cannot be asked: {error}") from None
