"""The socket that requests come through: TCP, a Unix socket, or one that systemd passes."""

import contextlib
import errno
import ipaddress
import os
import socket
from pathlib import Path

from daemon.config import Server
from daemon.processes.systemd import ActivationError


def listen(server: Server) -> socket.socket:
    """A listening socket. Raises `OSError`; `why_not` makes a sentence of it."""
    if server.socket:
        return _listen_on_path(server.socket.expanduser())
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    return socket.create_server((server.host, server.port), family=family, backlog=128)


def accepted(listener: socket.socket) -> socket.socket:
    """`listener`, if it is one that upcall may serve on. Raises `ActivationError`."""
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        raise ActivationError("upcall.socket passes a socket that is not TCP; give it ListenStream=127.0.0.1:8484")
    address = listener.getsockname()[0]
    if not ipaddress.ip_address(address).is_loopback:
        raise ActivationError(
            f"upcall.socket listens on {address}, which is not a loopback address; give it ListenStream=127.0.0.1:8484"
        )
    return listener


def url(listener: socket.socket) -> str:
    """Where clients find it, for people."""
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    return f"http://{f'[{name[0]}]' if ':' in name[0] else name[0]}:{name[1]}"


def port(listener: socket.socket) -> int:
    """Its TCP port; 0 for a Unix socket."""
    name = listener.getsockname()
    return 0 if isinstance(name, str) else int(name[1])


def why_not(error: OSError | ActivationError, server: Server) -> str:
    """One line for people about a socket that could not be had."""
    if isinstance(error, ActivationError):
        return f"upcall cannot listen: {error}."
    if server.socket:
        return f"upcall cannot listen on {server.socket}: {error.strerror}; set server.socket to another path."
    where = f"{server.host}:{server.port}"
    if error.errno == errno.EADDRINUSE:
        return f"upcall cannot listen on {where}: {_holder(server.port)} holds the port; stop it, or set server.port."
    return f"upcall cannot listen on {where}: {error.strerror}; set server.host to an address of this machine."


def _listen_on_path(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # A daemon that was killed leaves its socket behind; one that lives answers.
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        if path.is_socket() and probe.connect_ex(str(path)) == errno.ECONNREFUSED:
            path.unlink()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    listener.listen(128)
    return listener


def _holder(port: int) -> str:
    import psutil

    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,) and connection.pid:
            return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return "another program"
