"""Picking tokens: short cuts change nothing about what is picked."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.llama.context import Model
from models.llama.sampler import Candidates, Sampler, Sampling
from models.llama.vocabulary import Vocabulary

PLAIN = {"temperature": 0.7, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "presence_penalty": 0, "frequency_penalty": 0}


class All(Candidates):
    """Leaves nothing out."""

    def fill_best(self, row: NDArray[np.float32], greatest: float, count: int) -> None:
        self.fill(row)


@pytest.fixture(scope="module")
def vocabulary(smollm2: Path) -> Vocabulary:
    return Model(str(smollm2), repack=False, on_progress=lambda _: True).vocabulary


@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0, 12.0])
@pytest.mark.parametrize(
    "special",
    [
        {},
        {"top_k": 0},
        {"temperature": 2.0, "top_k": 200, "top_p": 1.0, "min_p": 0.0},
        {"logit_bias": [(token, -100.0) for token in range(60)]},
        {"logit_bias": [(7, 100.0)]},
        {"temperature": 0.0, "logit_bias": [(3, 50.0), (4, -50.0)]},
        {"frequency_penalty": -2.0, "presence_penalty": 1.0},
    ],
)
def test_leaving_out_what_cannot_be_picked_changes_no_pick(
    vocabulary: Vocabulary, special: dict[str, object], spread: float
) -> None:
    sampling = Sampling(**{"seed": 7, **PLAIN, **special})  # type: ignore[arg-type]
    picks = []
    for candidates in (Candidates(vocabulary.size), All(vocabulary.size)):
        sampler = Sampler(sampling, vocabulary)
        rows = np.random.default_rng(5).normal(0, spread, (20, vocabulary.size)).astype(np.float32)
        picks.append([sampler.sample(row, int(row.argmax()), candidates) for row in rows])
    assert picks[0] == picks[1]
