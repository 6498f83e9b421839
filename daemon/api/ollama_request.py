"""Requests in Ollama's shape, and the same in canonical form."""

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from daemon.api.embeddings import MOST
from daemon.api.reading import Loose
from daemon.routing.appraiser import UNKNOWN_CALL_PREFIX
from models.interface import ChatRequest

MEDIA_TYPES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
    b"BM": "image/bmp",
}
"""By a file's first bytes; Ollama's clients send no type."""


class Nullable(Loose):
    """To Ollama null is what is not said."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {name: said for name, said in value.items() if said is not None} if isinstance(value, dict) else value


class Options(Loose):
    """Sampling. Options beyond these tune Ollama's own engine, and do nothing here."""

    num_predict: int | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=2**31 - 1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: str | list[str] | None = None


class FunctionCall(Nullable):
    name: str
    arguments: dict[str, Any] = Field(default={})


class ToolCall(Loose):
    id: str | None = None
    function: FunctionCall


class Message(Nullable):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str = ""
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    tool_name: str | None = None

    _check_images = field_validator("images")(lambda images: _base64(images))


class Function(Nullable):
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Nullable):
    type: Literal["function"] = "function"
    function: Function


class Body(Nullable):
    model: str = Field(default="auto", max_length=256)
    stream: bool | None = None
    """Unless it is false."""
    options: Options | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None

    def _canonical(self, messages: Sequence[Mapping[str, Any]], tools: Iterable[Tool] = ()) -> ChatRequest:
        options = self.options or Options()
        return ChatRequest(
            messages=messages,
            # Ollama's -1 is "without end" and -2 "until the context is full".
            max_tokens=options.num_predict if options.num_predict and options.num_predict > 0 else None,
            temperature=options.temperature,
            top_p=options.top_p,
            min_p=options.min_p,
            top_k=options.top_k,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            seed=options.seed,
            stop=[options.stop] if isinstance(options.stop, str) else options.stop or (),
            tools=[tool.model_dump(exclude_unset=True) | {"type": "function"} for tool in tools],
            response_format=_response_format(self.format),
        )


class ChatBody(Body):
    """`POST /api/chat`."""

    messages: list[Message] = Field(default=[])
    tools: list[Tool] | None = None

    def request(self) -> ChatRequest:
        return self._canonical(list(_messages(self.messages)), self.tools or ())


class GenerateBody(Body):
    """`POST /api/generate`."""

    prompt: str = ""
    system: str = ""
    images: list[str] | None = None
    suffix: str = ""
    template: str = ""
    raw: bool = False
    context: list[int] | None = None

    _check_images = field_validator("images")(lambda images: _base64(images))

    @field_validator("suffix", "template", "raw", "context")
    @classmethod
    def _not_here(cls, value: Any) -> Any:
        if value:
            raise ValueError("upcall answers prompts with a chat model and its own template; use /api/chat")
        return value

    def request(self) -> ChatRequest:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self._canonical([*system, {"role": "user", "content": _content(self.prompt, self.images)}])


class EmbedBody(Nullable):
    """`POST /api/embed`."""

    model: str = Field(default="auto", max_length=256)
    input: str | list[str]

    @field_validator("input", mode="before")
    @classmethod
    def _is_not_too_much(cls, value: Any) -> Any:
        if isinstance(value, list) and len(value) > MOST:
            raise ValueError(f"send at most {MOST} texts")
        return value


class EmbeddingsBody(Nullable):
    """`POST /api/embeddings`, which `/api/embed` has replaced."""

    model: str = Field(default="auto", max_length=256)
    prompt: str


class ShowBody(Loose):
    """`POST /api/show`; older clients say `name`."""

    model: str | None = None
    name: str | None = None


def _messages(messages: Iterable[Message]) -> Iterable[dict[str, Any]]:
    open_calls: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        said: dict[str, Any] = {"role": message.role, "content": _content(message.content, message.images)}
        if message.tool_calls:
            ids = [call.id or f"{UNKNOWN_CALL_PREFIX}{number}_{i}" for i, call in enumerate(message.tool_calls)]
            said["tool_calls"] = [_call(id, call) for id, call in zip(ids, message.tool_calls, strict=True)]
            open_calls = list(said["tool_calls"])
        if message.role == "tool":
            answered = _answered(message, open_calls)
            following = answered["id"] if answered else f"{UNKNOWN_CALL_PREFIX}{number}"
            open_calls = [call for call in open_calls if call is not answered]
            said["tool_call_id"] = message.tool_call_id or following
        yield said


def _answered(result: Message, calls: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Which of the open `calls` a result is of: at most it names the tool, and else the calls have their order."""
    named = [call for call in calls if call["function"]["name"] == result.tool_name]
    return next(iter(named or calls), None)


def _call(id: str, call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call.function.arguments, ensure_ascii=False)
    return {"id": id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _content(text: str, images: Iterable[str] | None) -> str | list[dict[str, Any]]:
    urls = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images or ()]
    return [{"type": "text", "text": text}, *urls] if urls else text


def _data_url(image: str) -> str:
    return f"data:{_media_type(image)};base64,{image}"


def _media_type(image: str) -> str | None:
    start = base64.b64decode(image[:16])
    return next((media for magic, media in MEDIA_TYPES.items() if start.startswith(magic)), None)


def _base64(images: list[str] | None) -> list[str] | None:
    for image in images or ():
        try:
            base64.b64decode(image, validate=True)
        except binascii.Error:
            raise ValueError("an image must be in base64, without a data URL around it") from None
        if _media_type(image) is None:
            raise ValueError("an image must be a PNG, JPEG, GIF, WebP or BMP file")
    return images


def _response_format(format: str | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if isinstance(format, Mapping):
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": format}}
    return {"type": "json_object"} if format == "json" else None
