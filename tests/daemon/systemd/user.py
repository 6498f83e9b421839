"""A user of this machine, who exists for a test module alone, with a systemd of their own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

NAME, UID = "upcall-test", 59000
REPOSITORY = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("user_manager.sh")
NEEDED = ("unshare", "nsenter", "setpriv", "/lib/systemd/systemd", "/lib/systemd/systemd-journald", "dbus-daemon")


def missing() -> str:
    """What this machine lacks for it, or nothing."""
    if os.geteuid() != 0:
        return "a user manager of its own needs root, for namespaces and another user"
    if lacking := [command for command in NEEDED if not shutil.which(command)]:
        return f"needs {', '.join(lacking)} (make test-deps)"
    return "" if _cgroup2().is_dir() else "needs a cgroup v2 hierarchy"


@dataclass(frozen=True)
class User:
    leader: int
    """First process of the user's namespaces."""

    @property
    def home(self) -> Path:
        """The user's home as seen from outside."""
        return Path(f"/proc/{self.leader}/root/home/{NAME}")

    def run(self, *command: str | Path, stdin: str = "", check: bool = True) -> "subprocess.CompletedProcess[str]":
        """A command as the user, in the user's session."""
        done = subprocess.run([*self._enter(), *command], input=stdin, capture_output=True, text=True, timeout=120)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        return self.run("systemctl", "--user", *arguments, check=check).stdout.strip()

    def show(self, unit: str, property: str) -> str:
        return self.systemctl("show", "--property", property, "--value", unit)

    def write(self, path: str, text: str) -> None:
        """A file of the user's, at a path in their home."""
        self.run("mkdir", "-p", str(Path("/home", NAME, path).parent))
        self.run("tee", f"/home/{NAME}/{path}", stdin=text)

    def _enter(self) -> Sequence[str]:
        runtime = f"/run/user/{UID}"
        return [
            "nsenter", f"--target={self.leader}", "--mount", "--pid", "--cgroup", "--wd=/",
            "setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "env", "-i",
            f"HOME=/home/{NAME}", f"USER={NAME}", f"LOGNAME={NAME}", "PATH=/usr/bin:/bin",
            f"XDG_RUNTIME_DIR={runtime}", f"DBUS_SESSION_BUS_ADDRESS=unix:path={runtime}/bus",
        ]  # fmt: skip


@contextmanager
def user_with_systemd() -> Iterator[User]:
    # The namespace's own root: what the user's systemd is given must be a part of the tree that the host leaves alone.
    cgroup = _cgroup2() / f"{NAME}-{os.getpid()}"
    cgroup.mkdir()
    paths = {REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)}
    process = subprocess.Popen(
        ["unshare", "--mount", "--cgroup", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation=private",
         "bash", SCRIPT, NAME, str(UID), *map(str, sorted(paths))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: (cgroup / "cgroup.procs").write_text("0"),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", "the user's systemd did not come up"
        yield User(psutil.Process(process.pid).children()[0].pid)
    finally:
        process.communicate()
        for folder in sorted(cgroup.rglob("*/"), reverse=True):
            if folder.is_dir():
                folder.rmdir()
        cgroup.rmdir()


def _cgroup2() -> Path:
    """Where the host has its cgroup v2 tree, beside the older ones or alone."""
    beside = Path("/sys/fs/cgroup/unified")
    return beside if beside.is_dir() else Path("/sys/fs/cgroup")
