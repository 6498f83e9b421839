"""upcall as a systemd user service: its units, where they go, and the few systemctl commands that people need."""

import getpass
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from daemon.config import Server
from daemon.processes import listening
from models.store import Store

SERVICE, SOCKET = "upcall.service", "upcall.socket"
PACKAGED_COMMAND = "/usr/bin/upcall"
PACKAGED_ADDRESS = "127.0.0.1:8484"
PACKAGED_STATE = "%h/.local/state/upcall"
PACKAGED_MODELS = "%h/.local/share/upcall/models"
"""What the units say as they are shipped, which is right for a Debian package."""
_XDG_HOMES = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
NOTIFY_RELOAD_SINCE = 253
"""systemd's first version whose reload waits for the daemon; an earlier one would take the type for `simple`."""


class ServiceError(Exception):
    """The service manager refused or is not there; one line for people."""


@dataclass(frozen=True, slots=True)
class Installed:
    units: list[Path]
    trouble: str
    """Why the user's systemd has not read them yet; nothing where it has."""


def install(server: Server) -> Installed:
    """Write the units for this installation and `server`'s address into the user's unit directory.

    Raises `ServiceError` where the units are there already, from a package, or cannot be written for this `server`, and
    `FileNotFoundError` where a template or the `upcall` command is missing.
    """
    if (packaged := Path(sysconfig.get_path("data")) / "lib/systemd/user" / SERVICE).is_file():
        raise ServiceError(f"the package has installed {packaged} already; run `upcall service enable`")
    service = _at_home(_template(SERVICE).replace(PACKAGED_COMMAND, _quoted(_command())))
    if _systemd_version() >= NOTIFY_RELOAD_SINCE:
        service = re.sub(r"^ExecReload=.*\n", "", service.replace("Type=notify\n", "Type=notify-reload\n"), flags=re.M)
    socket = _template(SOCKET).replace(PACKAGED_ADDRESS, _address(server))
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    units = [folder / SERVICE, folder / SOCKET]
    for path, text in zip(units, (service, socket), strict=True):
        path.write_text(text)
    return Installed(units, _trouble(systemctl("daemon-reload", quiet=True)))


def uninstall() -> list[Path]:
    """Stop and disable the service and remove its units. Raises `FileNotFoundError` where it is not installed."""
    folder = _folder()
    units = [folder / SERVICE, folder / SOCKET]
    if not any(path.is_file() for path in units):
        raise FileNotFoundError(f"{units[0]} is not there; `upcall service install` has not been run by this user")
    systemctl("disable", "--now", SERVICE, SOCKET, quiet=True)
    for path in units:
        path.unlink(missing_ok=True)
    systemctl("daemon-reload", quiet=True)
    return units


def enable(server: Server, at_login: bool) -> None:
    """Listen from now on and after every login; with `at_login` the daemon starts then, not with its first request.

    Raises `ServiceError`.
    """
    if systemctl("is-active", "--quiet", SOCKET, quiet=True).returncode and not server.socket:
        try:
            listening.listen(server).close()
        except OSError as error:
            raise ServiceError(listening.why_not(error, server)) from None
    if trouble := _trouble(systemctl("enable", "--now", SOCKET, *([SERVICE] if at_login else []), quiet=True)):
        raise ServiceError(trouble)
    if systemctl("is-active", "--quiet", SOCKET, quiet=True).returncode:
        seen = f"`systemctl --user status {SOCKET}` says why; it serves no system users, root among them"
        raise ServiceError(f"systemd did not start {SOCKET}: {seen}")


def disable() -> None:
    """Stop, and start no more. Raises `ServiceError`."""
    if trouble := _trouble(systemctl("disable", "--now", SERVICE, SOCKET, quiet=True)):
        raise ServiceError(trouble)


def systemctl(*arguments: str, quiet: bool = False) -> "subprocess.CompletedProcess[str]":
    """`systemctl --user`. Raises `ServiceError` where this machine has none."""
    return _run("systemctl", "--user", *arguments, quiet=quiet)


