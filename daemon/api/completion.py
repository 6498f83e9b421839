"""An answer in OpenAI's shape: a `chat.completion`, or `chat.completion.chunk`s as server-sent events."""

import json
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from daemon.api.errors import ApiError
from daemon.api.explain import explanation, headers, new_request_id
from daemon.api.wish import Asked
from daemon.dispatcher import Bill, Chosen
from models.interface import Event, Failure, Finish, Progress, TextDelta, ToolCallDelta, Usage

log = logging.getLogger(__name__)

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
    finish_reason: str | None = None

    def add(self, event: TextDelta | ToolCallDelta | Finish) -> None:
        match event:
            case TextDelta():
                self.text.append(event.text)
                self.logprobs.extend(event.logprobs or ())
            case ToolCallDelta():
                empty = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
                call = self.tool_calls.setdefault(event.index, empty)
                call["id"] = event.id or call["id"]
                call["function"]["name"] = event.name or call["function"]["name"]
                call["function"]["arguments"] += event.arguments
            case Finish():
                self.finish_reason = event.reason

    def rendered(self, index: int) -> dict[str, Any]:
        calls = [call for _, call in sorted(self.tool_calls.items())]
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.text) or (None if calls else "")}
        if calls:
            message["tool_calls"] = calls
        logprobs = {"content": self.logprobs} if self.logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": self.finish_reason}


class Completion:
    """One answer on its way to the client. Exactly one of `whole` and `stream` is called, then `log`."""

    def __init__(self, ask: Asked) -> None:
        self._ask = ask
        self._id = new_request_id()
        self._created = int(time.time())
        self._start = time.perf_counter()
        self._first_word: float | None = None
        self._chosen: Chosen | None = None
        self._usage: Usage | None = None
        self._bill: Bill | None = None
        self._outcome = "cancelled"

    async def whole(self, items: AsyncGenerator[Chosen | Bill | Event, None]) -> web.Response:
        """Raises `ApiError` where the models failed."""
        choices: dict[int, Choice] = {}
        async for item in items:
            self._note(item)
            match item:
                case TextDelta() | ToolCallDelta() | Finish():
                    choices.setdefault(item.choice, Choice()).add(item)
                case Failure():
                    raise ApiError.of(item, headers=self._headers())
        body = self._envelope("chat.completion")
        body["choices"] = [choice.rendered(index) for index, choice in sorted(choices.items())]
        body["usage"] = self._usage_object()
        return web.json_response(body, headers=self._headers())

    async def stream(
        self, request: web.Request, items: AsyncGenerator[Chosen | Bill | Event, None], include_usage: bool
    ) -> web.StreamResponse:
        """Raises `ApiError` where the models failed before the first event; afterwards the error is an event."""
        response: web.StreamResponse | None = None
        async for item in items:
            self._note(item)
            if isinstance(item, Chosen | Bill):
                continue
            if response is None:
                if isinstance(item, Failure):
                    raise ApiError.of(item, headers=self._headers())
                response = await self._open(request)
            for data in self._events(item):
                await response.write(data)
        if response is None:
            response = await self._open(request)
        if self._outcome == "ok":
            if include_usage:
                await response.write(_event({**self._envelope(CHUNK), "choices": [], "usage": self._usage_object()}))
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def log(self) -> None:
        """One line about the request, without a word of it."""
        if self._chosen is None:
            return
        decision, usage = self._chosen.decision, self._usage or Usage(0, 0)
        log.info(
            "request=%(request)s outcome=%(outcome)s route=%(route)s reason=%(reason)s score=%(score)s model=%(model)s "
            "prompt_tokens=%(prompt_tokens)d completion_tokens=%(completion_tokens)d "
            "first_ms=%(first_ms)d total_ms=%(total_ms)d",
            {
                "request": self._id,
                "outcome": self._outcome,
                "route": decision.route,
                "reason": decision.reason.code,
                "score": decision.score,
                "model": self._chosen.model,
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "first_ms": round(1000 * (self._first_word or 0)),
                "total_ms": round(1000 * (time.perf_counter() - self._start)),
            },
        )

    def _note(self, item: Chosen | Bill | Event) -> None:
        match item:
            case Chosen():
                self._chosen = item
            case TextDelta() | ToolCallDelta():
                self._first_word = self._first_word or time.perf_counter() - self._start
            case Usage():
                self._usage = item
            case Bill():
                self._bill = item
            case Finish():
                self._outcome = "ok"
            case Failure():
                self._outcome = item.code

    async def _open(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=self._headers())
        response.content_type = "text/event-stream"
        response.headers["Cache-Control"] = "no-store"
        await response.prepare(request)
        first: dict[str, Any] = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        await response.write(_event({**self._envelope(CHUNK), "choices": [first]}))
        return response

    def _events(self, event: Event) -> Sequence[bytes]:
        match event:
            case TextDelta():
                logprobs = {"content": event.logprobs} if event.logprobs else None
                return [self._chunk(event.choice, {"content": event.text}, logprobs=logprobs)]
            case ToolCallDelta():
                return [self._chunk(event.choice, {"tool_calls": [_tool_call_delta(event)]})]
            case Finish():
                return [self._chunk(event.choice, {}, finish_reason=event.reason)]
            case Progress(stage="queued"):
                return [f": waiting, {event.position} ahead\n\n".encode()]
            case Progress():
                return [f": loading the model, {event.fraction or 0:.0%}\n\n".encode()]
            case Failure():
                return [_event(error_object(ApiError.of(event)))]
            case _:
                return []

    def _chunk(self, choice: int, delta: dict[str, Any], **more: Any) -> bytes:
        choices = [{"index": choice, "delta": delta, "finish_reason": None, **more}]
        return _event({**self._envelope(CHUNK), "choices": choices})

    def _envelope(self, kind: str) -> dict[str, Any]:
        assert self._chosen is not None
        body: dict[str, Any] = {
            "id": f"chatcmpl-{self._id}",
            "object": kind,
            "created": self._created,
            "model": self._chosen.model,
        }
        if self._ask.explain:
            body["x_upcall"] = explanation(self._chosen, self._id, self._bill)
        return body

    def _headers(self) -> dict[str, str]:
        assert self._chosen is not None
        return headers(self._chosen, self._id, self._ask.warning, self._bill)

    def _usage_object(self) -> dict[str, Any]:
        usage = self._usage or Usage(0, 0)
        return {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        }


CHUNK = "chat.completion.chunk"


def _tool_call_delta(event: ToolCallDelta) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": event.arguments}
    if event.name is not None:
        function["name"] = event.name
    first = {} if event.id is None else {"id": event.id, "type": "function"}
    return {"index": event.index, **first, "function": function}


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
