"""The tools of `/v1/responses` as chat's functions, and a function's calls as those of the tool that it stands for."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import model_validator

from daemon.api.reading import Loose

PASSED_ON = ("function", "custom", "namespace")
"""Types of tools; the others are no functions of the client's."""


class Tool(Loose):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: dict[str, Any] | None = None
    """What the text that a custom tool takes must look like."""

    @model_validator(mode="after")
    def _has_a_name_to_be_called_by(self) -> "Tool":
        if self.type in PASSED_ON and not self.name:
            raise ValueError(f"a tool of type {self.type} needs a name")
        return self


class OfferedTool(Tool):
    tools: list[Tool] | None = None
    """Of a namespace."""


@dataclass(frozen=True, slots=True)
class Called:
    """A tool as its client calls it."""

    type: str
    name: str
    namespace: str | None = None

    @property
    def plain_name(self) -> str:
        # Chat has no namespaces; Codex itself joined them so before the API had them.
        return f"{self.namespace.rstrip('_')}__{self.name}" if self.namespace else self.name


class Toolbox:
    """The tools of one request, each a function under a name of its own."""

    def __init__(self, offered: Iterable[OfferedTool]) -> None:
        flat = dict(tool for each in offered for tool in _flat(each))
        self._names: dict[Called, str] = {}
        self._called: dict[str, Called] = {}
        # What is in no namespace keeps its name whatever the others come to.
        for called in sorted(flat, key=lambda called: called.namespace is not None):
            name = called.plain_name
            while name in self._called:
                name += "_"
            self._names[called], self._called[name] = name, called
        self.functions = [_function(tool, self._names[called]) for called, tool in flat.items()]

    def __contains__(self, called: Called) -> bool:
        return called in self._names

    def name(self, called: Called) -> str:
        """The function's, also of a tool that a conversation has called and the request no longer offers."""
        return self._names.get(called, called.plain_name)

    def called(self, name: str) -> Called:
        """Whom a call of the function `name` means; a model may also make a name up."""
        return self._called.get(name, Called("function", name))


def left_out(offered: Iterable[OfferedTool]) -> list[str]:
    """The types of tools that are not passed on."""
    kinds = {tool.type for each in offered for tool in (each, *(each.tools or ()))}
    return sorted(kinds - {*PASSED_ON})


def arguments_of(text: str) -> str:
    """What a call of a custom tool's function has in the place of `text`."""
    return json.dumps({"input": text}, ensure_ascii=False)


def _flat(offered: OfferedTool) -> Iterator[tuple[Called, Tool]]:
    if offered.type in ("function", "custom"):
        yield Called(offered.type, str(offered.name)), offered
    if offered.type != "namespace":
        return
    about = offered.description
    for tool in offered.tools or ():
        if tool.type in ("function", "custom"):
            # Said once, as it may be long; chat has no other place for it.
            described = "\n\n".join(filter(None, (about, tool.description)))
            yield Called(tool.type, str(tool.name), offered.name), tool.model_copy(update={"description": described})
            about = None


def _function(tool: Tool, name: str) -> Mapping[str, Any]:
    if tool.type == "custom":
        form = _in_words(tool.format or {})
        text = {"type": "string", "description": f"The text itself, nothing around it.{form}"}
        parameters = {"type": "object", "properties": {"input": text}, "required": ["input"]}
        function = {"parameters": {**parameters, "additionalProperties": False}}
    else:
        function = tool.model_dump(include={"parameters", "strict"}, exclude_unset=True)
    described = {"description": tool.description} if tool.description else {}
    return {"type": "function", "function": {"name": name, **described, **function}}


def _in_words(form: Mapping[str, Any]) -> str:
    match form:
        case {"type": "grammar", "syntax": "regex", "definition": str(pattern)} if pattern:
            return f" It must match this regular expression:\n{pattern}"
        case {"type": "grammar", "definition": str(grammar)} if grammar:
            return f" It must follow this {str(form.get('syntax', '')).capitalize()} grammar:\n{grammar}"
    return ""


class FreeText:
    """The text in the arguments of a custom tool's function, `{"input": "…"}`, as it comes in pieces."""

    _HEAD = re.compile(r'\s*\{\s*"input"\s*:\s*"')
    _WHOLE = re.compile(
        # Of two escapes that make one character the first is not whole without the second.
        r'(?:[^"\\]|\\[^u]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\u[0-9a-fA-F]{4}(?=[^\\]|\\[^u]|\\u[0-9a-fA-F]{4})'
        r"|\\u(?=[0-9a-fA-F]{0,3}[^0-9a-fA-F]))*"
    )
    _ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
    _MEANT: Mapping[str, str] = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}

    def __init__(self) -> None:
        self._begun = self._ended = False
        self._left = ""
        """What has not been read yet."""

    def push(self, piece: str) -> str:
        """What is known of the text now and was not before."""
        self._left += piece
        if not self._begun and (head := self._HEAD.match(self._left)):
            self._begun, self._left = True, self._left[head.end() :]
        if not self._begun or self._ended:
            return ""
        whole = self._WHOLE.match(self._left)
        assert whole is not None
        self._left = self._left[whole.end() :]
        self._ended = self._left.startswith('"')
        text = self._ESCAPE.sub(self._unescaped, whole.group())
        # Half a character is none, and no stream could carry it.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def rest(self) -> str:
        """What the text turns out to be of arguments in no such shape, as servers have them that force none."""
        if self._begun:
            return ""
        try:
            arguments = json.loads(self._left)
        except ValueError:
            return self._left
        match arguments:
            case {"input": str(text)}:
                return text
            case dict() if len(arguments) == 1 and isinstance(text := next(iter(arguments.values())), str):
                return text
        return self._left

    def _unescaped(self, escape: re.Match[str]) -> str:
        code, character = escape.groups()
        # An escape that JSON does not know is a backslash that should have been doubled.
        return chr(int(code, 16)) if code else self._MEANT.get(character, escape.group())
