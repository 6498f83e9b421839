"""What is kept of conversations on disk: whether at all, where, and how it is forgotten."""

from pathlib import Path

import platformdirs

from daemon import privacy
from daemon.config import Local, Settings


def folder(settings: Settings) -> Path | None:
    """The folder, made if need be, for the local model to write to; None where nothing is to be kept."""
    if not settings.local.cache_on_disk or (privacy.is_on(settings) and stops_in_privacy(settings.local)):
        return None
    place = _place()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.chmod(0o700)
    return place


def stops_in_privacy(local: Local) -> bool:
    """Whether privacy mode ends the keeping."""
    return local.cache_on_disk and not local.cache_in_privacy


def forget() -> int:
    """Delete everything; how many files there were. A model that runs forgets them before its next request."""
    files = list(_place().glob("*.kv*"))
    for file in files:
        file.unlink(missing_ok=True)
    return len(files)


def _place() -> Path:
    return platformdirs.user_state_path("upcall") / "kv"
