"""Talking with the service manager: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3). Without one, nothing."""

import os
import socket
import time

FIRST_FD = 3
"""Where passed sockets begin (SD_LISTEN_FDS_START)."""


class ActivationError(Exception):
    """The sockets that systemd passed are not what upcall can serve on; one line for people."""


def notify(*states: str) -> None:
    """Send states, such as `READY=1`, to the service manager that started this process, if one did."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        # A leading @ stands for the abstract namespace.
        sock.sendto("\n".join(states).encode(), "\0" + address[1:] if address.startswith("@") else address)


def reloading() -> None:
    """Say that new settings are being read; `READY=1` must follow."""
    # Type=notify-reload, unlike Type=notify, takes no RELOADING=1 without the time.
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def watchdog_seconds() -> float | None:
    """How often `WATCHDOG=1` has to come at the latest; `None` where nobody waits for it."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = int(os.environ.get("WATCHDOG_USEC", "0"))
    return microseconds / 1e6 if microseconds else None


def listener() -> socket.socket | None:
    """The socket of `upcall.socket`, where this process was started by it. To be asked for once.

    Raises `ActivationError` where the socket unit has more than one.
    """
    theirs = os.environ.pop("LISTEN_PID", None) != str(os.getpid())
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    os.environ.pop("LISTEN_FDNAMES", None)
    if theirs or not count:
        return None
    if count > 1:
        raise ActivationError(f"upcall.socket passes {count} sockets and upcall serves one; leave one ListenStream=")
    os.set_inheritable(FIRST_FD, False)
    return socket.socket(fileno=FIRST_FD)
