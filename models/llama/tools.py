"""Tool calls: what the model must write, and reading it back as it comes."""

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

from models.interface import CALL_ID_PREFIX, TextDelta, ToolCallDelta
from models.llama.schema import Grammar, literal

OPEN = "<tool_call>"
_CLOSE = "</tool_call>"
_MOST_CALLS = 8
_START = r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*'
_HEAD = re.compile(_START + r'"((?:[^"\\]|\\.)*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_CUT = re.compile(r'\s*\{\s*(?:"(?:(?:n(?:am?)?|t(?:yp?)?)?\Z|(?:name|type)\b)|\Z)')
"""What a call begins with that was cut off before its arguments."""
_LONGEST_HEAD = 200


class CallForm(Enum):
    """How a model writes calls."""

    TAGGED = auto()
    """Hermes' and Qwen's: `<tool_call>` `{"name": …, "arguments": …}` `</tool_call>`, one after the other. Models that
    were trained on no form at all are led to it by the grammar."""
    BARE = auto()
    """Llama 3.1's: `{"name": …, "parameters": …}` as the whole answer, a single call."""


def calls_rule(
    grammar: Grammar, tools: Sequence[Mapping[str, Any]], form: CallForm, *, parallel: bool, opened: bool
) -> str:
    """An expression for one or more calls of `tools`; `opened` leaves out the first call's `OPEN`, if it has one.

    Raises `ValueError` for tools that are not functions with a schema of their own.
    """
    if form is CallForm.BARE:
        kind = r'("\"type\"" ws ":" ws "\"function\"" ws "," ws)?'
        calls = grammar.rule(" | ".join(_bare_rule(grammar, tool) for tool in tools))
        return grammar.rule(rf'ws "{{" ws {kind} "\"name\"" ws ":" ws {calls} ws "}}"')
    call = grammar.rule(" | ".join(_call_rule(grammar, tool) for tool in tools))
    body = grammar.rule(f"ws {call} ws {literal(_CLOSE)}")
    more = f"(ws {literal(OPEN)} {body}){{0,{_MOST_CALLS - 1}}}" if parallel else ""
    return f"{body} {more}" if opened else f"{literal(OPEN)} {body} {more}"


def bare_opening(tools: Sequence[Mapping[str, Any]]) -> str:
    """A regular expression for how an answer begins that is a bare call of one of `tools`."""
    return rf'{_START}"(?:{"|".join(re.escape(tool_name(tool)) for tool in tools)})"'


def tool_name(tool: Mapping[str, Any]) -> str:
    """The function's name. Raises `ValueError` where there is none."""
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if (
        tool.get("type", "function") != "function"
        or not isinstance(name, str)
        or not re.fullmatch(r"[\w.-]{1,128}", name)
    ):
        raise ValueError("each tool must be a function with a name of letters, digits, '_', '.' and '-'")
    return name


def _call_rule(grammar: Grammar, tool: Mapping[str, Any]) -> str:
    head = literal(f'{{"name": "{tool_name(tool)}", "arguments": ')
    return grammar.rule(f'{head} {_arguments_rule(grammar, tool)} "}}"')


def _bare_rule(grammar: Grammar, tool: Mapping[str, Any]) -> str:
    name = literal(f'"{tool_name(tool)}"')
    return grammar.rule(rf'{name} ws "," ws "\"parameters\"" ws ":" ws {_arguments_rule(grammar, tool)}')


def _arguments_rule(grammar: Grammar, tool: Mapping[str, Any]) -> str:
    parameters = tool["function"].get("parameters")
    return grammar.schema({"type": "object", **parameters} if parameters else {"type": "object"})


@dataclass(slots=True)
class ToolCallReader:
    """Turns one choice's stream of text into text and tool calls."""

    choice: int
    names: frozenset[str]
    """Of the tools. Some models leave the tags away; an answer that is nothing but calls is read as such anyway."""
    calls: int = 0
    """How many calls have begun."""
    _said: bool = False
    _bare: bool = False
    _text: str = ""
    _scan: "_ArgumentScan | None" = None
    _inside: bool = False
    _blank: str = ""
    """What stood before the last opening."""
    _logprobs: list[Any] = field(default_factory=list)
    """Of text that is still held back."""

    def push(self, delta: TextDelta) -> Iterator[TextDelta | ToolCallDelta]:
        """What the next piece of text amounts to."""
        self._text += delta.text
        # Calls have none.
        self._logprobs += (not self._inside and delta.logprobs) or ()
        while (event := self._next()) is not None:
            yield self._weighed(event) if isinstance(event, TextDelta) else event
        if self._inside:
            self._logprobs = []

    def finish(self) -> Iterator[TextDelta]:
        """The rest, when no more text comes; a call that was cut off stays as far as it got."""
        if self._inside and self._scan is None and not self._bare and not _CUT.match(self._text):
            self._inside, self._text = False, self._blank + OPEN + self._text
        if self._text and not self._inside:
            yield self._weighed(TextDelta(self._text, self.choice))

    def _weighed(self, delta: TextDelta) -> TextDelta:
        entries, self._logprobs = self._logprobs, []
        return replace(delta, logprobs=entries or None)

    def _next(self) -> TextDelta | ToolCallDelta | None:
        if self._scan is not None:
            return self._arguments(self._scan)
        return self._head() if self._inside else self._outside()

    def _outside(self) -> TextDelta | ToolCallDelta | None:
        before, found, after = self._text.partition(OPEN)
        if found:
            self._inside, self._text, self._blank = True, after, before[len(before.rstrip()) :]
            return TextDelta(before.rstrip(), self.choice) if before.strip() else self._next()
        if not self._said and before.lstrip().startswith("{") and len(before) < _LONGEST_HEAD:
            head = _HEAD.match(before)
            self._inside = self._bare = head is not None and head.group(1) in self.names
            if head is None or self._inside:
                return self._next() if self._inside else None
        # An opening may have begun, and blanks before one are not text.
        keep = max((n for n in range(1, len(OPEN)) if before.endswith(OPEN[:n])), default=0)
        safe = before[: len(before) - keep].rstrip()
        self._text = before[len(safe) :]
        self._said = self._said or bool(safe)
        return TextDelta(safe, self.choice) if safe else None

    def _head(self) -> TextDelta | ToolCallDelta | None:
        begun = self._text.lstrip()
        if begun and not begun.startswith("{"):  # words about calls, as in an answer to how they are made
            self._inside = False
            return TextDelta(self._blank + OPEN, self.choice)
        head = _HEAD.match(self._text)
        if head is None:
            body, closed, after = self._text.partition(_CLOSE)
            if not closed:
                return None
            self._inside, self._text = False, after  # a call in some other form: left to the client as text
            return TextDelta(f"{self._blank}{OPEN}{body}{_CLOSE}", self.choice)
        self._text, self._scan = self._text[head.end() :], _ArgumentScan()
        self.calls += 1
        identity = f"{CALL_ID_PREFIX}{secrets.token_hex(12)}"
        return ToolCallDelta(self.calls - 1, id=identity, name=head.group(1), choice=self.choice)

    def _arguments(self, scan: "_ArgumentScan") -> TextDelta | ToolCallDelta | None:
        if scan.untouched:
            self._text = self._text.lstrip()
        length = scan.length_of(self._text)
        piece, self._text = self._text[:length], self._text[length:]
        if piece:
            return ToolCallDelta(self.calls - 1, arguments=piece, choice=self.choice)
        close = "}" if self._bare else _CLOSE
        if scan.done and close in self._text:
            self._text = self._text.partition(close)[2]
            self._scan, self._inside, self._bare = None, False, False
            return self._next()
        return None


@dataclass(slots=True)
class _ArgumentScan:
    """Follows a JSON object through its pieces to find its end."""

    done: bool = False
    _depth: int = 0
    _in_string: bool = False
    _escaped: bool = False

    @property
    def untouched(self) -> bool:
        return self._depth == 0 and not self.done

    def length_of(self, piece: str) -> int:
        """How many of the next characters belong to the object."""
        for at, character in enumerate(piece):
            if self.done:
                return at
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                self.done = self._depth == 0
        return len(piece)
