"""How every command comes to the settings."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

if TYPE_CHECKING:
    from daemon.config import Settings

config_option = click.option(
    "--config", "config", type=click.Path(path_type=Path), help="Settings file in the place of the user's config.toml."
)

Flags: TypeAlias = dict[tuple[str, str], Any]
"""Values by section and name; `None` where a flag was not given."""


def settings_or_exit(path: Path | None, flags: Flags | None = None) -> "Settings":
    """The settings, or the end with one line per mistake."""
    from daemon.config import ConfigError

    try:
        return load_settings(path, flags or {})
    except ConfigError as error:
        for line in str(error).splitlines():
            click.echo(f"upcall: {line}", err=True)
        sys.exit(2)


def load_settings(path: Path | None, flags: Flags) -> "Settings":
    """Raises `ConfigError`."""
    from daemon import resolve
    from daemon.config_file import load

    nested: dict[str, dict[str, Any]] = {}
    for (section, name), value in flags.items():
        if value is not None:
            nested.setdefault(section, {})[name] = value
    settings = load(path, nested)
    resolve.clouds(settings.cloud)
    return settings
