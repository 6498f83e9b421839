"""The persistent privacy switch: one word in the state directory, which survives restarts and needs no daemon."""

import os
from pathlib import Path

import platformdirs

from daemon.config import Settings


def is_on(settings: Settings) -> bool:
    """Whether nothing may leave the machine. A switch that cannot be read counts as on."""
    if settings.privacy.mode:
        return True
    try:
        return path().read_text().strip() != "off"
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True


def remember(on: bool) -> None:
    """Set the switch for every later start. Raises `OSError` where the state directory cannot be written."""
    switch = path()
    switch.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = switch.with_suffix(f".{os.getpid()}")
    draft.write_text("on\n" if on else "off\n")
    draft.replace(switch)


def stamp() -> tuple[int, int] | None:
    """Another one whenever somebody has set the switch; `None` where there is none to be seen."""
    try:
        switch = path().stat()
    except OSError:
        return None
    return switch.st_ino, switch.st_mtime_ns


def path() -> Path:
    """Of the switch."""
    return platformdirs.user_state_path("upcall") / "privacy"
