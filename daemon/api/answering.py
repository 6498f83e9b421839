"""Carries an answer to the client, whole or as a stream, in whatever wire format the client speaks."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from aiohttp import web

from daemon.api.errors import ApiError
from daemon.api.exchange import Exchange
from daemon.api.wish import Asked
from daemon.dispatcher import Dispatcher, SensitivePromptError
from daemon.routing.scorer import UnknownRouterError
from models.interface import ChatRequest, Event, Failure


class Shape(Protocol):
    """One answer in one wire format. The stream is `start`, an `event` for each event, then `end` or `error`."""

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
    async for event in events:
        begin = b""
        if response is None:
            if isinstance(event, Failure):
                raise ApiError.of(event, headers=exchange.headers)
            response, begin = await _open(request, exchange, shape), shape.start()
        # What belongs together goes out together: each write wakes the client.
        data = begin + (shape.error(ApiError.of(event)) if isinstance(event, Failure) else shape.event(event))
        if data:
            await response.write(data)
    begin = b""
    if response is None:
        response, begin = await _open(request, exchange, shape), shape.start()
    await response.write_eof(begin + (shape.end() if exchange.ok else b""))
    return response


async def _open(request: web.Request, exchange: Exchange, shape: Shape) -> web.StreamResponse:
    response = web.StreamResponse(headers=exchange.headers)
    response.content_type = shape.content_type
    response.headers["Cache-Control"] = "no-store"
    await response.prepare(request)
    return response
