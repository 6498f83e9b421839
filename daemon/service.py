"""The systemd user unit: where its template is, and where a user's copy goes."""

import shutil
import sys
import sysconfig
from pathlib import Path

import platformdirs

UNIT = "upcall.service"


def install() -> Path:
    """Write the unit for this installation into the user's unit directory and return its path.

    Raises `FileNotFoundError` where the template or the `upcall` command is missing.
    """
    unit = _template().read_text().replace("@UPCALL@", _command())
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(unit)
    return path


def uninstall() -> Path:
    """Raises `FileNotFoundError` where it is not installed."""
    path = _path()
    path.unlink()
    return path


def _path() -> Path:
    return platformdirs.user_config_path("systemd") / "user" / UNIT


def _template() -> Path:
    installed = Path(sysconfig.get_path("data")) / "share" / "upcall" / "systemd" / UNIT
    source = Path(__file__).parent.parent / "systemd" / UNIT
    for path in (installed, source):
        if path.is_file():
            return path
    raise FileNotFoundError(f"the unit template {installed} is missing; install upcall again")


def _command() -> str:
    beside = Path(sys.executable).parent / "upcall"
    command = str(beside) if beside.exists() else shutil.which("upcall")
    if command is None:
        raise FileNotFoundError("the upcall command is not installed beside this Python; install upcall again")
    return command
