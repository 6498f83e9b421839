"""The embedded default model, loaded once for all tests of the engine, and a short way to ask it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import zip_longest
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
    def logprobs(self) -> list[dict[str, Any]]:
        return [entry for event in self.all(TextDelta) for entry in event.logprobs]

    @property
    def confidences(self) -> list[Confidence]:
        return self.all(Confidence)


NEAR_TIE = 0.5
"""Nats. llama.cpp's sums depend on what else is in a step; on the default model that moves log-probabilities by 0.2."""


def assert_same(first: Answer, second: Answer) -> None:
    """Both answers, made greedily with `top_logprobs`, are the same up to a choice between near equals."""
    # The token that ends an answer has no text, and no entry of its own.
    end: dict[str, Any] = {"token": "", "top_logprobs": []}
    for one, other in zip_longest(first.logprobs, second.logprobs, fillvalue=end):
        if one["token"] != other["token"]:
            entries = [entry for entry in (one, other) if entry is not end]
            if len(entries) == 2 and not any(entry["token"] in _best(entry) for entry in entries):
                # A grammar chose among unlikely ones. What led up to here is the same, so their own chances compare.
                assert abs(one["logprob"] - other["logprob"]) < NEAR_TIE
                return
            for best in map(_best, entries):
                assert {one["token"], other["token"]} <= best.keys(), "neither answer's token is likely in the other"
                assert abs(best[one["token"]] - best[other["token"]]) < NEAR_TIE
            return
    assert first.text() == second.text()


def _best(entry: dict[str, Any]) -> dict[str, float]:
    return {top["token"]: top["logprob"] for top in entry["top_logprobs"]}


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
