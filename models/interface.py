"""What a chat model is, whatever runs it: the contract between the daemon and every model.

The canonical request is OpenAI's chat completion, the canonical answer a stream of events. Both cross process
boundaries as JSON (`models/frames.py`), so everything here is a frozen dataclass that pydantic can validate.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

Message: TypeAlias = Mapping[str, Any]
"""One message in OpenAI's chat shape, `{"role": …, "content": str | parts, …}`, validated by the wire format."""


@dataclass(frozen=True, slots=True)
class Verbatim:
    """A request as its client sent it, in a wire format other than OpenAI's."""

    wire: Literal["anthropic"]
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    """Those that change what the body means, in lower case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One chat completion, in OpenAI's terms (https://platform.openai.com/docs/api-reference/chat/create).

    `None` means "not said by the client": the model's own default applies. `extra` holds the fields that upcall does
    not interpret; the cloud receives them unchanged and the local engine ignores them.
    """

    messages: Sequence[Message]
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    top_k: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    n: int = 1
    logit_bias: Mapping[str, float] | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str | Mapping[str, Any] | None = None
    response_format: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    beside: bool = False
    """Its client's format has a place for what a `TextDelta` has beside the words."""
    verbatim: Verbatim | None = None
    """For a provider of the same wire format, which gets this in the place of all the fields above."""


CALL_ID_PREFIX = "call_local_"
"""Of the ids of local models' tool calls, by which a client's history tells whose calls they are; all that clients ask
of an id is that it comes back."""

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "content_filter"]


class FailureCode(StrEnum):
    """Why a model gave no (further) answer; the daemon maps each to a status code and to what may be tried instead."""

    BAD_REQUEST = "bad_request"
    """The request itself is wrong, for this model or any; trying again does not help."""
    CONTEXT_LENGTH = "context_length_exceeded"
    """The prompt and the answer asked for do not fit the context."""
    BUSY = "busy"
    """The queue is full; `retry_after` says when to come back."""
    UNAVAILABLE = "unavailable"
    """No such model here now: not loaded, crashed, refused to load, unreachable."""
    NO_KEY = "no_key"
    """The cloud has no API key, or its keyring cannot be read."""
    AUTHENTICATION = "authentication"
    """The provider refused the key."""
    RATE_LIMITED = "rate_limited"
    """The provider asks to slow down; `retry_after` where it said for how long."""
    TIMEOUT = "timeout"
    """A deadline passed."""
    UPSTREAM = "upstream"
    """The provider answered with an error of its own, or broke off."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of a choice's text; never splits a character."""

    text: str
    choice: int = 0
    logprobs: Sequence[Mapping[str, Any]] | None = None
    """OpenAI's `logprobs.content` entries of the tokens in this piece, where they were asked for."""
    beside: Mapping[str, Any] | None = None
    """What else its delta holds under names of OpenAI's format or of a dialect of it, such as `reasoning_content`."""
    kind: Literal["text"] = "text"


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The next piece of a tool call; `id` and `name` come with the first piece of a call."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None
    choice: int = 0
    beside: Mapping[str, Any] | None = None
    """As of a `TextDelta`: Gemini has a signature there, without which it refuses the next turn. In an answer to a
    verbatim request, what the call has beside its input."""
    kind: Literal["tool_call"] = "tool_call"


@dataclass(frozen=True, slots=True)
class Native:
    """An event of a verbatim request's own wire format that has no other name here, such as a piece of a thought."""

    event: Mapping[str, Any]
    kind: Literal["native"] = "native"


@dataclass(frozen=True, slots=True)
class PromptRead:
    """What the prompt comes to, known before the first word; `Usage` says it again at the end."""

    prompt_tokens: int
    cached_tokens: int = 0
    kind: Literal["prompt_read"] = "prompt_read"


