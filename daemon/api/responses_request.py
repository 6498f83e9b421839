"""OpenAI's `/v1/responses` (https://platform.openai.com/docs/api-reference/responses): requests in, without state."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from daemon.api.reading import Loose
from daemon.api.responses_tools import PASSED_ON, Called, OfferedTool, Toolbox, arguments_of, left_out
from models.interface import ChatRequest

NEEDED = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "custom_tool_call": ("call_id", "name", "input"),
    "custom_tool_call_output": ("call_id", "output"),
    "additional_tools": ("tools",),
}
"""The items that can be read, and what each must have."""
CALLS = {"function_call": "function", "custom_tool_call": "custom"}
"""Items, and the type of the tool that each calls."""
RESULTS = ("function_call_output", "custom_tool_call_output")
PASSED_OVER = ("reasoning", "web_search_call", "image_generation_call")
"""Those that chat has no place for."""
SHARED = ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier")
"""Fields that chat has under the same name; it refuses the others."""
STATEFUL = "upcall keeps no conversations: leave this out and send the whole input each time"
NOT_AMONG_THEM = f"upcall passes on tools of type {', '.join(PASSED_ON)}"
NO_ITEMS = (
    "upcall keeps no items: have the client send store: false "
    "(AI SDK: openai.chat('auto'), or providerOptions.openai.store = false)"
)


class Part(Loose):
    type: Literal["input_text", "output_text", "text", "refusal", "input_image", "input_file", "input_audio"]
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    detail: str | None = None
    file_data: str | None = None
    filename: str | None = None
    input_audio: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _has_what_its_type_says(self) -> "Part":
        needed = {"refusal": "refusal", "input_image": "image_url", "input_file": "file_data"}
        name = needed.get(self.type) or ("input_audio" if self.type == "input_audio" else "text")
        if getattr(self, name) is None:
            raise ValueError(f"a part of type {self.type} needs {name}, since upcall keeps no files")
        return self

    def canonical(self) -> dict[str, Any]:
        match self.type:
            case "refusal":
                return {"type": "refusal", "refusal": self.refusal}
            case "input_image":
                detail = {"detail": self.detail} if self.detail else {}
                return {"type": "image_url", "image_url": {"url": self.image_url, **detail}}
            case "input_file":
                return {"type": "file", "file": {"filename": self.filename or "file", "file_data": self.file_data}}
            case "input_audio":
                return {"type": "input_audio", "input_audio": self.input_audio}
        return {"type": "text", "text": self.text}


class Item(Loose):
    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    input: str | None = None
    tools: list[OfferedTool] | None = None
    """Further ones: Codex offers all its tools so to some models."""
    output: str | list[Part] | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_not_read_where_it_is_passed_over(cls, value: Any) -> Any:
        passed_over = isinstance(value, dict) and value.get("type") in PASSED_OVER
        return {"type": value["type"]} if passed_over else value

    @model_validator(mode="after")
    def _has_what_its_type_says(self) -> "Item":
        if self.type == "item_reference":
            raise ValueError(NO_ITEMS)
        if self.type not in (*NEEDED, *PASSED_OVER):
            raise ValueError(f"items of type {self.type!r} cannot be read; there are {', '.join(NEEDED)}")
        for name in NEEDED.get(self.type, ()):
            if getattr(self, name) is None:
                raise ValueError(f"an item of type {self.type} needs {name}")
        return self


class ToolChoice(Loose):
    type: str
    name: str | None = None
    namespace: str | None = None

    @property
    def called(self) -> Called:
        return Called(self.type, self.name or "", self.namespace)


class Format(Loose):
    type: Literal["text", "json_object", "json_schema"] = "text"

    def canonical(self) -> dict[str, Any] | None:
        if self.type == "json_schema":
            return {"type": "json_schema", "json_schema": self.model_extra or {}}
        return {"type": "json_object"} if self.type == "json_object" else None


class Text(Loose):
    format: Format | None = None
    verbosity: str | None = None


class Reasoning(Loose):
    effort: str | None = None


class ResponsesBody(Loose):
    """`POST /v1/responses`; of fields beyond these the cloud gets those that are `SHARED`."""

    model: str = Field(default="auto", max_length=256)
    input: str | list[Item]
    instructions: str | None = None
    tools: list[OfferedTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    """Without effect: what does not fit is refused, or goes where it fits."""
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    n: Literal[1] | None = None
    """Chat completions' own, as are the next two: left out in silence, they would promise what is not done."""
    max_tokens: int | None = None
    max_completion_tokens: int | None = None

    @field_validator("input")
    @classmethod
    def _is_not_empty(cls, value: str | list[Item]) -> str | list[Item]:
        if value == []:
            raise ValueError("send at least one item")
        return value

    @field_validator("tool_choice")
    @classmethod
    def _can_be_met(cls, value: Any, info: ValidationInfo) -> Any:
        if value in (None, "none", "auto"):
            return value
        toolbox = Toolbox(_offered(info.data.get("tools"), info.data.get("input", ())))
        if isinstance(value, ToolChoice) and value.called not in toolbox:
            raise ValueError(f"{value.name or value.type!r} is not among the tools; {NOT_AMONG_THEM}")
        if value == "required" and not toolbox.functions:
            raise ValueError(f"there is no tool to call; {NOT_AMONG_THEM}")
        return value

    @field_validator("max_tokens", "max_completion_tokens")
    @classmethod
    def _has_another_name(cls, value: int | None) -> int | None:
        if value is not None:
            raise ValueError("a response's limit is called max_output_tokens")
        return value

    @field_validator("store", "background", "previous_response_id", "conversation", "prompt")
    @classmethod
    def _keeps_nothing(cls, value: Any) -> Any:
        if value:
            raise ValueError(STATEFUL)
        return value

    @property
    def warning(self) -> str | None:
        """One line about the tools that are left out."""
        kinds = left_out(_offered(self.tools, self.input))
        return f"left out tools of type {', '.join(kinds)}"[:200] if kinds else None

    @cached_property
    def toolbox(self) -> Toolbox:
        return Toolbox(_offered(self.tools, self.input))

    def request(self) -> ChatRequest:
        text = self.text or Text()
        logprobs = bool(self.top_logprobs or "message.output_text.logprobs" in (self.include or ()))
        extra = {name: value for name, value in (self.model_extra or {}).items() if name in SHARED}
        tools = self.toolbox.functions
        # Chat's providers refuse what is said about tools where there are none.
        choice = self.tool_choice if tools else None
        if tools and self.parallel_tool_calls is not None:
            extra["parallel_tool_calls"] = self.parallel_tool_calls
        if self.reasoning and self.reasoning.effort:
            extra["reasoning_effort"] = self.reasoning.effort
        if text.verbosity:
            extra["verbosity"] = text.verbosity
        return ChatRequest(
            messages=list(self._messages()),
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            logprobs=logprobs,
            top_logprobs=self.top_logprobs or 0,
            tools=tools,
            tool_choice=self._function(choice.called) if isinstance(choice, ToolChoice) else choice,
            response_format=text.format.canonical() if text.format else None,
            extra=extra,
        )

    def _messages(self) -> Iterator[dict[str, Any]]:
        if self.instructions:
            yield {"role": "system", "content": self.instructions}
        if isinstance(self.input, str):
            yield {"role": "user", "content": self.input}
            return
        said: dict[str, Any] | None = None
        shown: list[dict[str, Any]] = []
        for item in self.input:
            if item.type in PASSED_OVER or item.type == "additional_tools":
                continue
            # What the assistant says and the calls it makes with it are one message in chat.
            if said is not None and item.type not in CALLS:
                yield said
                said = None
            if shown and item.type not in RESULTS:
                yield {"role": "user", "content": shown}
                shown = []
            match item.type:
                case "function_call" | "custom_tool_call":
                    said = said or {"role": "assistant", "content": None}
                    said.setdefault("tool_calls", []).append(self._call(item))
                case "function_call_output" | "custom_tool_call_output":
                    parts = _parts(item.output)
                    text = _content([part for part in parts if part["type"] == "text"])
                    yield {"role": "tool", "tool_call_id": item.call_id, "content": text}
                    # Chat's results have no pictures, and nothing may stand between two of them.
                    shown += [part for part in parts if part["type"] != "text"]
                case _ if item.role == "assistant":
                    said = {"role": "assistant", "content": _content(_parts(item.content))}
                case _:
                    # Many servers and chat templates do not know the role `developer`.
                    role = "system" if item.role == "developer" else item.role
                    yield {"role": role, "content": _content(_parts(item.content))}
        if said is not None:
            yield said
        if shown:
            yield {"role": "user", "content": shown}

    def _call(self, item: Item) -> Mapping[str, Any]:
        called = Called(CALLS[item.type], item.name or "", item.namespace)
        arguments = arguments_of(item.input or "") if called.type == "custom" else item.arguments
        function = self._function(called, arguments=arguments)
        return {"id": item.call_id, **function}

    def _function(self, called: Called, **more: Any) -> dict[str, Any]:
        return {"type": "function", "function": {"name": self.toolbox.name(called), **more}}


def _offered(tools: Iterable[OfferedTool] | None, items: str | Iterable[Item]) -> list[OfferedTool]:
    further = (
        ()
        if isinstance(items, str)
        else (tool for item in items if item.type == "additional_tools" for tool in item.tools or ())
    )
    return [*(tools or ()), *further]


def _parts(content: str | Iterable[Part] | None) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [part.canonical() for part in content or ()]


def _content(parts: Sequence[dict[str, Any]]) -> str | Sequence[dict[str, Any]]:
    # Not every server takes a list where there is nothing but text.
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts
