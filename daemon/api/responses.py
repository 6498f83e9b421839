"""OpenAI's `/v1/responses`: answers out, whole or as events (…/docs/api-reference/responses-streaming)."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from aiohttp import web

from daemon.api.answering import answer
from daemon.api.errors import ApiError
from daemon.api.exchange import Exchange
from daemon.api.reading import read
from daemon.api.responses_request import ResponsesBody
from daemon.api.responses_tools import FreeText, Toolbox
from daemon.api.wish import asked
from daemon.config import Routing
from daemon.dispatcher import Dispatcher
from models.interface import Event, Finish, Progress, TextDelta, ToolCallDelta

ECHOED = (
    "instructions", "max_output_tokens", "metadata", "parallel_tool_calls", "reasoning", "temperature", "text",
    "tool_choice", "tools", "top_p", "truncation", "user",
)  # fmt: skip
DEFAULTS: Mapping[str, Any] = {
    "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "truncation": "disabled",
}
GROWS = {
    "function_call": ("arguments", "response.function_call_arguments"),
    "custom_tool_call": ("input", "response.custom_tool_call_input"),
}
"""Calls, with the field that comes in pieces and the events that they come in."""
INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class Responses:
    def __init__(self, dispatcher: Dispatcher, routing: Routing) -> None:
        self._dispatcher = dispatcher
        self._routing = routing

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/v1/responses", self.create)]

    async def create(self, request: web.Request) -> web.StreamResponse:
        body, raw, wishes = await read(request, ResponsesBody)
        ask = asked(body.model, request.headers, wishes, self._routing)
        ask = replace(ask, warning="; ".join(filter(None, (ask.warning, body.warning))) or None)
        shape = partial(ResponseShape, said=raw, toolbox=body.toolbox)
        return await answer(request, self._dispatcher, body.request(), ask, "responses", shape, bool(body.stream))


class ResponseShape:
    """One answer on its way to the client; see `Shape`. `said` is the request, parts of which the answer repeats, and
    `toolbox` has its tools."""

    content_type = "text/event-stream"

    def __init__(self, exchange: Exchange, said: Mapping[str, Any], toolbox: Toolbox) -> None:
        self._exchange = exchange
        self._said = said
        self._toolbox = toolbox
        self._output: list[dict[str, Any]] = []
        self._open: object = None
        """What the last item of the output is, while it grows: `text`, or the number of a tool call."""
        self._pieces: list[str] = []
        """Of its text, arguments or input."""
        self._input: FreeText | None = None
        """Reads the input of a call whose tool takes text."""
        self._finish = "stop"
        self._sent = 0

    def whole(self, events: Sequence[Event]) -> dict[str, Any]:
        for event in events:
            list(self._events(event))
        list(self._close())
        return self._ended()

    def start(self) -> bytes:
        begun = self._response("in_progress")
        kinds = ("response.created", "response.in_progress")
        return b"".join(self._sse({"type": kind, "response": begun}) for kind in kinds)

    def event(self, event: Event) -> bytes:
        if isinstance(event, Progress):
            return b": waiting\n\n"
        return b"".join(map(self._sse, self._events(event)))

    def end(self) -> bytes:
        closing = b"".join(map(self._sse, self._close()))
        ended = self._ended()
        return closing + self._sse({"type": f"response.{ended['status']}", "response": ended})

    def error(self, error: ApiError) -> bytes:
        self._put_together()
        told = {"code": error.code or "server_error", "message": error.message}
        failed = {**self._response("failed"), "error": told, "output": self._output}
        event = self._sse({"type": "error", **told, "param": error.param})
        return event + self._sse({"type": "response.failed", "response": failed})

    def _events(self, event: Event) -> Iterator[dict[str, Any]]:
        match event:
            case TextDelta() if event.text or event.logprobs:
                yield from self._turn_to("text", self._message)
                self._pieces.append(event.text)
                self._output[-1]["content"][0]["logprobs"] += event.logprobs or ()
                yield self._of_text("response.output_text.delta", delta=event.text, logprobs=event.logprobs or [])
            case ToolCallDelta():
                yield from self._turn_to(event.index, partial(self._call, event))
                yield from self._grow(self._input.push(event.arguments) if self._input else event.arguments)
            case Finish():
                self._finish = event.reason

    def _turn_to(self, what: object, begin: Any) -> Iterator[dict[str, Any]]:
        if self._open != what:
            yield from self._close()
            self._open = what
            yield from begin()

    def _message(self) -> Iterator[dict[str, Any]]:
        id = f"msg_{self._exchange.id}_{len(self._output)}"
        item: dict[str, Any] = {"type": "message", "id": id, "status": "in_progress", "role": "assistant"}
        self._output.append({**item, "content": []})
        yield self._item_event("response.output_item.added")
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._output[-1]["content"].append(part)
        yield self._of_text("response.content_part.added", part=_copy(part))

    def _call(self, event: ToolCallDelta) -> Iterator[dict[str, Any]]:
        called = self._toolbox.called(event.name or "")
        self._input = FreeText() if called.type == "custom" else None
        kind, id = ("custom_tool_call", "ctc") if self._input else ("function_call", "fc")
        call: dict[str, Any] = {"type": kind, "id": f"{id}_{self._exchange.id}_{len(self._output)}"}
        call |= {"status": "in_progress", "call_id": event.id, "name": called.name}
        if called.namespace is not None:
            call["namespace"] = called.namespace
        self._output.append({**call, GROWS[kind][0]: ""})
        yield self._item_event("response.output_item.added")

    def _grow(self, piece: str) -> Iterator[dict[str, Any]]:
        """Of a call."""
        if piece:
            self._pieces.append(piece)
            yield self._of_item(f"{GROWS[self._output[-1]['type']][1]}.delta", delta=piece)

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._open is None:
            return
        item = self._output[-1]
        if self._input:
            yield from self._grow(self._input.rest())
            self._input = None
        self._put_together()
        item["status"] = "incomplete" if self._finish in INCOMPLETE else "completed"
        if self._open == "text":
            part = item["content"][0]
            yield self._of_text("response.output_text.done", text=part["text"], logprobs=part["logprobs"])
            yield self._of_text("response.content_part.done", part=_copy(part))
        else:
            field, events = GROWS[item["type"]]
            name = {"name": item["name"]} if item["type"] == "function_call" else {}
            yield self._of_item(f"{events}.done", **name, **{field: item[field]})
        yield self._item_event("response.output_item.done")
        self._open = None

    def _put_together(self) -> None:
        if self._open is not None:
            item = self._output[-1]
            holder, name = (item["content"][0], "text") if self._open == "text" else (item, GROWS[item["type"]][0])
            holder[name] += "".join(self._pieces)
            self._pieces = []

    def _item_event(self, kind: str) -> dict[str, Any]:
        return {"type": kind, "output_index": len(self._output) - 1, "item": _copy(self._output[-1])}

    def _of_item(self, kind: str, **more: Any) -> dict[str, Any]:
        return {"type": kind, "item_id": self._output[-1]["id"], "output_index": len(self._output) - 1, **more}

    def _of_text(self, kind: str, **more: Any) -> dict[str, Any]:
        return self._of_item(kind, content_index=0, **more)

    def _ended(self) -> dict[str, Any]:
        reason = INCOMPLETE.get(self._finish)
        usage = self._exchange.usage
        return {
            **self._response("incomplete" if reason else "completed"),
            "completed_at": int(time.time()),
            "incomplete_details": {"reason": reason} if reason else None,
            "output": self._output,
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            },
        }

    def _response(self, status: str) -> dict[str, Any]:
        exchange = self._exchange
        echoed = {name: self._said.get(name) for name in ECHOED}
        return {
            "id": f"resp_{exchange.id}",
            "object": "response",
            "created_at": exchange.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": exchange.model,
            "output": [],
            "previous_response_id": None,
            "store": False,
            "usage": None,
            **{name: DEFAULTS.get(name) if value is None else value for name, value in echoed.items()},
            **({"x_upcall": exchange.explanation} if exchange.explanation else {}),
        }

    def _sse(self, event: Mapping[str, Any]) -> bytes:
        numbered = {**event, "sequence_number": self._sent}
        self._sent += 1
        body = json.dumps(numbered, ensure_ascii=False, separators=(",", ":"))
        return f"event: {event['type']}\ndata: {body}\n\n".encode()


def _copy(value: Any) -> Any:
    """As it is now: what an event shows must not grow before it is sent."""
    return json.loads(json.dumps(value))
