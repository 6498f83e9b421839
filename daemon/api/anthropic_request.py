"""A request in Anthropic's shape (https://docs.anthropic.com/en/api/messages), and the same in canonical form."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from daemon.api.reading import Loose
from models.interface import ChatRequest, Verbatim

NEEDED = {
    "text": ("text",),
    "image": ("source",),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id",),
}
MEANINGFUL_HEADERS = ("anthropic-beta", "anthropic-version")


class Source(Loose):
    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None

    @model_validator(mode="after")
    def _has_what_its_type_says(self) -> "Source":
        if self.type == "base64" and (self.data is None or self.media_type is None):
            raise ValueError("a source of type base64 needs media_type and data")
        if self.type == "url" and self.url is None:
            raise ValueError("a source of type url needs a url")
        return self


class Block(Loose):
    type: str
    text: str | None = None
    source: Source | str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: "str | list[Block] | dict[str, Any] | None" = None
    is_error: bool | None = None

    @model_validator(mode="after")
    def _has_what_its_type_says(self) -> "Block":
        for name in NEEDED.get(self.type, ()):
            if getattr(self, name) is None:
                raise ValueError(f"a block of type {self.type} needs {name}")
        if self.type == "tool_result" and isinstance(self.content, dict):
            raise ValueError("the content of a tool_result is a string or a list of blocks")
        return self


class Message(Loose):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Tool(Loose):
    """Tools of a type other than custom are Anthropic's own."""

    name: str | None = None
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _custom_tool_has_schema(self) -> "Tool":
        if self.type in (None, "custom") and (not self.name or self.input_schema is None):
            raise ValueError("a tool needs a name and an input_schema")
        return self


class ToolChoice(Loose):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _names_the_tool(self) -> "ToolChoice":
        if self.type == "tool" and not self.name:
            raise ValueError("a tool_choice of type tool needs the tool's name")
        return self


class Metadata(Loose):
    user_id: str | None = None


class CountBody(Loose):
    """`POST /v1/messages/count_tokens`."""

    model: str = Field(max_length=256)
    messages: list[Message] = Field(min_length=1)
    system: str | list[Block] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None

    def request(self, raw: Mapping[str, Any], headers: Mapping[str, str]) -> ChatRequest:
        return ChatRequest(
            messages=_messages(raw), tools=_tools(self.tools), tool_choice=_tool_choice(self.tool_choice)
        )


class MessagesBody(CountBody):
    """`POST /v1/messages`; fields beyond these go to Anthropic as they are."""

    max_tokens: int = Field(ge=1)
    stream: bool = False
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=2**31 - 1)
    stop_sequences: list[str] | None = None
    metadata: Metadata | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None
    """Where `output_config` has its format since."""

    def request(self, raw: Mapping[str, Any], headers: Mapping[str, str]) -> ChatRequest:
        """The request in canonical form and, for Anthropic itself, as it came with `headers`."""
        said = {name: headers[name] for name in MEANINGFUL_HEADERS if name in headers}
        return ChatRequest(
            messages=_messages(raw),
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop_sequences or (),
            tools=_tools(self.tools),
            tool_choice=_tool_choice(self.tool_choice),
            response_format=_response_format((self.output_config or {}).get("format") or self.output_format),
            extra=self._extra(),
            verbatim=Verbatim("anthropic", raw, said),
        )

    def _extra(self) -> dict[str, Any]:
        extra: dict[str, Any] = {}
        if self.tool_choice and self.tool_choice.disable_parallel_tool_use is not None:
            extra["parallel_tool_calls"] = not self.tool_choice.disable_parallel_tool_use
        if self.metadata and self.metadata.user_id:
            extra["user"] = _short(self.metadata.user_id)
        return extra


def _short(user: str) -> str:
    """Who asks, as OpenAI takes it: Claude Code's name for that is longer, and says whose account it is."""
    return user if len(user) <= LONGEST_USER else hashlib.sha256(user.encode()).hexdigest()


LONGEST_USER = 64


def _messages(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    system = [{"role": "system", "content": _content(_blocks(raw["system"]))}] if raw.get("system") else []
    return [*system, *(message for said in raw["messages"] for message in _message(said))]


def _message(said: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One of Anthropic's messages as one or, where it carries tool results, several of OpenAI's."""
    role, blocks = said["role"], _blocks(said["content"])
    if role == "assistant":
        yield _assistant(blocks)
        return
    rest = []
    for block in blocks:
        if block["type"] == "tool_result":
            result = _blocks(block.get("content") or "")
            text = "\n".join(inner["text"] for inner in result if inner["type"] == "text")
            # OpenAI's results have neither a flag for errors nor pictures.
            mark = "Error: " if block.get("is_error") else ""
            yield {"role": "tool", "tool_call_id": block["tool_use_id"], "content": mark + text}
            rest += [inner for inner in result if inner["type"] != "text"]
        else:
            rest.append(block)
    if rest or not blocks:
        yield {"role": role, "content": _content(rest)}


def _assistant(blocks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": _content(b for b in blocks if b["type"] == "text")}
    calls = [
        {"id": block["id"], "type": "function", "function": {"name": block["name"], "arguments": _json(block["input"])}}
        for block in blocks
        if block["type"] == "tool_use"
    ]
    if calls:
        message |= {"content": message["content"] or None, "tool_calls": calls}
    return message


def _blocks(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _content(blocks: Iterable[Mapping[str, Any]]) -> str | list[Mapping[str, Any]]:
    parts = [_part(block) for block in blocks]
    match parts:
        case []:
            return ""
        case [{"type": "text", "text": str(text)}]:
            return text
    return parts


def _part(block: Mapping[str, Any]) -> Mapping[str, Any]:
    match block:
        case {"type": "text", "text": text}:
            return {"type": "text", "text": text}
        case {"type": "image", "source": {"type": "base64", "media_type": media, "data": data}}:
            return {"type": "image_url", "image_url": {"url": f"data:{media};base64,{data}"}}
        case {"type": "image", "source": {"type": "url", "url": url}}:
            return {"type": "image_url", "image_url": {"url": url}}
        case {"type": "document", "source": {"type": "text", "data": text}}:
            return {"type": "text", "text": text}
        case {"type": "document", "source": {"type": "base64", "media_type": media, "data": data}}:
            name = block.get("title") or "document.pdf"
            return {"type": "file", "file": {"filename": name, "file_data": f"data:{media};base64,{data}"}}
    return block


def _tools(tools: Iterable[Tool] | None) -> list[Mapping[str, Any]]:
    return [_tool(tool) for tool in tools or ()]


def _tool(tool: Tool) -> Mapping[str, Any]:
    if tool.type not in (None, "custom"):
        return tool.model_dump(exclude_unset=True)
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    function["strict"] = (tool.model_extra or {}).get("strict")
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _tool_choice(choice: ToolChoice | None) -> str | Mapping[str, Any] | None:
    if choice and choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return {"auto": "auto", "any": "required", "none": "none"}[choice.type] if choice else None


def _response_format(format: Any) -> Mapping[str, Any] | None:
    match format:
        case {"type": "json_schema", "schema": schema}:
            # Not `strict`: OpenAI then refuses schemas that Anthropic takes, such as those with optional properties.
            return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    return None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
