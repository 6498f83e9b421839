"""An empty network namespace: its only interface is down, so nothing can be reached, over whatever protocol.

Sockets from before keep belonging to the old namespace: a listener still accepts.
"""

import errno
import os
import socket
from pathlib import Path

from daemon.confine import kernel
from daemon.confine.kernel import NotEnforcedError

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_CAPABILITY_VERSION_3 = 0x20080522

_NOWHERE = (
    (socket.AF_INET, "192.0.2.1"),
    (socket.AF_INET, "127.0.0.1"),
    (socket.AF_INET6, "2001:db8::1"),
    (socket.AF_INET6, "::1"),
)
"""The first of either family is reserved for documentation (RFC 5737, RFC 3849)."""


def enter() -> None:
    """Move this process into a user and a network namespace of its own, and verify it. Raises `NotEnforcedError`.

    The user namespace is what makes this possible without root. It takes a process with a single thread.
    """
    user, group = os.geteuid(), os.getegid()
    before = os.stat("/proc/self/ns/net")
    try:
        kernel.call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET)
        # Until these are written every file seems to belong to nobody.
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    except OSError as error:
        raise NotEnforcedError(error.strerror or str(error)) from None
    if os.path.samestat(before, os.stat("/proc/self/ns/net")):
        raise NotEnforcedError("the process is still in its old network namespace")
    _verify()


def drop_capabilities() -> None:
    """Give up every privilege, those over the new namespaces included, and the ways to regain one."""
    for capability in range(64):
        try:
            kernel.prctl(kernel.PR_CAPBSET_DROP, capability)
        except OSError:
            # Past the last one that this kernel knows; or this process has none to give up.
            break
    header = _CAPABILITY_VERSION_3.to_bytes(4, "little") + bytes(4)
    kernel.call("capset", header, bytes(24))
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)


def _verify() -> None:
    for family, address in _NOWHERE:
        try:
            # Connecting a datagram socket looks up the route and sends nothing.
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 9))
        except OSError as error:
            # The latter two where the kernel is without IPv6, or has it switched off.
            if error.errno in (errno.ENETUNREACH, errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                continue
        raise NotEnforcedError(f"{address} can be reached from the new network namespace")
