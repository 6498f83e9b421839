"""OpenAI's legacy `/v1/completions`: a prompt and no conversation, answered by the chat model all the same."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from aiohttp import web
from pydantic import Field, field_validator

from daemon.api.answering import answer
from daemon.api.completion import collected, error_object, sse, usage_object
from daemon.api.errors import ApiError
from daemon.api.exchange import Exchange
from daemon.api.openai import ChatBody, StreamOptions
from daemon.api.reading import Loose, check, read
from daemon.api.wish import asked
from daemon.config import Routing
from daemon.dispatcher import Dispatcher
from models.interface import ChatRequest, Event, Finish, TextDelta

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for this endpoint alone."""
MOST = 128
"""Prompts in one request: they are answered one after the other, and all answers wait for the last."""


class CompletionBody(Loose):
    """`POST /v1/completions`; all else is as in `ChatBody`."""

    model: str = Field(default="auto", max_length=256)
    prompt: str | list[str]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=5)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if isinstance(value, list) and any(isinstance(item, int | list) for item in value):
            raise ValueError("token numbers mean different words to every model: send the prompt as a string")
        if isinstance(value, list) and not 0 < len(value) <= MOST:
            raise ValueError(f"send 1 to {MOST} prompts")
        return value

    @field_validator("echo", "suffix")
    @classmethod
    def _not_here(cls, value: Any) -> Any:
        if value:
            raise ValueError("a chat model answers the prompt, and can neither repeat nor fill in; leave this out")
        return value

    @field_validator("best_of")
    @classmethod
    def _not_more(cls, value: int | None) -> int | None:
        if value is not None and value > 1:
            raise ValueError("every answer that is made is returned; ask for n answers instead")
        return value

    def requests(self, raw: Mapping[str, Any]) -> list[ChatRequest]:
        """One chat for each prompt. Raises `ApiError`."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        own = {"prompt", "stream", "stream_options", "logprobs", "echo", "suffix", "best_of"}
        rest = {name: value for name, value in raw.items() if name not in own and value is not None}
        if self.logprobs is not None:
            rest |= {"logprobs": True, "top_logprobs": self.logprobs}
        return [self._request(prompt, {"max_tokens": DEFAULT_MAX_TOKENS, **rest}) for prompt in prompts]

    def _request(self, prompt: str, rest: Mapping[str, Any]) -> ChatRequest:
        chat = {**rest, "messages": [{"role": "user", "content": prompt}]}
        return replace(check(ChatBody, chat).request(chat), beside=False)


class TextCompletions:
    def __init__(self, dispatcher: Dispatcher, routing: Routing) -> None:
        self._dispatcher = dispatcher
        self._routing = routing

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/v1/completions", self.create)]

    async def create(self, request: web.Request) -> web.StreamResponse:
        body, raw, wishes = await read(request, CompletionBody)
        ask = asked(body.model, request.headers, wishes, self._routing)
        chats = body.requests(raw)
        include_usage = bool(body.stream_options and body.stream_options.include_usage)

        def shape(exchange: Exchange) -> TextCompletion:
            return TextCompletion(exchange, include_usage)

        if body.stream and len(chats) > 1:
            raise ApiError(400, "prompt: only one prompt can be streamed; send a request for each.", param="prompt")
        answers = [
            await answer(request, self._dispatcher, chat, ask, "openai", shape, bool(body.stream)) for chat in chats
        ]
        return answers[0] if len(answers) == 1 else _together(answers)


class TextCompletion:
    """One answer on its way to the client; see `Shape`."""

    content_type = "text/event-stream"

    def __init__(self, exchange: Exchange, include_usage: bool = False) -> None:
        self._exchange = exchange
        self._include_usage = include_usage
        self._ends = Counter[int]()
        """Of the text of each choice that has been sent, in characters."""

    def whole(self, events: Sequence[Event]) -> dict[str, Any]:
        rendered = [
            _choice(index, "".join(choice.text), choice.logprobs, choice.finish_reason)
            for index, choice in collected(events)
        ]
        return {**self._envelope(), "choices": rendered, "usage": usage_object(self._exchange.usage)}

    def start(self) -> bytes:
        return b""

    def event(self, event: Event) -> bytes:
        match event:
            case TextDelta():
                start = self._ends[event.choice]
                self._ends[event.choice] += len(event.text)
                return self._chunk(_choice(event.choice, event.text, event.logprobs or (), None, start))
            case Finish():
                return self._chunk(_choice(event.choice, "", (), event.reason))
        return b""

    def end(self) -> bytes:
        done = b"data: [DONE]\n\n"
        if not self._include_usage:
            return done
        return sse({**self._envelope(), "choices": [], "usage": usage_object(self._exchange.usage)}) + done

    def error(self, error: ApiError) -> bytes:
        return sse(error_object(error))

    def _chunk(self, choice: Mapping[str, Any]) -> bytes:
        return sse({**self._envelope(), "choices": [choice]})

    def _envelope(self) -> dict[str, Any]:
        exchange = self._exchange
        body = {"id": f"cmpl-{exchange.id}", "object": "text_completion", "created": exchange.created}
        explained = {"x_upcall": exchange.explanation} if exchange.explanation else {}
        return {**body, "model": exchange.model, **explained}


def _choice(
    index: int, text: str, entries: Sequence[Mapping[str, Any]], reason: str | None, start: int = 0
) -> dict[str, Any]:
    return {"text": text, "index": index, "logprobs": _logprobs(entries, start), "finish_reason": reason}


def _logprobs(entries: Sequence[Mapping[str, Any]], start: int) -> dict[str, Any] | None:
    if not entries:
        return None
    offsets, end = [], start
    for entry in entries:
        offsets.append(end)
        end += len(entry["token"])
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [{top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in entries],
        "text_offset": offsets,
    }


def _together(answers: Sequence[web.StreamResponse]) -> web.Response:
    """The answers to several prompts as one, their choices numbered through."""
    bodies = [json.loads(answer.text or "{}") for answer in answers if isinstance(answer, web.Response)]
    choices = [choice for body in bodies for choice in body["choices"]]
    for index, choice in enumerate(choices):
        choice["index"] = index
    counted = ("prompt_tokens", "completion_tokens", "total_tokens")
    usage = {name: sum(body["usage"][name] for body in bodies) for name in counted}
    headers = {name: value for name, value in answers[-1].headers.items() if name.lower().startswith("x-upcall-")}
    return web.json_response({**bodies[-1], "choices": choices, "usage": usage}, headers=headers)
