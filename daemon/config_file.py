"""Reads settings: `config.toml`, then the environment (`UPCALL_SECTION__KEY`), then flags; the later wins.

Unknown keys are errors that name the nearest valid one, wherever they come from.
"""

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import platformdirs
from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from daemon.config import ConfigError, Settings

ENV_PREFIX = "UPCALL_"


def default_path() -> Path:
    return platformdirs.user_config_path("upcall") / "config.toml"


def load(path: Path | None = None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Read the settings. Raises `ConfigError`; a default `path` that does not exist is an empty file."""
    if path is not None and not path.is_file():
        raise ConfigError(f"{path}: no such file; leave --config out for the defaults")

    class Sources(Settings, BaseSettings):
        model_config = SettingsConfigDict(
            env_prefix=ENV_PREFIX, env_nested_delimiter="__", toml_file=path or default_path(), extra="forbid"
        )

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    mistakes = list(_unknown_environment())
    try:
        settings = Settings.model_validate(Sources(**(flags or {})).model_dump())
    except UnicodeDecodeError:
        raise ConfigError(f"{path or default_path()}: not UTF-8; save it in that encoding") from None
    except SettingsError as error:
        raise ConfigError(f"{error}: lists and tables in the environment are JSON, such as '[\"a\"]'") from None
    except OSError as error:
        raise ConfigError(f"{path or default_path()}: cannot be read ({error.strerror})") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path or default_path()}: not valid TOML: {error}") from None
    except ValidationError as error:
        mistakes += [_sentence(detail) for detail in error.errors()]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return settings


def _unknown_environment() -> Iterator[str]:
    """Misspelt sections, which pydantic passes over. A name without `__` is no setting: others read UPCALL_DATA."""
    for name in os.environ:
        section, *rest = name.removeprefix(ENV_PREFIX).lower().split("__")
        if name.startswith(ENV_PREFIX) and rest and section not in Settings.model_fields:
            yield f"{name} in the environment: {_unknown([section])}"


def _sentence(detail: Any) -> str:
    keys = [str(key) for key in detail["loc"]]
    if detail["type"] == "extra_forbidden" and (mistake := _unknown(keys)):
        return mistake
    where = f"{'.'.join(keys)}: " if keys else ""
    return f"{where}{detail['msg'].removeprefix('Value error, ')}"


def _unknown(keys: list[str]) -> str | None:
    """What is wrong with a dotted name, or `None` where it exists."""
    model: Any = Settings
    for depth, key in enumerate(keys):
        if get_origin(model) in (dict, tuple):
            # Its keys are people's own, or numbers.
            model = get_args(model)[get_origin(model) is dict]
            continue
        fields = getattr(model, "model_fields", {})
        if key not in fields:
            prefix = keys[:depth]
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
            names = near or sorted(fields)
            hint = "did you mean" if near else "valid here:"
            return f"{'.'.join(keys)}: unknown key; {hint} {', '.join('.'.join([*prefix, name]) for name in names)}"
        model = fields[key].annotation
    return None
