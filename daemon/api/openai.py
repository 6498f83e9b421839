"""OpenAI's wire format (https://platform.openai.com/docs/api-reference/chat): requests in."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from aiohttp import web
from pydantic import Field, FiniteFloat, model_validator

from daemon.api.answering import answer, undecided
from daemon.api.completion import Completion
from daemon.api.explain import explanation, headers, new_request_id
from daemon.api.reading import Loose, read
from daemon.api.wish import Asked, asked
from daemon.config import Routing
from daemon.dispatcher import Dispatcher, SensitivePromptError
from daemon.routing.scorer import UnknownRouterError
from models.interface import ChatRequest


class Part(Loose):
    type: str
    text: str | None = None

    @model_validator(mode="after")
    def _text_part_has_text(self) -> "Part":
        if self.type == "text" and self.text is None:
            raise ValueError("a part of type text needs a text")
        return self


class FunctionCall(Loose):
    name: str
    arguments: str


class ToolCall(Loose):
    id: str
    type: str = "function"
    function: FunctionCall | None = None

    @model_validator(mode="after")
    def _function_call_has_function(self) -> "ToolCall":
        if self.type == "function" and self.function is None:
            raise ValueError("a call of type function needs a function")
        return self


class Function(Loose):
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Loose):
    """Tools of other types than function are the cloud's own, and pass as they are."""

    type: str
    function: Function | None = None

    @model_validator(mode="after")
    def _function_tool_has_function(self) -> "Tool":
        if self.type == "function" and self.function is None:
            raise ValueError("a tool of type function needs a function")
        return self


class Message(Loose):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _has_content(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of role {self.role} needs content")
        return self


class StreamOptions(Loose):
    include_usage: bool = False


class ChatBody(Loose):
    """`POST /v1/chat/completions`; fields beyond these go to the cloud as they are."""

    model: str = Field(default="auto", max_length=256)
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=2**31 - 1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: str | list[str] | None = None
    n: int | None = Field(default=None, ge=1, le=16)
    logit_bias: dict[str, FiniteFloat] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None

    def request(self, raw: Mapping[str, Any]) -> ChatRequest:
        """The request in canonical form; messages, tools and unknown fields keep the exact shape they came in."""
        options = {"stream_options": raw["stream_options"]} if self.stream_options else {}
        return ChatRequest(
            messages=raw["messages"],
            max_tokens=self.max_completion_tokens or self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            min_p=self.min_p,
            top_k=self.top_k,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            stop=[self.stop] if isinstance(self.stop, str) else self.stop or (),
            n=self.n or 1,
            logit_bias=self.logit_bias,
            logprobs=bool(self.logprobs),
            top_logprobs=self.top_logprobs or 0,
            tools=raw.get("tools") or (),
            tool_choice=self.tool_choice,
            response_format=self.response_format,
            extra={**(self.model_extra or {}), **options},
            beside=True,
        )


class OpenAI:
    def __init__(self, dispatcher: Dispatcher, routing: Routing) -> None:
        self._dispatcher = dispatcher
        self._routing = routing

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/chat/completions", self.chat_completions),
            web.post("/v1/route", self.route),
        ]

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        body, chat, ask = await self._read(request)
        include_usage = bool(body.stream_options and body.stream_options.include_usage)
        shape = partial(Completion, include_usage=include_usage)
        return await answer(request, self._dispatcher, chat, ask, "openai", shape, bool(body.stream))

    async def route(self, request: web.Request) -> web.Response:
        """A dry run: the decision that this chat completion would get, without an answer."""
        _, chat, ask = await self._read(request)
        try:
            chosen = await self._dispatcher.decide(chat, ask.wish)
        except (UnknownRouterError, SensitivePromptError) as error:
            raise undecided(error) from None
        id = new_request_id()
        return web.json_response(explanation(chosen, id), headers=headers(chosen, id, ask.warning))

    async def _read(self, request: web.Request) -> tuple[ChatBody, ChatRequest, Asked]:
        body, raw, wishes = await read(request, ChatBody)
        return body, body.request(raw), asked(body.model, request.headers, wishes, self._routing)