@dataclass(frozen=True, slots=True)
class Confidence:
    """How sure the model was of one sampled token, of its distribution before any grammar or temperature."""

    entropy: float
    """Of the next-token distribution, in nats."""
    margin: float
    """Probability of the likeliest token less that of the second."""
    choice: int = 0
    kind: Literal["confidence"] = "confidence"


@dataclass(frozen=True, slots=True)
class Hidden:
    """The model's last hidden state at the first token of a choice, once and only where the settings ask for it."""

    values: str
    """Base64 of float16, little-endian, one for each dimension of the model."""
    choice: int = 0
    kind: Literal["hidden"] = "hidden"


@dataclass(frozen=True, slots=True)
class Progress:
    """The request waits: for its turn, for the model to load, or for more from a provider that says it is at work. For
    people; carries no part of the answer."""

    stage: Literal["queued", "loading", "working"]
    position: int = 0
    """Requests ahead of this one."""
    fraction: float | None = None
    """Share of the model loaded, 0 to 1."""
    kind: Literal["progress"] = "progress"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens spent on the whole request, once, before the end."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Of the prompt, those whose keys and values were still in the cache."""
    written_tokens: int = 0
    """Of the prompt, those that a provider put into its cache, for which some charge more."""
    written_long_tokens: int = 0
    """Those that it put there for an hour, for which some charge more still."""
    lost: int = 0
    """Tries before this one that a provider may charge for although they brought no answer."""
    kind: Literal["usage"] = "usage"


@dataclass(frozen=True, slots=True)
class Finish:
    """A choice is complete."""

    reason: FinishReason
    choice: int = 0
    stop: str | None = None
    """The stop string that ended it, where one did and is known."""
    kind: Literal["finish"] = "finish"


@dataclass(frozen=True, slots=True)
class Failure:
    """The whole request ends here without (the rest of) an answer."""

    code: FailureCode
    message: str
    """One line for people: what happened, why, what to do."""
    retry_after: float | None = None
    """Seconds."""
    lost: int = 0
    """Tries that a provider may charge for all the same: they were sent, and broke off or were never answered."""
    kind: Literal["failure"] = "failure"


Event: TypeAlias = (
    TextDelta | ToolCallDelta | Native | PromptRead | Confidence | Hidden | Progress | Usage | Finish | Failure
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """What a model is and whether it can answer now."""

    name: str
    """The name that answers carry in `model`."""
    state: Literal["loading", "ready", "unloaded", "failed"]
    context_length: int = 0
    """Tokens that prompt and answer share; 0 while unknown."""
    tools: bool = False
    images: bool = False
    detail: str = ""
    """For people: why it failed, how far loading is."""
    running: int = 0
    """Requests that are being answered, as far as known."""
    waiting: int = 0
    """Requests in its queue."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """How likely each of a few labels is to be what follows a text."""

    logprobs: Sequence[float]
    """Natural logarithms, in the labels' order, of the whole next-token distribution."""
    model_sha256: str
    """Of the model's file: what is calibrated for one model says nothing about another."""


class ChatModel(Protocol):
    """A model that answers chat requests. Implementations: the local engine, a cloud provider, a client of a worker."""

    def chat(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """Answer `request` as events; the last are one `Finish` per choice and `Usage`, or a single `Failure`.

        Nothing is raised for a request that cannot be answered: that is a `Failure`. Closing the generator cancels the
        request, also while its prompt is still being processed.
        """
        ...

    async def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the rendered prompt, without answering it."""
        ...

    async def status(self) -> ModelStatus:
        """What this model is and whether it can answer now; never waits for a running request."""
        ...

    async def close(self) -> None:
        """Cancel what runs and give back memory and connections."""
        ...


@runtime_checkable
class LabelModel(Protocol):
    """A model whose next-token probabilities can be asked for."""

    async def label_logprobs(self, text: str, labels: Sequence[str]) -> Labelled:
        """How likely each label, one token each, is to follow `text`, which is read as it is; with none, who answers.

        Raises `ValueError` where that cannot be told. Cancelling it stops the model's work on it.
        """
        ...
