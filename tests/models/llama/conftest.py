"""The embedded default model, loaded once for all tests of the engine, and a short way to ask it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from models.interface import ChatModel, ChatRequest, Confidence, Event, Failure, Finish, TextDelta, Usage
from models.llama.model import LlamaModel
from models.llama.settings import LlamaSettings


@dataclass
class Answer:
    """The events of one answer, sorted by kind."""

    events: list[Event] = field(default_factory=list)

    def all(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def text(self, choice: int = 0) -> str:
        return "".join(event.text for event in self.all(TextDelta) if event.choice == choice)

    @property
    def failure(self) -> Failure:
        return self.all(Failure)[0]

    @property
    def finish(self) -> Finish:
        return self.all(Finish)[0]

    @property
    def usage(self) -> Usage:
        return self.all(Usage)[0]

    @property
    def confidences(self) -> list[Confidence]:
        return self.all(Confidence)


Ask = Callable[..., Awaitable[Answer]]


async def ask(model: ChatModel, content: Any, **fields: Any) -> Answer:
    """Put one user message (or a list of messages) to `model`; greedy and short unless `fields` say otherwise."""
    messages = content if isinstance(content, list) and "role" in content[0] else [{"role": "user", "content": content}]
    request = ChatRequest(messages=messages, **{"temperature": 0.0, "max_tokens": 24} | fields)
    return Answer([event async for event in model.chat(request)])


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def model(smollm2: Path) -> AsyncIterator[LlamaModel]:
    model = LlamaModel(LlamaSettings(path=str(smollm2), name="smollm2", slots=4))
    yield model
    await model.close()


@pytest.fixture(scope="session")
def settings(smollm2: Path) -> LlamaSettings:
    return LlamaSettings(path=str(smollm2), name="smollm2", slots=2, context_length=2048)
