"""OpenAI's format spoken with OpenAI and its like: the request as it is, the answer's chunks read for what is used.

OpenAI's SDK and then any-llm build each chunk anew from some twenty models, which takes longer than all else that
happens to it here. The SDK still sends, decodes the stream and raises its errors.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from any_llm import AnyLLM
from any_llm.providers.openai.base import BaseOpenAIProvider
from openai import AsyncOpenAI, AsyncStream
from pydantic import TypeAdapter


@dataclass(slots=True)
class Function:
    name: str | None = None
    arguments: str | None = None


@dataclass(slots=True)
class Call:
    index: int = 0
    id: str | None = None
    function: Function | None = None


@dataclass(slots=True)
class Delta:
    content: str | None = None
    refusal: str | None = None
    tool_calls: Sequence[Call] | None = None


@dataclass(slots=True)
class Logprobs:
    content: Sequence[Mapping[str, Any]] | None = None


@dataclass(slots=True)
class Choice:
    delta: Delta
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
    prompt_tokens_details: PromptTokens | None = None


@dataclass(slots=True)
class Chunk:
    """As much of OpenAI's chunk as upcall reads (https://platform.openai.com/docs/api-reference/chat/streaming)."""

    choices: Sequence[Choice]
    usage: Counted | None = None


_CHUNK = TypeAdapter(Chunk)


def speaks_plainly(provider: AnyLLM) -> bool:
    """Whether any-llm asks this provider just as it asks OpenAI, and takes its chunks as they are."""
    own, base = type(provider), BaseOpenAIProvider
    return (
        issubclass(own, base)
        and own._acompletion is base._acompletion
        and own._convert_completion_response_async is base._convert_completion_response_async
        and own._convert_completion_chunk_response is base._convert_completion_chunk_response
    )


async def completions(client: AsyncOpenAI, body: Mapping[str, Any]) -> AsyncIterator[Chunk]:
    """Ask, and give the chunks of the answer. Raises the SDK's errors, and ValidationError for what is no chunk."""

    async def chunks() -> AsyncIterator[Chunk]:
        async with stream:
            async for data in stream:
                yield _CHUNK.validate_python(data)

    stream = await client.post(
        "/chat/completions",
        cast_to=object,
        body=body,
        options={"security": {"bearer_auth": True}},
        stream=True,
        stream_cls=AsyncStream[object],
    )
    return chunks()
