"""An answer in Anthropic's shape: a `message`, or its events (https://docs.anthropic.com/en/api/messages-streaming)."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import from_json

from daemon.api.errors import ApiError
from daemon.api.exchange import Exchange
from models.interface import Event, FailureCode, Finish, Native, Progress, TextDelta, ToolCallDelta, Usage

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


def status(error: ApiError) -> int:
    """The status code that Anthropic gives this: its clients know 529, and wait."""
    return 529 if error.code == FailureCode.BUSY else error.status


def error_object(error: ApiError, request_id: str) -> dict[str, Any]:
    """Anthropic's error object, as the body of a response or the data of an event."""
    default = "invalid_request_error" if error.status < 500 else "api_error"
    kind = ERROR_TYPES.get(status(error), default)
    return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}


class MessageShape:
    """One answer on its way to the client; see `Shape`."""

    content_type = "text/event-stream"

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._started = False
        self._blocks = 0
        self._open: object = None
        """What the open content block is: `text`, the number of a tool call, or something of its own."""
        self._finish: Mapping[str, Any] = {"stop_reason": "end_turn", "stop_sequence": None}
        self._usage: Mapping[str, Any] | None = None
        self._beside: Mapping[str, Any] = {}
        """What else Anthropic says at the end, such as what it took out of the context."""

    def whole(self, events: Sequence[Event]) -> dict[str, Any]:
        pieces = [piece for event in events for piece in self._pieces(event)]
        end = {**self._finish, **self._beside, "usage": self._told_usage()}
        return {**self._envelope(), "content": _joined(pieces), **end}

    def start(self) -> bytes:
        self._started = True
        usage = _usage_object(self._exchange.prompt)
        message = {**self._envelope(), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        return _event({"type": "message_start", "message": message}) + PING

    def event(self, event: Event) -> bytes:
        if isinstance(event, Progress):
            # The first event is to be the start.
            return PING if self._started else b": waiting\n\n"
        return b"".join(map(_event, self._pieces(event)))

    def end(self) -> bytes:
        told = {"delta": dict(self._finish), "usage": self._told_usage()}
        last = {"type": "message_delta", **self._beside, **told}
        return b"".join(map(_event, (*self._close(), last, {"type": "message_stop"})))

    def error(self, error: ApiError) -> bytes:
        return _event(error_object(error, self._exchange.id))

    def _pieces(self, event: Event) -> Iterator[dict[str, Any]]:
        """The stream's events for `event`; the content of a whole answer is put together from them, too."""
        match event:
            case TextDelta(text=text) if text:
                yield from self._turn_to("text", {"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": text})
            case ToolCallDelta():
                call: dict[str, Any] = {"type": "tool_use", "id": event.id, "name": event.name, "input": {}}
                yield from self._turn_to(event.index, {**call, **(event.beside or {})})
                yield self._delta({"type": "input_json_delta", "partial_json": event.arguments})
            case Native():
                yield from self._native(event.event)
            case Finish():
                if self._usage is None:
                    reason = "stop_sequence" if event.stop is not None else STOP_REASONS[event.reason]
                    self._finish = {"stop_reason": reason, "stop_sequence": event.stop}

    def _native(self, event: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        match event["type"]:
            case "content_block_start":
                yield from self._close()
                block = event["content_block"]
                yield from self._turn_to("text" if block["type"] == "text" else object(), block)
            case "content_block_delta":
                yield self._delta(event["delta"])
            case "message_delta":
                self._finish, self._usage = event["delta"], event["usage"]
                self._beside = {name: value for name, value in event.items() if name not in ("type", "delta", "usage")}

    def _turn_to(self, what: object, block: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        if self._open != what:
            yield from self._close()
            self._open = what
            yield {"type": "content_block_start", "index": self._blocks, "content_block": dict(block)}

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._open is not None:
            yield {"type": "content_block_stop", "index": self._blocks}
            self._open = None
            self._blocks += 1

    def _delta(self, delta: Mapping[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._blocks, "delta": dict(delta)}

    def _envelope(self) -> dict[str, Any]:
        exchange = self._exchange
        body = {"id": f"msg_{exchange.id}", "type": "message", "role": "assistant", "model": exchange.model}
        return body | ({"x_upcall": exchange.explanation} if exchange.explanation else {})

    def _told_usage(self) -> dict[str, Any]:
        return {**_usage_object(self._exchange.usage), **(self._usage or {})}


def _usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _joined(pieces: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    inputs: dict[int, list[str]] = {}
    texts: dict[tuple[int, str], list[str]] = {}
    for piece in pieces:
        index = piece["index"]
        match piece:
            case {"type": "content_block_start", "content_block": block}:
                blocks.append(dict(block))
            case {"delta": {"type": "input_json_delta", "partial_json": more}}:
                inputs.setdefault(index, []).append(more)
            case {"delta": {"type": "citations_delta", "citation": citation}}:
                blocks[index]["citations"] = [*(blocks[index].get("citations") or ()), citation]
            case {"delta": {"type": _, **fields}}:
                for name, more in fields.items():
                    if isinstance(more, str):
                        texts.setdefault((index, str(name)), []).append(more)
                    else:
                        blocks[index][name] = more
    for (index, name), parts in texts.items():
        blocks[index][name] = "".join([blocks[index].get(name) or "", *parts])
    for index, parts in inputs.items():
        blocks[index]["input"] = _arguments("".join(parts))
    return blocks


def _arguments(text: str) -> Any:
    try:
        # An answer that its limit cut off may end inside the arguments.
        return from_json(text or "{}", allow_partial="trailing-strings")
    except ValueError:
        return {}


def _event(data: Mapping[str, Any]) -> bytes:
    body = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"event: {data['type']}\ndata: {body}\n\n".encode()


PING = _event({"type": "ping"})
