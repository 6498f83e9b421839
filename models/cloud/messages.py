"""Anthropic's format spoken with Anthropic: the request as its client sent it, or translated; the answer's events as
they come, pings included, which Anthropic's SDK keeps to itself."""

import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Final

from anthropic import AsyncAnthropic

from models.cloud.completions import own_address, own_headers
from models.cloud.http import ALIVE, Alive, AnsweredError, Http
from models.cloud.settings import CloudSettings
from models.interface import Event, Finish, FinishReason, Native, PromptRead, TextDelta, ToolCallDelta, Usage, Verbatim

_FINISH: Final[dict[str, FinishReason]] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_OF_A_CALL: Final = ("type", "id", "name", "input")


def message_body(settings: CloudSettings, request: Verbatim) -> dict[str, Any]:
    """What is sent for `request`."""
    body = {name: value for name, value in request.body.items() if name not in settings.unsupported}
    if settings.defaults.get("reasoning_effort") == "none":
        body.setdefault("thinking", {"type": "disabled"})
    return body | {"model": settings.model, "stream": True}


async def messages(
    http: Http, client: AsyncAnthropic, body: Mapping[str, Any], headers: Mapping[str, str]
) -> AsyncGenerator[Mapping[str, Any] | Alive, None]:
    """Ask as `client` would, and give the events of the answer. Raises as `Http` does, and JSONDecodeError."""
    headers = {**own_headers(client), "x-api-key": client.api_key or "", **headers}
    stream = await http.post(f"{own_address(client)}/v1/messages", headers, body)

    async def events() -> AsyncGenerator[Mapping[str, Any] | Alive, None]:
        async with aclosing(stream):
            async for data in stream:
                if isinstance(data, Alive):
                    yield ALIVE
                    continue
                event = json.loads(data)
                if event["type"] == "error":
                    raise AnsweredError(0, event, {})
                yield ALIVE if event["type"] == "ping" else event

    return events()


class MessageAnswer:
    """Reads one answer, event by event."""

    def __init__(self, *, verbatim: bool) -> None:
        """`verbatim`: to a request of that kind, whose client knows what has no name in canonical form, too."""
        self._verbatim = verbatim
        self._calls: dict[int, int] = {}
        self._text_blocks = 0
        self._silent: set[int] = set()
        """Calls that have streamed no arguments yet."""
        self._said: dict[str, Any] = {}
        self.complete = False
        """It said how it ended. A stream that ends before is cut, however cleanly."""

    def read(self, event: Mapping[str, Any]) -> Iterator[Event]:
        """The events of one of Anthropic's; what has no name in canonical form comes as `Native`, if at all."""
        return (read for read in self._read(event) if self._verbatim or not isinstance(read, Native))

    def _read(self, event: Mapping[str, Any]) -> Iterator[Event]:
        match event["type"]:
            case "message_start":
                self._said = dict(event["message"].get("usage") or {})
                if usage := self.usage:
                    yield PromptRead(usage.prompt_tokens, usage.cached_tokens)
            case "content_block_start":
                yield from self._begin(event["index"], event["content_block"])
            case "content_block_delta":
                yield from self._go_on(event["index"], event["delta"])
            case "content_block_stop" if event["index"] in self._silent:
                yield ToolCallDelta(self._calls[event["index"]], "{}")
            case "message_delta":
                told, delta = event.get("usage") or {}, event["delta"]
                self._said |= {name: value for name, value in told.items() if value is not None}
                if not self.complete and (reason := delta.get("stop_reason")) is not None:
                    self.complete = True
                    yield Native({**event, "usage": self._said})
                    yield Finish(_FINISH.get(reason, "stop"), stop=delta.get("stop_sequence"))

    @property
    def usage(self) -> Usage | None:
        """What Anthropic says it counted, the cache's tokens with the prompt's as in OpenAI's usage."""
        if not self._said:
            return None
        read, written = (_count(self._said.get(f"cache_{what}_input_tokens")) for what in ("read", "creation"))
        long = _count((self._said.get("cache_creation") or {}).get("ephemeral_1h_input_tokens"))
        prompt = _count(self._said.get("input_tokens")) + read + written
        return Usage(prompt, _count(self._said.get("output_tokens")), read, max(written - long, 0), long)

    def _begin(self, index: int, block: Mapping[str, Any]) -> Iterator[Event]:
        if block["type"] == "text":
            self._text_blocks += 1
            if self._text_blocks > 1:
                # Citations divide an answer into many blocks of text.
                yield Native({"type": "content_block_start", "content_block": {"type": "text", "text": ""}})
            if block.get("text"):
                yield TextDelta(_text(block["text"]))
        elif block["type"] == "tool_use":
            self._calls[index] = len(self._calls)
            self._silent.add(index)
            beside = {name: value for name, value in block.items() if name not in _OF_A_CALL and self._verbatim}
            yield ToolCallDelta(self._calls[index], "", _text(block["id"]), _text(block["name"]), beside=beside or None)
        else:
            yield Native({"type": "content_block_start", "content_block": block})

    def _go_on(self, index: int, delta: Mapping[str, Any]) -> Iterator[Event]:
        if delta["type"] == "text_delta":
            yield TextDelta(_text(delta["text"]))
        elif delta["type"] == "input_json_delta" and index in self._calls:
            arguments = _text(delta["partial_json"])
            if arguments:
                self._silent.discard(index)
            yield ToolCallDelta(self._calls[index], arguments)
        else:
            yield Native({"type": "content_block_delta", "delta": delta})


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("what should be text is none")
    return value


def _count(value: object) -> int:
    """Less than none would lower what was spent."""
    return max(int(value), 0) if isinstance(value, int | float) else 0
