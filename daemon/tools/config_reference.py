"""Writes docs/configuration.md from the settings model: `python -m daemon.tools.config_reference`."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from daemon.config import Settings

Schema = Mapping[str, Any]

TOP = """\
# Configuration

Settings come from `~/.config/upcall/config.toml` (`upcall serve --config FILE` names another), then from the
environment, then from the flags of `upcall serve`; the later wins. Every key below can be an environment variable:
`UPCALL_`, the section, two underscores, the key, as in `UPCALL_ROUTING__CLOUD_SHARE=0.1`; lists and tables are JSON
there, as in `UPCALL_SERVER__ALLOWED_HOSTS='["box.lan"]'`. No key needs to be set. A key that does not exist is an
error that names the nearest one.

`upcall config check` says what is wrong, `upcall config show` what file and environment say. The share of prompts that
the dashboard sets and `upcall privacy` are kept apart from them, in `~/.local/state/upcall`, and come on top. A daemon
that runs takes new settings on SIGHUP (`systemctl --user reload upcall`), all but those of `server`, `local`,
`second_look` and `ledger`, which need a restart.

This page is made from the settings model by `make docs`.
"""


def reference() -> str:
    """The whole page, in Markdown."""
    schema = Settings.model_json_schema()
    return "\n".join([TOP, *_sections(schema, schema["$defs"], "")])


def _sections(section: Schema, known: Mapping[str, Schema], name: str) -> Iterator[str]:
    """A table of the section's keys, then the sections in it; an array of tables has its name in twice the brackets."""
    keys, inner = {}, {}
    for key, value in section["properties"].items():
        dotted = f"{name.strip('[]')}.{key}" if name else key
        if "$ref" in value:
            inner[dotted] = _named(value, known)
        elif "$ref" in value.get("additionalProperties", ()):
            inner[f'{dotted}."NAME"'] = _named(value["additionalProperties"], known)
        elif "$ref" in value.get("items", ()) and "properties" in (listed := _named(value["items"], known)):
            inner[f"[{dotted}]"] = listed
        else:
            keys[key] = value
    if keys:
        yield f"## `[{name}]`\n\n| key | default | values | what it is |\n|---|---|---|---|"
        for key, value in keys.items():
            what = " ".join(value["description"].split())
            yield f"| `{key}` | {_default(value)} | {_values(value, known)} | {what} |"
        yield ""
    for dotted, each in inner.items():
        yield from _sections(each, known, dotted)


def _named(value: Schema, known: Mapping[str, Schema]) -> Schema:
    return known[value["$ref"].rpartition("/")[2]]


def _default(value: Schema) -> str:
    if "default" not in value:
        return "must be set"
    return "not set" if value["default"] is None else f"`{json.dumps(value['default'])}`"


def _values(value: Schema, known: Mapping[str, Schema]) -> str:
    """What may stand there, in words."""
    if choices := value.get("anyOf"):
        return ", or ".join(_values(each, known) for each in choices if each.get("type") != "null")
    if "$ref" in value:
        return _values(_named(value, known), known)
    if literals := value.get("enum", [value["const"]] if "const" in value else []):
        return ", ".join(f"`{json.dumps(literal)}`" for literal in literals)
    match value["type"]:
        case "boolean":
            return "`true`, `false`"
        case "array":
            return f"list of: {_values(value['items'], known)}"
        case "object" if value["additionalProperties"] is True:
            return "table"
        case "object":
            return f"table of: {_values(value['additionalProperties'], known)}"
        case "integer" | "number":
            kind = "whole number" if value["type"] == "integer" else "number"
            return ", ".join([kind, *_bounds(value)])
        case _:
            return "path" if value.get("format") == "path" else "text"


def _bounds(value: Schema) -> Iterator[str]:
    for word, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤")):
        if word in value:
            yield f"{sign} {value[word]:g}" if abs(value[word]) < 1e5 else f"{sign} {value[word]}"


if __name__ == "__main__":
    print(reference(), end="")