def journalctl(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """The service's lines of the journal. Raises `ServiceError` where this machine has none."""
    return _run("journalctl", "--user", "--unit", SERVICE, *arguments)


def lingers() -> bool:
    """Whether the user's services start at boot and outlive the last logout; logind keeps a file per such user."""
    return (Path("/var/lib/systemd/linger") / getpass.getuser()).exists()


def journal_is_kept() -> bool:
    """Whether the journal is on disk; systemd gives users a journal of their own only there."""
    return Path("/var/log/journal").is_dir()


def _run(command: str, *arguments: str, quiet: bool = False) -> "subprocess.CompletedProcess[str]":
    if not shutil.which(command):
        raise ServiceError(f"there is no {command} here; run `upcall serve` by this system's own means")
    return subprocess.run([command, *arguments], text=True, stderr=subprocess.PIPE if quiet else None)


def _trouble(done: "subprocess.CompletedProcess[str]") -> str:
    return " ".join(done.stderr.split()) if done.returncode else ""


def _folder() -> Path:
    """Where the user's systemd looks for units, which goes by its own environment and not by this shell's."""
    command, asked = shutil.which("systemctl"), ("--user", "show-environment")
    shown = subprocess.run([command, *asked], capture_output=True, text=True).stdout if command else ""
    found = re.search(r"^XDG_CONFIG_HOME=(/.*)$", shown, re.MULTILINE)
    return Path(found[1] if found else Path.home() / ".config") / "systemd" / "user"


def _template(unit: str) -> str:
    installed = Path(sysconfig.get_path("data")) / "share" / "upcall" / "systemd" / unit
    source = Path(__file__).parent.parent / "systemd" / unit
    # An editable install keeps a copy from the day it was made.
    for path in (source, installed):
        if path.is_file():
            return path.read_text()
    raise FileNotFoundError(f"the unit {installed} is missing; install upcall again")


def _command() -> str:
    beside = Path(sys.executable).parent / "upcall"
    command = str(beside) if beside.exists() else shutil.which("upcall")
    if command is None:
        raise FileNotFoundError("the upcall command is not installed beside this Python; install upcall again")
    return command


def _at_home(service: str) -> str:
    """With the XDG base directories that are set here, which a user's systemd does not read from a shell."""
    homes = [f"{name}={value}" for name in _XDG_HOMES if os.path.isabs(value := os.environ.get(name, ""))]
    if not homes:
        return service
    state, weights = (_quoted(str(path)) for path in (platformdirs.user_state_path("upcall"), Store().root))
    service = service.replace(PACKAGED_STATE, state).replace(PACKAGED_MODELS, weights)
    return service.replace("[Service]\n", f"[Service]\nEnvironment={' '.join(map(_quoted, homes))}\n", 1)


def _quoted(path: str) -> str:
    """`path` as a unit has it (systemd.syntax(7)): one word, and no specifier in it."""
    if re.search(r"[\"'\\]", path):
        raise ServiceError(f"systemd starts nothing at a path with quotation marks or backslashes, such as {path}")
    path = path.replace("%", "%%")
    return f'"{path}"' if " " in path else path


def _address(server: Server) -> str:
    if not server.port:
        raise ServiceError("server.port is 0, and a service needs an address that clients know; set another")
    if server.socket or not server.is_loopback:
        raise ServiceError(
            f"the socket unit serves a port on loopback, not {server.socket or server.host}: unset it and, for other "
            "machines, put a proxy with TLS before upcall; or run `upcall serve` yourself"
        )
    host = "127.0.0.1" if server.host == "localhost" else server.host
    return f"[{host}]:{server.port}" if ":" in host else f"{host}:{server.port}"


def _systemd_version() -> int:
    """0 where there is none."""
    command = shutil.which("systemctl")
    shown = subprocess.run([command, "--version"], capture_output=True, text=True).stdout if command else ""
    found = re.match(r"systemd (\d+)", shown)
    return int(found[1]) if found else 0
