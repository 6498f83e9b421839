"""Which new settings a running daemon can take over."""

from daemon.config import Section, Settings

FIXED = ("server", "local", "second_look", "ledger")
"""Sections whose settings hold until a restart: a bound socket, a model that is loaded, and a file that is open."""


def takeover(now: Settings, new: Settings) -> tuple[Settings, list[str]]:
    """`new` as far as it can be taken over, and the names of the changed settings that need a restart."""
    left = [name for section in FIXED for name in _changed(section, getattr(now, section), getattr(new, section))]
    return new.model_copy(update={section: getattr(now, section) for section in FIXED}), left


def _changed(section: str, now: Section, new: Section) -> list[str]:
    return [f"{section}.{name}" for name in type(now).model_fields if getattr(now, name) != getattr(new, name)]
