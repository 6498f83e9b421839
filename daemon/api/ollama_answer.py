"""Answers in Ollama's shape: one JSON object, or one a line (https://github.com/ollama/ollama/blob/main/docs/api.md)."""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from daemon.api.completion import Choice
from daemon.api.errors import ApiError
from daemon.api.exchange import Exchange
from models.interface import Event, Finish, TextDelta, ToolCallDelta

DONE_REASONS = {"length": "length"}
"""All else that ends an answer is a `stop`."""


def error_object(error: ApiError) -> dict[str, Any]:
    return {"error": error.message}


class OllamaShape:
    """One answer on its way to the client; see `Shape`. `kind` is the endpoint that was asked."""

    content_type = "application/x-ndjson"

    def __init__(self, exchange: Exchange, kind: Literal["chat", "generate"]) -> None:
        self._exchange = exchange
        self._kind = kind
        self._choice = Choice()
        self._sent_calls = 0

    def whole(self, events: Sequence[Event]) -> dict[str, Any]:
        for event in events:
            self._take(event)
        return self._envelope() | self._content("".join(self._choice.text), list(self._calls())) | self._last()

    def start(self) -> bytes:
        return b""

    def event(self, event: Event) -> bytes:
        self._take(event)
        match event:
            case TextDelta(text=text) if text:
                return self._piece(text, [])
            # Its calls are whole, with arguments that are objects: one is known to be when the next begins.
            case ToolCallDelta(name=str()) | Finish() if calls := list(self._calls(open=isinstance(event, Finish))):
                return self._piece("", calls)
        return b""

    def end(self) -> bytes:
        return _line(self._envelope() | self._content("", []) | self._last())

    def error(self, error: ApiError) -> bytes:
        return _line(error_object(error))

    def _take(self, event: Event) -> None:
        if isinstance(event, TextDelta | ToolCallDelta | Finish):
            self._choice.add(event)

    def _calls(self, open: bool = True) -> Iterator[dict[str, Any]]:
        """The calls that have not been sent yet, the one that is still `open` included."""
        for number in sorted(self._choice.tool_calls)[self._sent_calls : None if open else -1]:
            self._sent_calls += 1
            call = self._choice.call(number)
            function = call["function"]
            yield {
                "id": call["id"],
                "function": {"name": function["name"], "arguments": _object(function["arguments"])},
            }

    def _piece(self, text: str, calls: list[dict[str, Any]]) -> bytes:
        return _line(self._envelope() | self._content(text, calls) | {"done": False})

    def _content(self, text: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        if self._kind == "generate":
            return {"response": text}
        return {"message": {"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {})}

    def _envelope(self) -> dict[str, Any]:
        body = {"model": self._exchange.model, "created_at": now()}
        return body | ({"x_upcall": self._exchange.explanation} if self._exchange.explanation else {})

    def _last(self) -> dict[str, Any]:
        usage = self._exchange.usage
        first, total = self._exchange.seconds
        return {
            "done": True,
            "done_reason": DONE_REASONS.get(str(self._choice.finish_reason), "stop"),
            "total_duration": _nanoseconds(total),
            "load_duration": 0,
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(first),
            "eval_count": usage.completion_tokens,
            "eval_duration": _nanoseconds(total - first),
        }


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _object(text: str) -> Any:
    try:
        return json.loads(text or "{}")
    except ValueError:
        return {}


def _line(data: dict[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
