"""Carries an answer to the client, whole or as a stream, in whatever wire format the client speaks."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from aiohttp import web

from daemon.api.errors import ApiError
from daemon.api.exchange import Exchange
from daemon.api.wish import Asked
from daemon.dispatcher import Dispatcher, SensitivePromptError
from daemon.routing.scorer import UnknownRouterError
from models.interface import ChatRequest, Confidence, Event, Failure, Hidden, Progress

QUIET_SECONDS = 10.0
"""How long a provider's word that it is at work opens no stream: some say it with each answer, just before its first
word, and what is not open yet can name its model in the headers, or fail with a status of its own."""


class Shape(Protocol):
    """One answer in one wire format. The stream is `start`, an `event` for each event, then `end` or `error`; an
    `event` that is `Progress` may come before `start`."""

    content_type: str
    """Of the stream."""

    def start(self) -> bytes: ...

    def event(self, event: Event) -> bytes:
        """What the client gets for `event`; empty for those that the wire format has no place for."""
        ...

    def end(self) -> bytes: ...

    def error(self, error: ApiError) -> bytes:
        """The last of a stream that breaks off."""
        ...

    def whole(self, events: Sequence[Event]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        ...


class ShapeOf(Protocol):
    """Makes the shape of one answer; a shape's own class does."""

    def __call__(self, exchange: Exchange) -> Shape: ...


async def answer(
    request: web.Request, dispatcher: Dispatcher, chat: ChatRequest, ask: Asked, wire: str, shape: ShapeOf, stream: bool
) -> web.StreamResponse:
    """Have `chat` answered. Raises `ApiError` where nothing of the answer was sent yet."""
    exchange = Exchange(wire, ask, dispatcher.ledger)
    try:
        async with aclosing(exchange.follow(dispatcher.answer(chat, ask.wish, exchange.id, wire))) as events:
            if stream:
                return await _stream(request, events, exchange, shape(exchange))
            return await _whole(events, exchange, shape(exchange))
    except (UnknownRouterError, SensitivePromptError) as error:
        exchange.outcome = "refused"
        raise undecided(error) from None
    except (ApiError, ConnectionError):
        raise
    except Exception:
        exchange.outcome = "internal_error"
        raise
    finally:
        exchange.close()


def undecided(error: UnknownRouterError | SensitivePromptError) -> ApiError:
    """Why there is no decision, for the client."""
    if isinstance(error, UnknownRouterError):
        return ApiError(404, str(error), code="model_not_found", param="model")
    hint = "Ask for the model local, or send the header x-upcall-sensitive: allow."
    # OpenAI's and Anthropic's clients would ask again by themselves.
    return ApiError(409, f"{error} {hint}", code="sensitive", headers={"x-should-retry": "false"})


async def _whole(events: AsyncGenerator[Event, None], exchange: Exchange, shape: Shape) -> web.Response:
    seen = []
    async for event in events:
        if isinstance(event, Failure):
            raise ApiError.of(event, headers=exchange.headers)
        seen.append(event)
    return web.json_response(shape.whole(seen), headers=exchange.headers)


async def _stream(
    request: web.Request, events: AsyncGenerator[Event, None], exchange: Exchange, shape: Shape
) -> web.StreamResponse:
    response: web.StreamResponse | None = None
    started = False
    async for event in events:
        if response is None and isinstance(event, Failure):
            raise ApiError.of(event, headers=exchange.headers)
        at_work = isinstance(event, Progress) and event.stage == "working"
        if response is None and at_work and exchange.seconds[1] < QUIET_SECONDS:
            continue
        begin = b""
        # Until a word has gone out another model may still be turned to: who answers is not said before.
        if not (started or isinstance(event, Progress | Confidence | Hidden)):
            begin, started = shape.start(), True
        # What belongs together goes out together: each write wakes the client.
        data = begin + (shape.error(ApiError.of(event)) if isinstance(event, Failure) else shape.event(event))
        if data:
            response = response or await _open(request, exchange.headers if started else exchange.headers_so_far, shape)
            await response.write(data)
    begin = b"" if started else shape.start()
    response = response or await _open(request, exchange.headers, shape)
    await response.write_eof(begin + (shape.end() if exchange.ok else b""))
    return response


async def _open(request: web.Request, headers: Mapping[str, str], shape: Shape) -> web.StreamResponse:
    response = web.StreamResponse(headers=headers)
    response.content_type = shape.content_type
    response.headers["Cache-Control"] = "no-store"
    await response.prepare(request)
    return response
