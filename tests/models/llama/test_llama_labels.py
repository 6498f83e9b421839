"""Label probabilities: what the model would say next, told without an answer."""

import asyncio
import hashlib
import math
from pathlib import Path

import pytest

from models.llama.errors import RefusedError
from models.llama.model import LlamaModel
from models.llama.settings import LlamaSettings
from tests.models.llama.conftest import ask

pytestmark = pytest.mark.asyncio(loop_scope="session")

COUNT = "One, two, three, four, five. 1, 2, 3, 4, "


async def test_labels_are_weighed_by_how_well_they_continue_the_text(model: LlamaModel) -> None:
    labelled = await model.label_logprobs(COUNT, ["5", "2"])
    fits, does_not = labelled.logprobs

    assert does_not < fits < 0
    assert math.exp(fits) + math.exp(does_not) <= 1


async def test_a_text_is_weighed_the_same_beside_other_work(model: LlamaModel) -> None:
    alone = (await model.label_logprobs(COUNT, ["5"])).logprobs[0]
    _, *together = await asyncio.gather(
        ask(model, "Tell me a story."), *(model.label_logprobs(COUNT, ["5"]) for _ in range(6))
    )

    for labelled in together:
        assert labelled.logprobs[0] == pytest.approx(alone, abs=0.5)


async def test_the_answer_names_the_model_by_the_hash_of_its_file(model: LlamaModel, smollm2: Path) -> None:
    labelled = await model.label_logprobs("", [])

    assert labelled.logprobs == ()
    assert labelled.model_sha256 == sha256_of(smollm2)


@pytest.mark.parametrize("label", ["", "no token is this long, surely"])
async def test_a_label_of_several_tokens_is_refused(model: LlamaModel, label: str) -> None:
    with pytest.raises(RefusedError, match="not one token"):
        await model.label_logprobs(COUNT, [label])


async def test_a_text_longer_than_the_context_is_refused(settings: LlamaSettings) -> None:
    model = LlamaModel(settings)
    try:
        with pytest.raises(RefusedError, match="2047 can be judged"):
            await model.label_logprobs("word " * 5000, ["1"])
    finally:
        await model.close()


async def test_giving_up_frees_the_engine(settings: LlamaSettings) -> None:
    model = LlamaModel(settings)
    try:
        await model.label_logprobs("Hello", ["1"])
        waiting = [asyncio.create_task(model.label_logprobs(f"{n} word " * 300, ["1"])) for n in range(8)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (await ask(model, "Say hello.", max_tokens=2)).finish
    finally:
        await model.close()


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
