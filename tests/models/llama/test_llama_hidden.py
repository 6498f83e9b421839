"""The hidden state at the start of an answer: for whom it is switched on, and at no one's cost."""

import asyncio
import base64
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from models.interface import Hidden
from models.llama.model import LlamaModel
from models.llama.settings import LlamaSettings
from tests.models.llama.conftest import Answer, ask, assert_same

pytestmark = pytest.mark.asyncio(loop_scope="session")

WIDTH = 576
LIKELY = {"logprobs": True, "top_logprobs": 10}
FIRST: dict[str, Any] = {"logit_bias": {"28": 100.0}, "max_tokens": 3}
"""One and the same first token, where near equals would decide what state is looked at."""
QUESTIONS = [f"Name {number} things that people do in {place}." for number, place in enumerate(("Lisbon", "Oslo"), 2)]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def seeing(settings: LlamaSettings) -> AsyncIterator[LlamaModel]:
    model = LlamaModel(dataclasses.replace(settings, hidden_state=True, slots=3))
    yield model
    await model.close()


def state(answer: Answer) -> NDArray[np.float64]:
    (event,) = answer.all(Hidden)
    return np.frombuffer(base64.b64decode(event.values), "<f2").astype(np.float64)


async def test_an_answer_comes_with_one_hidden_state_of_the_models_width(seeing: LlamaModel) -> None:
    values = state(await ask(seeing, QUESTIONS[0], **FIRST))
    assert values.shape == (WIDTH,)
    assert np.isfinite(values).all()
    assert values.std() > 0.1


async def test_hidden_states_tell_questions_apart_and_come_again_for_the_same_one(seeing: LlamaModel) -> None:
    first, again, other = [state(await ask(seeing, QUESTIONS[each], **FIRST)) for each in (0, 0, 1)]
    assert np.linalg.norm(first - again) < 0.5 * np.linalg.norm(first - other)


async def test_a_hidden_state_is_its_own_answers_beside_long_prompts_of_others(seeing: LlamaModel) -> None:
    alone = [state(await ask(seeing, question, **FIRST)) for question in QUESTIONS]
    long = "The quick brown fox jumps over the lazy dog. " * 100
    *together, _, _ = await asyncio.gather(
        *(ask(seeing, question, **FIRST) for question in QUESTIONS), ask(seeing, long), ask(seeing, f"Once. {long}")
    )
    for index, answer in enumerate(together):
        own, others = (np.linalg.norm(state(answer) - alone[each]) for each in (index, 1 - index))
        assert own < 0.5 * others


async def test_each_choice_has_its_own_hidden_state(seeing: LlamaModel) -> None:
    answer = await ask(seeing, QUESTIONS[0], n=3, temperature=1.0, seed=1)
    assert sorted(event.choice for event in answer.all(Hidden)) == [0, 1, 2]


async def test_answers_are_the_same_with_and_without_hidden_states(seeing: LlamaModel, model: LlamaModel) -> None:
    without = await ask(model, QUESTIONS[0], **LIKELY)
    assert not without.all(Hidden)
    assert_same(await ask(seeing, QUESTIONS[0], **LIKELY), without)
