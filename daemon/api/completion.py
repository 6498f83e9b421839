"""An answer in OpenAI's shape: a `chat.completion`, or `chat.completion.chunk`s as server-sent events."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from daemon.api.errors import ApiError
from daemon.api.exchange import Exchange
from models.interface import Event, Finish, Progress, TextDelta, ToolCallDelta, Usage

ERROR_TYPES = {
    400: "invalid_request_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}


def error_object(error: ApiError) -> dict[str, Any]:
    """OpenAI's error object, as the body of a response or the data of an event."""
    kind = ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


@dataclass
class Choice:
    text: list[str] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    tool_calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    arguments: dict[int, list[str]] = field(default_factory=dict)
    """Of the calls, in pieces."""
    beside: list[Mapping[str, Any]] = field(default_factory=list)
    calls_beside: dict[int, list[Mapping[str, Any]]] = field(default_factory=dict)
    finish_reason: str | None = None

    def add(self, event: TextDelta | ToolCallDelta | Finish) -> None:
        match event:
            case TextDelta():
                self.text.append(event.text)
                self.logprobs.extend(event.logprobs or ())
                self.beside += [event.beside] if event.beside else []
            case ToolCallDelta():
                empty = {"id": "", "type": "function", "function": {"name": ""}}
                call = self.tool_calls.setdefault(event.index, empty)
                call["id"] = event.id or call["id"]
                call["function"]["name"] = event.name or call["function"]["name"]
                self.arguments.setdefault(event.index, []).append(event.arguments)
                if event.beside:
                    self.calls_beside.setdefault(event.index, []).append(event.beside)
            case Finish():
                self.finish_reason = event.reason

    def call(self, number: int) -> dict[str, Any]:
        """A tool call as far as it has come."""
        call, beside = self.tool_calls[number], _joined(self.calls_beside.get(number, [{}]))
        if "custom" in beside:
            return {"id": call["id"], "type": "custom", **beside}
        return {**call, "function": {**call["function"], "arguments": "".join(self.arguments[number])}, **beside}

    def rendered(self, index: int) -> dict[str, Any]:
        calls = [self.call(number) for number in sorted(self.tool_calls)]
        beside = _joined(self.beside or [{}])
        called = bool(calls) or "function_call" in beside
        wordless = None if called or "refusal" in beside else ""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.text) or wordless}
        if calls:
            message["tool_calls"] = calls
        message |= beside
        logprobs = {"content": self.logprobs} if self.logprobs else None
        reason = _reason(self.finish_reason, legacy=called and not calls)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}


def collected(events: Sequence[Event]) -> list[tuple[int, Choice]]:
    """The choices of an answer, each with its number."""
    choices: dict[int, Choice] = {}
    for event in events:
        if isinstance(event, TextDelta | ToolCallDelta | Finish):
            choices.setdefault(event.choice, Choice()).add(event)
    return sorted(choices.items())


class Completion:
    """One answer on its way to the client; see `Shape`."""

    content_type = "text/event-stream"

    def __init__(self, exchange: Exchange, include_usage: bool = False) -> None:
        """`include_usage`: end a stream with a chunk that has the usage."""
        self._exchange = exchange
        self._include_usage = include_usage
        self._begun = {0}
        """Choices whose role was said."""
        self._legacy: set[int] = set()
        """Choices that call a function as OpenAI had it before tools."""

    def whole(self, events: Sequence[Event]) -> dict[str, Any]:
        body = self._envelope("chat.completion")
        body["choices"] = [choice.rendered(index) for index, choice in collected(events)]
        body["usage"] = usage_object(self._exchange.usage)
        return body

    def start(self) -> bytes:
        first: dict[str, Any] = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return sse({**self._envelope(CHUNK), "choices": [first]})

    def event(self, event: Event) -> bytes:
        match event:
            case TextDelta():
                logprobs = {"content": event.logprobs} if event.logprobs else None
                beside = event.beside or {}
                text = {"content": event.text} if event.text or not beside else {}
                if "function_call" in beside:
                    self._legacy.add(event.choice)
                return self._chunk(event.choice, {**text, **beside}, logprobs=logprobs)
            case ToolCallDelta():
                return self._chunk(event.choice, {"tool_calls": [_tool_call_delta(event)]})
            case Finish():
                return self._chunk(event.choice, {}, finish_reason=_reason(event.reason, event.choice in self._legacy))
            case Progress(stage="queued"):
                return f": waiting, {event.position} ahead\n\n".encode()
            case Progress(stage="loading"):
                return f": loading the model, {event.fraction or 0:.0%}\n\n".encode()
            case Progress():
                return b": working\n\n"
            case _:
                return b""

    def end(self) -> bytes:
        done = b"data: [DONE]\n\n"
        if not self._include_usage:
            return done
        return sse({**self._envelope(CHUNK), "choices": [], "usage": usage_object(self._exchange.usage)}) + done

    def error(self, error: ApiError) -> bytes:
        return sse(error_object(error))

    def _chunk(self, choice: int, delta: dict[str, Any], **more: Any) -> bytes:
        if choice not in self._begun:
            self._begun.add(choice)
            delta = {"role": "assistant", **delta}
        choices = [{"index": choice, "delta": delta, "finish_reason": None, **more}]
        return sse({**self._envelope(CHUNK), "choices": choices})

    def _envelope(self, kind: str) -> dict[str, Any]:
        exchange = self._exchange
        body: dict[str, Any] = {
            "id": f"chatcmpl-{exchange.id}",
            "object": kind,
            "created": exchange.created,
            "model": exchange.model,
        }
        if explanation := exchange.explanation:
            body["x_upcall"] = explanation
        return body


CHUNK = "chat.completion.chunk"


def _tool_call_delta(event: ToolCallDelta) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": event.arguments}
    if event.name is not None:
        function["name"] = event.name
    beside = event.beside or {}
    kind, called = ("custom", {}) if "custom" in beside else ("function", {"function": function})
    first = {} if event.id is None else {"id": event.id, "type": kind}
    return {"index": event.index, **first, **called, **beside}


def _reason(reason: str | None, legacy: bool) -> str | None:
    return "function_call" if legacy and reason == "tool_calls" else reason


def _joined(pieces: Sequence[Any]) -> Any:
    """One value from the pieces that the deltas of a stream have of it."""
    if all(isinstance(piece, str) for piece in pieces):
        return "".join(pieces)
    if all(isinstance(piece, list) for piece in pieces):
        return [item for piece in pieces for item in piece]
    if not all(isinstance(piece, Mapping) for piece in pieces):
        return pieces[-1]
    parts: dict[str, list[Any]] = {}
    for piece in pieces:
        for name, value in piece.items():
            parts.setdefault(name, []).append(value)
    # An id may come with every piece.
    return {name: values[-1] if name == "id" else _joined(values) for name, values in parts.items()}


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def sse(data: dict[str, Any]) -> bytes:
    """A server-sent event without a name."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
