"""Finds out what answering a request takes, before it is decided who answers."""

import asyncio
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from daemon.config import Sensitive
from daemon.processes.workers import Workers
from daemon.routing.policy import Needs, Route, Wish
from daemon.routing.sensitive import Recogniser
from models.client import WorkerGoneError
from models.interface import CALL_ID_PREFIX, ChatRequest, Message, ModelStatus

MESSAGE_TOKENS = 16
"""More than any known chat template adds to a message."""
SHORT_BYTES = 1000
"""Looking at so little takes less time than handing it to a thread."""
ACCOUNT = {"user", "safety_identifier", "prompt_cache_key"}
"""OpenAI's fields for who asks."""
UNKNOWN_CALL_PREFIX = "call_unknown_"
"""Of the ids that are made up for clients which keep none: nobody knows who made these calls."""


class Appraiser:
    def __init__(self, sensitive: Sensitive, workers: Workers) -> None:
        self._off = sensitive.action == "off"
        self._recogniser = Recogniser(sensitive)
        self._workers = workers

    async def needs(self, request: ChatRequest, wish: Wish, local: ModelStatus) -> Needs:
        """What answering `request` takes; `local` is the local model as it is now, or was a moment ago."""
        foreign = _has_foreign_tools(request)
        said = _said(request)
        size = sum(len(str(each).encode("utf-8", "replace")) + MESSAGE_TOKENS for each in said)
        return Needs(
            images=any(_has_media(message.get("content")) for message in request.messages),
            tools=foreign or (bool(request.tools) and request.tool_choice != "none"),
            foreign_tools=foreign,
            tokens_fit=await self._fits(request, local, size),
            private=None if wish.allow_sensitive else await self._private(said, size),
            begun=_began(request.messages),
        )

    async def _private(self, said: Sequence[Mapping[str, Any]], size: int) -> str | None:
        if self._off:
            return None
        if size <= SHORT_BYTES:
            return self._recogniser.find(said)
        return await asyncio.to_thread(self._recogniser.find, said)

    async def _fits(self, request: ChatRequest, local: ModelStatus, most: int) -> bool:
        room = local.context_length - (request.max_tokens or 1)
        # No tokenizer makes more tokens than there are bytes, so that a short prompt need not be counted.
        if local.state != "ready" or most <= room or (await self._workers.local_status()).state != "ready":
            return True
        client = await self._workers.get("local")
        try:
            return client is None or await client.count_tokens(request) <= room
        except (ValueError, WorkerGoneError):
            return True  # The model itself will say what is wrong.


def _said(request: ChatRequest) -> list[Mapping[str, Any]]:
    """All that would go up, but for whose account it is, which says who asks and not what."""
    if request.verbatim:
        return [{name: value for name, value in request.verbatim.body.items() if name != "metadata"}]
    extra = {name: value for name, value in request.extra.items() if name not in ACCOUNT}
    return [*request.messages, *request.tools, request.response_format or {}, extra]


def _began(messages: Sequence[Message]) -> Route | None:
    """Who made the latest tool calls, going by their ids."""
    for message in reversed(messages):
        if calls := message.get("tool_calls"):
            id = str(calls[0].get("id"))
            if id.startswith(UNKNOWN_CALL_PREFIX):
                return None
            return "local" if id.startswith(CALL_ID_PREFIX) else "cloud"
    return None


def _has_foreign_tools(request: ChatRequest) -> bool:
    """Whether it has tools that only a provider knows, calls of such, or functions as OpenAI had them before tools."""
    offered = request.tools if request.tool_choice != "none" else ()
    made = (call for message in request.messages for call in message.get("tool_calls") or ())
    foreign = any(each.get("type", "function") != "function" for each in chain(offered, made))
    return foreign or bool(request.extra.get("functions"))


def _has_media(content: object) -> bool:
    return isinstance(content, list) and any(part.get("type") not in ("text", "refusal") for part in content)
