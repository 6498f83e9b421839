"""Asking a model and reading what came."""

from typing import Any

from models.cloud.model import CloudModel
from models.interface import ChatRequest, Event, Failure, TextDelta


def ask(text: str, **fields: Any) -> ChatRequest:
    return ChatRequest(messages=[{"role": "user", "content": text}], **fields)


async def events(model: CloudModel, request: ChatRequest) -> list[Event]:
    return [event async for event in model.chat(request)]


def text(answer: list[Event], choice: int = 0) -> str:
    return "".join(event.text for event in answer if isinstance(event, TextDelta) and event.choice == choice)


def failure(answer: list[Event]) -> Failure:
    """The one failure that ends the answer."""
    found = [event for event in answer if isinstance(event, Failure)]
    assert found == answer[-1:], answer
    return found[0]
