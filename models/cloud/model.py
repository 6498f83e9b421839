"""A cloud model behind the contract of every chat model. Import it in the cloud worker's process only."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeAlias, TypeVar, cast

from any_llm.exceptions import AnyLLMError
from any_llm.providers.anthropic.base import BaseAnthropicProvider

from models.cloud.answer import Answer
from models.cloud.breaker import Breaker
from models.cloud.completions import completions, speaks_plainly
from models.cloud.failures import CloudError, broke_off, explain
from models.cloud.http import ALIVE
from models.cloud.messages import MessageAnswer, message_body, messages
from models.cloud.providers import Connection, arguments, connect, translated
from models.cloud.retry import RetryPolicy
from models.cloud.settings import CloudSettings
from models.cloud.size import most_tokens
from models.interface import (
    ChatRequest,
    Event,
    Failure,
    FailureCode,
    Finish,
    ModelStatus,
    Progress,
    PromptRead,
    TextDelta,
    ToolCallDelta,
    Usage,
)

T = TypeVar("T")

Ask: TypeAlias = Callable[[], Awaitable[AsyncIterator[Any]]]
"""Sends the request once; gives the pieces of the answer."""


class CloudModel:
    """One provider's model, always asked for a stream, whoever it is for: else there is nothing to time or to cancel.

    The key is asked for at the first request, with `key(settings.key_name)` in a thread; it may raise LookupError with
    a message for people, which becomes a NO_KEY failure. A refused key is asked for again at the next request.
    `Usage` is missing from an answer whose provider reported none.
    """

    def __init__(self, settings: CloudSettings, key: Callable[[str], str]) -> None:
        self._settings = settings
        self._key = key
        self._retry = RetryPolicy(settings.max_retries)
        self._breaker = Breaker(patience=self._retry.patience)
        self._connection: Connection | None = None
        self._key_refused = False
        self._connecting = asyncio.Lock()

    def chat(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        deadline = time.monotonic() + self._settings.total_timeout
        if request.n > 1 and self._settings.one_choice_each:
            return self._one_after_another(request, deadline)
        return self._answer(request, deadline)

    async def _one_after_another(self, request: ChatRequest, deadline: float) -> AsyncGenerator[Event, None]:
        """The choices of `request`, each from a request of its own."""
        counted = list[Usage]()
        for choice in range(request.n):
            async with aclosing(self._answer(replace(request, n=1), deadline)) as events:
                async for event in events:
                    match event:
                        case Usage():
                            counted.append(event)
                        case Failure():
                            yield replace(event, lost=_shares(event.lost + choice, request.n))
                            return
                        case TextDelta() | ToolCallDelta() | Finish():
                            yield replace(event, choice=choice)
                        case PromptRead() if choice:
                            pass
                        case _:
                            yield event
        if len(counted) == request.n:
            counts = [field.name for field in fields(Usage) if field.name != "kind"]
            total = Usage(**{name: sum(getattr(usage, name) for usage in counted) for name in counts})
            yield replace(total, lost=_shares(total.lost, request.n))

    async def _answer(self, request: ChatRequest, deadline: float) -> AsyncGenerator[Event, None]:
        try:
            answer, ask, between = self._asking(await self._connected(), request)
            chunk, rest, lost = await self._begin(ask, request, deadline)
        except CloudError as error:
            yield error.failure
            return
        except (AnyLLMError, ValueError) as error:
            yield explain(error, self._settings, request).failure
            return
        failure: Failure | None = None
        settled = False
        try:
            async with aclosing(rest):  # type: ignore[type-var]
                if chunk is not None:
                    self._breaker.answered()
                while chunk is not None:
                    for event in self._read(answer, chunk, request):
                        if isinstance(event, TextDelta | ToolCallDelta):
                            between = self._settings.chunk_timeout
                        yield event
                    chunk = await self._next(rest, request, between, deadline)
            if not answer.complete:
                failure = broke_off(self._settings)
            settled = True
        except CloudError as error:
            failure, settled = error.failure, True
        finally:
            if not settled:
                self._breaker.abandoned()
        # What breaks after the last choice ended takes nothing from the answer.
        if answer.complete:
            self._breaker.succeeded()
            if answer.usage is not None:
                yield replace(answer.usage, lost=lost)
        elif failure is not None:
            self._breaker.failed(failure)
            yield replace(failure, lost=lost + 1)

    def _asking(self, connection: Connection, request: ChatRequest) -> tuple[Answer | MessageAnswer, Ask, float]:
        """What reads the answer, what asks for it, and how many seconds may pass between two pieces before the first
        word. Raises ValueError or AnyLLMError for what the provider cannot be asked."""
        provider, http, client = connection.provider, connection.http, connection.client
        between = self._settings.chunk_timeout
        if isinstance(provider, BaseAnthropicProvider):
            if request.verbatim is not None:
                body, headers = message_body(self._settings, request.verbatim), request.verbatim.headers
            else:
                body, headers = translated(self._settings, request, provider), {}
            answer = MessageAnswer(verbatim=request.verbatim is not None)
            return answer, partial(messages, http, client, body, headers), between
        sent = arguments(self._settings, request)
        if sent["extra_body"].get("reasoning_effort") not in (None, "none", "minimal"):
            # OpenAI's stream says nothing while the model reasons.
            between = self._settings.total_timeout
        if speaks_plainly(provider):
            body = {"model": sent["model"], "stream": True, **sent["extra_body"]}
            return Answer(request), partial(completions, http, client, body), between
        return Answer(request), partial(_chunks, connection, sent), between

    async def count_tokens(self, request: ChatRequest) -> int:
        """An upper bound, not a count: no token is shorter than a byte. English text has about four bytes in each."""
        return most_tokens(request)

    async def status(self) -> ModelStatus:
        refusal = self._breaker.refusal()
        return ModelStatus(
            name=self._settings.model,
            state="failed" if refusal else "ready",
            context_length=self._settings.context_length,
            tools=self._settings.tools,
            images=self._settings.images,
            detail=refusal.message if refusal else "",
        )

    async def close(self) -> None:
        """Drop the key and the connections; running answers break off. A later request connects again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _connected(self) -> Connection:
        async with self._connecting:
            if self._connection is not None and not self._key_refused:
                return self._connection
            key = await self._ask_key()
            if self._connection is None:
                try:
                    self._connection = connect(self._settings, key)
                except (ValueError, OSError) as error:
                    reason = f"{self._settings.ca_bundle}: {error.strerror}" if isinstance(error, OSError) else error
                    raise CloudError(
                        Failure(FailureCode.UNAVAILABLE, f"Cloud model {self._settings.name} is not set up: {reason}")
                    ) from None
            else:
                # Requests under way keep their connections, which a new client would close.
                self._connection.client.api_key = key
            self._key_refused = False
            return self._connection

    async def _ask_key(self) -> str:
        if self._settings.key_name is None:
            return "none"
        try:
            return await asyncio.to_thread(self._key, self._settings.key_name)
        except LookupError as error:
            raise CloudError(Failure(FailureCode.NO_KEY, str(error))) from None

    async def _begin(self, ask: Ask, request: ChatRequest, deadline: float) -> tuple[Any, AsyncIterator[Any], int]:
        """The first chunk and the rest of an answer, after as many tries as the retry policy allows; how many of those
        the provider may charge for, too."""
        tries = lost = 0
        while True:
            if (refusal := self._breaker.admit()) is not None:
                raise CloudError(replace(refusal, lost=lost))
            tries += 1
            try:
                return *await self._try(ask, request, deadline), lost
            except CloudError as error:
                lost += error.charged
                self._breaker.failed(error.failure)
                self._key_refused |= error.failure.code is FailureCode.AUTHENTICATION
                left = deadline - time.monotonic()
                pause = self._retry.pause(tries, error.failure, left) if error.retry else None
                if pause is None:
                    raise CloudError(replace(error.failure, lost=lost)) from None
            except BaseException:
                self._breaker.abandoned()
                raise
            await asyncio.sleep(pause)

    async def _try(self, ask: Ask, request: ChatRequest, deadline: float) -> tuple[Any, AsyncIterator[Any]]:
        stream: Any = None

        async def first() -> Any:
            nonlocal stream
            stream = await ask()
            return await anext(stream, None)

        try:
            chunk = await self._within(first(), self._settings.first_byte_timeout, "begin to answer", deadline)
            while chunk is ALIVE:
                more = anext(stream, None)
                chunk = await self._within(more, self._settings.first_byte_timeout, "begin to answer", deadline)
        except BaseException as error:
            if stream is not None:
                await stream.aclose()
            if isinstance(error, CloudError) or not isinstance(error, Exception):
                raise
            raise explain(error, self._settings, request) from None
        return chunk, stream

    def _read(self, answer: Answer | MessageAnswer, chunk: Any, request: ChatRequest) -> list[Event]:
        if chunk is ALIVE:
            return [Progress("working")]
        try:
            return list(answer.read(chunk))
        except Exception as error:
            # A provider's event without what its type promises.
            raise explain(error, self._settings, request, begun=True) from None

    async def _next(self, stream: AsyncIterator[Any], request: ChatRequest, seconds: float, deadline: float) -> Any:
        try:
            return await self._within(anext(stream, None), seconds, "go on with its answer", deadline)
        except CloudError:
            raise
        except Exception as error:
            raise explain(error, self._settings, request, begun=True) from None

    async def _within(self, work: Awaitable[T], seconds: float, what: str, deadline: float) -> T:
        left = deadline - time.monotonic()
        if left < seconds:
            seconds, what = max(left, 0.0), f"finish within {self._settings.total_timeout:g} s in all"
        else:
            what = f"{what} within {seconds:g} s"
        try:
            async with asyncio.timeout(seconds) as limit:
                return await work
        except TimeoutError:
            if not limit.expired():
                raise
            message = f"{self._settings.name} did not {what}; try again, or raise its timeouts."
            raise CloudError(Failure(FailureCode.TIMEOUT, message), charged=True) from None


def _shares(calls: int, n: int) -> int:
    """Of tries for `n` choices each, how many come to `calls` requests for one choice, rounded up."""
    return -(-calls // n)


async def _chunks(connection: Connection, sent: Mapping[str, Any]) -> AsyncIterator[Any]:
    return aiter(cast("AsyncIterator[Any]", await connection.provider.acompletion(**sent)))
