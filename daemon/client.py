"""How the command line talks to a running daemon: JSON over loopback HTTP."""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from daemon.config import Server

SECONDS = 15.0


class DaemonError(Exception):
    """The daemon refused; the message is its own, for people."""


class NotRunning(DaemonError):  # noqa: N818 - a state of the daemon, not a fault
    """Nothing answers at the daemon's address."""


def call(
    server: Server,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = SECONDS,
) -> dict[str, Any]:
    """One request to the daemon that `server` describes. Raises `NotRunning`, `DaemonError` and `KeyUnavailable`."""
    host = f"[{server.host}]" if ":" in server.host else server.host
    request = urllib.request.Request(
        f"http://{host}:{server.port}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **_authorization(server), **(headers or {})},
    )
    # Without an explicit empty table a proxy in the environment would get the request.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout) as response:
            answer: dict[str, Any] = json.load(response)
            return answer
    except urllib.error.HTTPError as error:
        raise DaemonError(json.load(error)["error"]["message"]) from None
    except (urllib.error.URLError, ConnectionError) as error:
        message = f"no upcall daemon answers at {host}:{server.port} ({error}); start one with `upcall serve`"
        raise NotRunning(message) from None


def _authorization(server: Server) -> dict[str, str]:
    if not server.token:
        return {}
    from daemon.keys import SERVER_TOKEN, find

    return {"Authorization": f"Bearer {find(SERVER_TOKEN)}"}
