"""Runs the chat template inside a GGUF file: a program by a stranger, held to a time and a size."""

import contextlib
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from models.interface import FailureCode, Message
from models.llama.errors import RefusedError
from models.llama.tools import CallForm

_SECONDS = 2.0
_SOURCE_LIMIT = 64 * 1024
_GROWTH_LIMIT = 256 * 1024
"""Characters that a template may add to the request's own."""
_SIZE_LIMIT = 1 << 26
"""Characters that one operation may build."""
_OPERAND_LIMIT = 1 << 20
_PADDING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map"})


class SandboxedTemplate:
    """A Jinja template that sees nothing but the conversation. Raises `ValueError` at once where it does not parse."""

    calls = CallForm.TAGGED

    def __init__(self, source: str, *, bos: str, eos: str) -> None:
        if len(source) > _SOURCE_LIMIT:
            raise ValueError(f"the file's chat template has {len(source):,} characters, more than {_SOURCE_LIMIT:,}")
        try:
            self._template = _Environment().from_string(source)
        except (TemplateError, RecursionError, OverflowError) as error:
            raise ValueError(f"the file's chat template does not parse: {error}") from error
        self._bos, self._eos = bos, eos

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
        """The prompt. Raises `RefusedError` where the template refuses, fails, or exceeds its time or size."""
        limit = _GROWTH_LIMIT + 4 * sum(len(str(part)) for part in (*messages, *tools))
        pieces: list[str] = []
        stream = self._template.generate(
            messages=[_with_parsed_arguments(message) for message in messages],
            tools=tools or None,
            add_generation_prompt=True,
            bos_token=self._bos,
            eos_token=self._eos,
            raise_exception=_raise_exception,
        )
        try:
            with _Deadline(_SECONDS):
                for piece in stream:
                    limit -= len(piece)
                    if limit < 0:
                        raise SecurityError("it writes too much")
                    pieces.append(piece)
        except Exception as error:
            # Templates refuse conversations with exceptions of any kind; the text of one may quote the conversation,
            # but goes to the very client that sent it.
            message = f"The model's chat template cannot render this conversation: {error}"
            raise RefusedError(FailureCode.BAD_REQUEST, message.replace("\n", " ")) from None
        return "".join(pieces)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which keeps a template from Python's insides, less the ways to eat memory in a single call."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        self.filters["tojson"] = _tojson
        for name in ("center", "format", "indent", "wordwrap", "xmlattr"):
            del self.filters[name]
        for name in ("join", "replace"):
            self.filters[name] = _bounded(self.filters[name])

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            _check_growth(len(str(left)) + len(str(right)))
        elif not all(isinstance(operand, int | float) and abs(operand) < _OPERAND_LIMIT for operand in (left, right)):
            raise SecurityError(f"it may use {operator!r} between small numbers only")
        elif operator == "**":
            _check_growth(int(abs(right)))
        return super().call_binop(context, operator, left, right)

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(getattr(__obj, "__self__", None), str) and __obj.__name__ in {"join", "replace"}:
            _check_growth(len(__obj.__self__) * len(str(args)))
        return super().call(__context, __obj, *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        pads = isinstance(obj, str) and attr in _PADDING
        return not pads and super().is_safe_attribute(obj, attr, value)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _ConcatAsJoin().visit(super()._parse(source, name, filename))
        return tree


class _ConcatAsJoin(NodeTransformer):
    """Writes `a ~ b` as `[a, b] | join`, which is bounded: doubling a string by `~` soon fills any memory."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802 (jinja2's naming)
        self.generic_visit(node)
        items = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(items, "join", [], [], None, None, lineno=node.lineno)


def _with_parsed_arguments(message: Message) -> Message:
    """Templates are written for arguments that are objects; clients send them as JSON."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = dict(call["function"])
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            function["arguments"] = json.loads(function.get("arguments") or "{}")
        calls.append({**call, "function": function})
    return {**message, "tool_calls": calls}


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # keeps Jinja's own marks on the function, such as that it wants the context
    def call(eval_context: Any, *args: Any, **kwargs: Any) -> Any:
        args = tuple(list(arg) if isinstance(arg, Iterator) else arg for arg in args)
        _check_growth(math.prod(max(len(str(arg)), 1) for arg in args))
        return function(eval_context, *args, **kwargs)

    return call


def _check_growth(size: int) -> None:
    if size > _SIZE_LIMIT:
        raise SecurityError("it builds too large a text")


class _Deadline:
    """Raises from within the Python code that runs on this thread once the time is up."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._previous: Any = None

    def __enter__(self) -> None:
        self._previous = sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._previous)

    def _trace(self, _frame: object, _event: str, _arg: object) -> Callable[..., Any]:
        if time.monotonic() > self._until:
            raise SecurityError("it takes too long")
        return self._trace


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    """As the models' makers render it: no HTML escapes, characters as they are."""
    return json.dumps(value, ensure_ascii=False, indent=min(indent, 8) if indent else None)


def _raise_exception(message: str) -> None:
    raise SecurityError(message)
