"""A filter on system calls: no new sockets, no connections, no programs, no signals and no looking into others.

It covers what a network namespace leaves open: sockets from before, such as the listener, belong to the old namespace
and could be turned into connections there; sockets in the file system lead to D-Bus and systemd, which start programs;
and other processes of the same user may hold connections, keys and prompts.
"""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator

from daemon.confine import kernel
from daemon.confine.kernel import SYSCALLS, NotEnforcedError

NEVER = (
    # Reaching others. `socket` with every family: nothing here needs a new one, and Unix sockets lead to D-Bus.
    "socket", "connect", "bind",
    # Leaving the namespaces or the view of the file system.
    "unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "fsconfig",
    "fsmount", "fspick", "mount_setattr",
    # Programs, and other processes' memory, files and keys.
    "execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "keyctl", "add_key",
    "request_key", "pidfd_send_signal", "tkill",
    # Parts of the kernel that attacks begin with and nothing here uses.
    "bpf", "perf_event_open", "userfaultfd",
)  # fmt: skip
ABSENT = ("io_uring_setup", "io_uring_enter", "io_uring_register", "clone3")
"""Denied as if the kernel did not have them, so that libraries do without; the C library takes clone. Their arguments
lie in memory, which a filter cannot read: io_uring makes sockets unseen, and clone3 namespaces."""
SIGNALLING = ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
"""Denied to any process but oneself, which the C library signals to abort. Landlock has that only since Linux 6.12."""
LISTENING = ("listen", "accept", "accept4")
"""Denied to those who have nothing to listen on."""

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
"""On x86_64, the bit of a call in another ABI, with numbers of its own."""
_NAMESPACES = 0x7E020000
"""Every CLONE_NEW flag of clone."""
_MSG_FASTOPEN = 0x20000000
"""Makes sending connect first."""
_SOCKET_TYPE = 0xF
"""The bits of a socket's type that are not flags."""

_NOBODY = 0x7FFFFFFF
"""No process has this number."""

_SET_MODE_FILTER = 1
_TSYNC = 1

_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_KILL = 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Offsets in `struct seccomp_data`. The lower half of an argument is compared: the kernel ignores the rest."""


def install(may_accept: bool) -> None:
    """Put the filter on every thread of this process, for good, and verify it. Raises `NotEnforcedError`.

    Takes `no_new_privs`. `may_accept` leaves a process the use of listeners that it already has.
    """
    code = program(kernel.machine(), may_accept, os.getpid())
    buffer = ctypes.create_string_buffer(code)
    # struct sock_fprog: a count, and a pointer behind the padding.
    described = struct.pack("=HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    try:
        left_out = kernel.call("seccomp", _SET_MODE_FILTER, _TSYNC, described)
    except OSError as error:
        raise NotEnforcedError(error.strerror or str(error)) from None
    if left_out:
        raise NotEnforcedError(f"thread {left_out} cannot be filtered")
    _verify(may_accept)


def program(machine: str, may_accept: bool, pid: int) -> bytes:
    """The filter for process `pid` in classic BPF, `struct sock_filter` by `struct sock_filter`."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in _instructions(machine, may_accept, pid))


_Instruction = tuple[int, int, int, int]
"""Operation; instructions to skip if it holds, and if not; operand."""


def _instructions(machine: str, may_accept: bool, pid: int) -> Iterator[_Instruction]:
    numbers = SYSCALLS[machine]
    yield _LOAD, 0, 0, _ARCHITECTURE
    yield _EQUAL, 1, 0, _AUDIT_ARCH[machine]
    yield _RETURN, 0, 0, _KILL
    yield _LOAD, 0, 0, _NUMBER
    yield _AT_LEAST, 0, 1, _X32
    yield _RETURN, 0, 0, _KILL
    for name in NEVER if may_accept else NEVER + LISTENING:
        yield _EQUAL, 0, 1, numbers[name]
        yield _RETURN, 0, 0, _ERRNO | errno.EPERM
    for name in ABSENT:
        yield _EQUAL, 0, 1, numbers[name]
        yield _RETURN, 0, 0, _ERRNO | errno.ENOSYS
    for name, argument, flags in (
        ("clone", 0, _NAMESPACES),
        ("sendto", 3, _MSG_FASTOPEN),
        ("sendmsg", 2, _MSG_FASTOPEN),
        ("sendmmsg", 3, _MSG_FASTOPEN),
    ):
        yield _EQUAL, 0, 4, numbers[name]
        yield _LOAD, 0, 0, _ARGUMENTS + 8 * argument
        yield _ANY_BIT, 0, 1, flags
        yield _RETURN, 0, 0, _ERRNO | errno.EPERM
        yield _RETURN, 0, 0, _ALLOW
    for name in SIGNALLING:
        yield _EQUAL, 0, 4, numbers[name]
        yield _LOAD, 0, 0, _ARGUMENTS
        yield _EQUAL, 1, 0, pid
        yield _RETURN, 0, 0, _ERRNO | errno.EPERM
        yield _RETURN, 0, 0, _ALLOW
    # Event loops wake themselves through a pair of streams. A datagram socket of a pair could send to anyone.
    yield _EQUAL, 0, 6, numbers["socketpair"]
    yield _LOAD, 0, 0, _ARGUMENTS
    yield _EQUAL, 0, 3, socket.AF_UNIX
    yield _LOAD, 0, 0, _ARGUMENTS + 8
    yield _AND, 0, 0, _SOCKET_TYPE
    yield _EQUAL, 1, 0, socket.SOCK_STREAM
    yield _RETURN, 0, 0, _ERRNO | errno.EPERM
    yield _RETURN, 0, 0, _ALLOW


def _verify(may_accept: bool) -> None:
    # Arguments that no call takes: without the filter each would fail, too, but with another error.
    for name in NEVER if may_accept else NEVER + LISTENING:
        _refused(name, errno.EPERM, -1, -1, -1, -1, -1)
    for name in ABSENT:
        _refused(name, errno.ENOSYS, -1, -1, -1, -1, -1)
    for name in SIGNALLING:
        _refused(name, errno.EPERM, _NOBODY, 0, 0, 0)
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, socket.AF_PACKET):
        _refused("socket", errno.EPERM, family, socket.SOCK_STREAM, 0)
    _refused("socketpair", errno.EPERM, socket.AF_UNIX, socket.SOCK_DGRAM, 0, 0)
    _refused("clone", errno.EPERM, _NAMESPACES, 0, 0, 0, 0)
    _refused("sendto", errno.EPERM, -1, 0, 0, _MSG_FASTOPEN, 0, 0)


def _refused(name: str, expected: int, *arguments: int) -> None:
    try:
        kernel.call(name, *arguments)
    except OSError as error:
        if error.errno == expected:
            return
    raise NotEnforcedError(f"the filter lets {name} pass")
