"""What a process here can do: each name with nothing, or with what the kernel said. `probe.py WRITABLE RESULT`

WRITABLE is a folder, outside the home, that the user may write as far as the file system is concerned.
"""

import ctypes
import errno
import json
import mmap
import os
import resource
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
PTRACE_TRACEME, PER_LINUX32 = 0, 0x8
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SYS_LANDLOCK_CREATE_RULESET, LANDLOCK_VERSION = 444, 1


def main() -> None:
    elsewhere, result = Path(sys.argv[1]), Path(sys.argv[2])
    home = Path.home()
    attempts: dict[str, Callable[[], object]] = {
        "write its state": lambda: write(home / ".local/state/upcall/probe"),
        "write /tmp": lambda: write(Path("/tmp/upcall-probe")),
        "write the home": lambda: write(home / "probe"),
        "write the settings": lambda: write(home / ".config/upcall/probe"),
        "write the models": lambda: write(home / ".local/share/upcall/models/probe"),
        "write elsewhere": lambda: write(elsewhere / "probe"),
        "see others' /tmp": lambda: os.stat(f"/tmp/{elsewhere.name}"),
        "see devices": lambda: os.stat("/dev/kmsg"),
        "write its control group": lambda: open(control_group() / "cgroup.procs", "a").close(),
        "listen to the kernel": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
        "make an internet socket": lambda: socket.socket(socket.AF_INET).close(),
        "map memory to write and run": lambda: mmap.mmap(-1, 4096, prot=7).close(),
        "change the personality": lambda: call(LIBC.personality, PER_LINUX32) and call(LIBC.personality, 0),
        "make a setuid file": lambda: setuid(home / ".local/state/upcall/probe-setuid"),
        "be traced": lambda: in_child(lambda: call(LIBC.ptrace, PTRACE_TRACEME, 0, 0, 0)),
        "dump core": lambda: refuse(resource.getrlimit(resource.RLIMIT_CORE)[1] == 0),
        "gain privileges": lambda: refuse("NoNewPrivs:\t1" in Path("/proc/self/status").read_text()),
        "leave the network": lambda: in_child(leave_network),
        "use Landlock": lambda: call(LIBC.syscall, SYS_LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_VERSION),
    }
    seen = {}
    for name, attempt in attempts.items():
        try:
            attempt()
            seen[name] = ""
        except OSError as error:
            seen[name] = error.strerror
    result.write_text(json.dumps(seen))


def write(path: Path) -> None:
    path.write_text("")
    path.unlink()


def setuid(path: Path) -> None:
    path.write_text("")
    try:
        path.chmod(0o700 | stat.S_ISUID)
    finally:
        path.unlink()


def control_group() -> Path:
    unified = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    return Path("/sys/fs/cgroup" + unified.removeprefix("0::"))


def leave_network() -> None:
    uid = os.getuid()
    call(LIBC.unshare, CLONE_NEWUSER | CLONE_NEWNET)
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    refuse(Path("/proc/net/dev").read_text().count(":") != 1)


def in_child(work: Callable[[], object]) -> None:
    """`work` in a process of its own, which it changes for good."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 255)
    if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise OSError(code, os.strerror(code))


def call(function: Callable[..., int], *arguments: object) -> bool:
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return True


def refuse(condition: bool) -> None:
    if condition:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


if __name__ == "__main__":
    main()
