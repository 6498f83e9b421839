"""Anthropic's wire format: `/v1/messages`, as its SDKs and Claude Code speak it."""

from dataclasses import replace

from aiohttp import web

from daemon.api.answering import answer
from daemon.api.anthropic_message import MessageShape
from daemon.api.anthropic_request import CountBody, MessagesBody
from daemon.api.errors import ApiError
from daemon.api.explain import new_request_id
from daemon.api.reading import read
from daemon.api.wires import is_anthropic
from daemon.api.wish import asked
from daemon.config import Routing
from daemon.dispatcher import Dispatcher
from models.client import WorkerGoneError
from models.interface import ChatRequest

IMAGE_TOKENS = 1600
"""What Anthropic counts for the largest picture that it does not scale down."""


class Anthropic:
    def __init__(self, dispatcher: Dispatcher, routing: Routing) -> None:
        self._dispatcher = dispatcher
        self._routing = routing

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/messages", self.messages),
            web.post("/v1/messages/count_tokens", self.count_tokens),
        ]

    async def messages(self, request: web.Request) -> web.StreamResponse:
        body, raw, wishes = await read(request, MessagesBody)
        ask = asked(body.model, request.headers, wishes, self._routing)
        chat = body.request(raw, request.headers)
        return await answer(request, self._dispatcher, chat, ask, "anthropic", MessageShape, body.stream)

    async def count_tokens(self, request: web.Request) -> web.Response:
        """By the local model's tokenizer, so that nothing leaves the machine for it."""
        body, raw, _ = await read(request, CountBody)
        words, images = _without_media(body.request(raw, request.headers))
        try:
            tokens = await self._dispatcher.count_tokens(words)
        except ValueError as error:
            raise ApiError(400, str(error)) from None
        except WorkerGoneError as error:
            raise ApiError(503, f"Tokens cannot be counted now: {error}") from None
        return web.json_response({"input_tokens": tokens + IMAGE_TOKENS * images})


def _without_media(chat: ChatRequest) -> tuple[ChatRequest, int]:
    """`chat` with its text alone, and the number of other parts."""
    images, messages = 0, []
    for message in chat.messages:
        if isinstance(content := message.get("content"), list):
            text = [part for part in content if part["type"] == "text"]
            images += len(content) - len(text)
            message = {**message, "content": text}
        messages.append(message)
    return replace(chat, messages=messages), images


async def name_request(request: web.Request, response: web.StreamResponse) -> None:
    """For the application's `on_response_prepare`: the header that Anthropic's SDKs read the request's id from."""
    if is_anthropic(request.path) and "request-id" not in response.headers:
        response.headers["request-id"] = response.headers.get("x-upcall-request-id") or new_request_id()
