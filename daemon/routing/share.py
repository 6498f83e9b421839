"""The share of prompts that may go up, as set while the daemon runs; it survives restarts like the privacy switch.

It stands in the place of one value of `routing.cloud_share`: who changes that in the settings afterwards is heard.
"""

import json
import os
from pathlib import Path

import platformdirs

from daemon.config import Settings


def applied(settings: Settings) -> Settings:
    """`settings` with the share that was set, where it still holds."""
    routing = settings.routing
    try:
        kept = json.loads(_file().read_text())
        share, instead_of = float(kept["cloud_share"]), float(kept["instead_of"])
    except (OSError, ValueError, KeyError, TypeError):
        return settings
    if routing.threshold is not None or instead_of != routing.cloud_share or not 0 <= share <= 1:
        return settings
    return settings.model_copy(update={"routing": routing.model_copy(update={"cloud_share": share})})


def remember(share: float, settings: Settings) -> None:
    """Let `share` hold from now on, in the place of what `settings`, as read, say. Raises `OSError`."""
    restore(json.dumps({"cloud_share": share, "instead_of": settings.routing.cloud_share}))


def kept() -> str | None:
    """What is remembered, for `restore`. Raises `OSError`."""
    try:
        return _file().read_text(errors="replace")
    except FileNotFoundError:
        return None


def restore(earlier: str | None) -> None:
    """Have remembered what `kept` gave. Raises `OSError`."""
    file = _file()
    if earlier is None:
        file.unlink(missing_ok=True)
        return
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}")
    draft.write_text(earlier)
    draft.replace(file)


def _file() -> Path:
    return platformdirs.user_state_path("upcall") / "cloud-share.json"
