"""System calls that Python has no function for."""

import ctypes
import os
import platform
import struct

PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38

SYSCALLS = {
    "x86_64": {
        "accept": 43, "accept4": 288, "add_key": 248, "bind": 49, "bpf": 321, "capset": 126, "chroot": 161,
        "clone": 56, "clone3": 435, "connect": 42, "execve": 59, "execveat": 322, "fsconfig": 431, "fsmount": 432,
        "fsopen": 430, "fspick": 433, "io_uring_enter": 426, "io_uring_register": 427, "io_uring_setup": 425,
        "keyctl": 250, "kill": 62, "landlock_add_rule": 445, "landlock_create_ruleset": 444,
        "landlock_restrict_self": 446, "listen": 50, "mount": 165, "mount_setattr": 442, "move_mount": 429,
        "open_tree": 428, "perf_event_open": 298, "pidfd_getfd": 438, "pidfd_send_signal": 424, "pivot_root": 155,
        "process_vm_readv": 310, "process_vm_writev": 311, "ptrace": 101, "request_key": 249, "rt_sigqueueinfo": 129,
        "rt_tgsigqueueinfo": 297, "seccomp": 317, "sendmmsg": 307, "sendmsg": 46, "sendto": 44, "setns": 308,
        "socket": 41, "socketpair": 53, "tgkill": 234, "tkill": 200, "umount2": 166, "unshare": 272,
        "userfaultfd": 323,
    },
    "aarch64": {
        "accept": 202, "accept4": 242, "add_key": 217, "bind": 200, "bpf": 280, "capset": 91, "chroot": 51,
        "clone": 220, "clone3": 435, "connect": 203, "execve": 221, "execveat": 281, "fsconfig": 431, "fsmount": 432,
        "fsopen": 430, "fspick": 433, "io_uring_enter": 426, "io_uring_register": 427, "io_uring_setup": 425,
        "keyctl": 219, "kill": 129, "landlock_add_rule": 445, "landlock_create_ruleset": 444,
        "landlock_restrict_self": 446, "listen": 201, "mount": 40, "mount_setattr": 442, "move_mount": 429,
        "open_tree": 428, "perf_event_open": 241, "pidfd_getfd": 438, "pidfd_send_signal": 424, "pivot_root": 41,
        "process_vm_readv": 270, "process_vm_writev": 271, "ptrace": 117, "request_key": 218, "rt_sigqueueinfo": 138,
        "rt_tgsigqueueinfo": 240, "seccomp": 277, "sendmmsg": 269, "sendmsg": 211, "sendto": 206, "setns": 268,
        "socket": 198, "socketpair": 199, "tgkill": 131, "tkill": 130, "umount2": 39, "unshare": 97,
        "userfaultfd": 282,
    },
}  # fmt: skip
"""Numbers of the calls that are made or denied here, from Linux' unistd.h, by machine."""

_libc = ctypes.CDLL(None, use_errno=True)


class NotEnforcedError(Exception):
    """A layer of confinement is not to be had, or did not hold when tried; one line for people."""


def machine() -> str:
    """The key of `SYSCALLS` for this process. Raises `NotEnforcedError` for machines whose calls are not known here."""
    name = platform.machine()
    if name not in SYSCALLS or struct.calcsize("P") != 8:
        raise NotEnforcedError(f"upcall does not know the system calls of this machine ({name})")
    return name


def call(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """Make a system call. Raises `OSError`."""
    converted = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result: int = _libc.syscall(ctypes.c_long(SYSCALLS[machine()][name]), *converted)
    return _checked(result, name)


def prctl(option: int, value: int) -> None:
    """Raises `OSError`."""
    zero = ctypes.c_ulong(0)
    _checked(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero), f"prctl {option}")


def _checked(result: int, name: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
