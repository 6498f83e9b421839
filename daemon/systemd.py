"""Telling systemd how the service does (sd_notify(3)); without systemd, nothing."""

import os
import socket


def notify(state: str) -> None:
    """Send `state`, such as `READY=1`, to the service manager that started this process, if one did."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        # A leading @ stands for the abstract namespace.
        sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
