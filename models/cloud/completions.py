"""OpenAI's format spoken with OpenAI and its like: the request as it is, the answer's chunks read for what is used.

OpenAI's SDK and then any-llm build each chunk anew from some twenty models, which takes longer than all else that
happens to it here.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Final

from any_llm import AnyLLM
from any_llm.providers.openai.base import BaseOpenAIProvider
from any_llm.providers.openai.xml_reasoning import XMLReasoningOpenAIProvider
from openai import AsyncOpenAI
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from models.cloud.http import ALIVE, Alive, AnsweredError, Http


@dataclass(slots=True)
class Function:
    name: str | None = None
    arguments: str | None = None


@dataclass(slots=True)
class Call:
    index: int = 0
    id: str | None = None
    function: Function | None = None
    custom: Any = None
    extra_content: Any = None


@dataclass(slots=True)
class Delta:
    content: str | None = None
    tool_calls: Sequence[Call] | None = None
    refusal: str | None = None
    # Of whatever shape: these pass unread.
    reasoning_content: Any = None
    reasoning: Any = None
    reasoning_details: Any = None
    extra_content: Any = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None


BESIDE: Final = (
    "refusal", "reasoning_content", "reasoning", "reasoning_details", "extra_content", "annotations", "audio",
    "function_call",
)  # fmt: skip


@dataclass(slots=True)
class Logprobs:
    content: Sequence[Mapping[str, Any]] | None = None


@dataclass(slots=True)
class Choice:
    delta: Delta | None = None
    """None where Azure tells of its content filter alone."""
    index: int = 0
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


@dataclass(slots=True)
class WrittenTokens:
    ephemeral_1h_input_tokens: int | None = None


@dataclass(slots=True)
class PromptTokens:
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_creation_token_details: WrittenTokens | None = None


@dataclass(slots=True)
class Counted:
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int | None = None
    prompt_tokens_details: PromptTokens | None = None
    prompt_cache_hit_tokens: int | None = None
    """DeepSeek's name for `cached_tokens`."""


@dataclass(slots=True)
class Chunk:
    """As much of OpenAI's chunk as upcall reads (https://platform.openai.com/docs/api-reference/chat/streaming)."""

    choices: Sequence[Choice]
    usage: Counted | None = None
    error: Any = None
    """OpenRouter's, which otherwise looks like the end of an answer."""


_CHUNK = TypeAdapter(Chunk)
_LINGER_SECONDS: Final = 0.2
"""What the end of the body may take after the end of the answer."""


def speaks_plainly(provider: AnyLLM) -> bool:
    """Whether this provider is asked just as OpenAI is, and its chunks have what they seem to have."""
    return (
        isinstance(provider, BaseOpenAIProvider)
        # Their text has thoughts in it, between tags, which any-llm takes out.
        and not isinstance(provider, XMLReasoningOpenAIProvider)
        # Those of some providers ask at addresses, or with keys, of another shape.
        and type(provider.client) is AsyncOpenAI
    )


async def completions(http: Http, client: AsyncOpenAI, body: Mapping[str, Any]) -> AsyncGenerator[Chunk | Alive, None]:
    """Ask as `client` would, and give the chunks of the answer. Raises as `Http` does, and ValidationError for what is
    no chunk."""
    headers = {**own_headers(client), "Authorization": f"Bearer {client.api_key}"}
    stream = await http.post(f"{own_address(client)}/chat/completions", headers, body)

    async def chunks() -> AsyncGenerator[Chunk | Alive, None]:
        async with aclosing(stream):
            async for data in stream:
                if isinstance(data, Alive):
                    yield ALIVE
                elif data.startswith(b"[DONE]"):
                    break
                else:
                    yield _chunk(data)
            # Without the end of its body a connection cannot be used again.
            with suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_SECONDS):
                    await anext(stream, None)

    return chunks()


def own_address(client: Any) -> str:
    return str(client.base_url).rstrip("/")


def own_headers(client: Any) -> dict[str, str]:
    """Those that an SDK's client was made with, without what it says of this machine."""
    said = {name: value for name, value in client.default_headers.items() if isinstance(value, str)}
    return {name: value for name, value in said.items() if not name.lower().startswith(("x-stainless", "user-agent"))}


def _chunk(data: bytes) -> Chunk:
    try:
        chunk = _CHUNK.validate_json(data)
    except ValidationError:
        with suppress(ValueError):
            told = from_json(data)
            if isinstance(told, Mapping) and told.get("error"):
                raise AnsweredError(0, told, {}) from None
        raise
    if chunk.error:
        raise AnsweredError(0, {"error": chunk.error}, {})
    return chunk
