"""What is said of the next token is made of numbers, also where the model rules tokens out altogether."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from models.frames import FROM_WORKER, Emit, FromWorker, Weighed
from models.interface import Confidence, Labelled, TextDelta
from models.llama.distribution import Distribution, logprob_entry
from models.llama.labels import LabelReader
from models.llama.sampler import Candidates

SIZE = 1000
POSSIBLE = slice(400, SIZE)


@pytest.fixture
def row() -> NDArray[np.float32]:
    """Logits of which the first 400 are of tokens that cannot be."""
    row = np.random.default_rng(0).normal(0, 3, SIZE).astype(np.float32)
    row[:400] = -np.inf
    return row


def test_a_token_ruled_out_adds_nothing_to_entropy_and_margin(row: NDArray[np.float32]) -> None:
    whole, possible = Distribution(row, np.empty_like(row)), Distribution(row[POSSIBLE])
    assert whole.is_number
    assert whole.entropy == pytest.approx(possible.entropy, rel=1e-5)
    assert whole.margin == pytest.approx(possible.margin, rel=1e-5)
    assert whole.logprob(whole.argmax) == pytest.approx(possible.logprob(possible.argmax), rel=1e-5)


def test_where_one_token_alone_can_be_nothing_is_unsure() -> None:
    row = np.full(SIZE, -np.inf, np.float32)
    row[7] = -2.0
    distribution = Distribution(row)
    assert (distribution.entropy, distribution.margin, distribution.logprob(7)) == (0, 1, 0)


def test_what_is_said_of_a_token_ruled_out_reaches_the_other_side(row: NDArray[np.float32]) -> None:
    distribution, reader = Distribution(row), LabelReader([3, 500])
    reader.sample(row, distribution.argmax, Candidates(SIZE))
    entry = logprob_entry(distribution, 3, SIZE, lambda token: b"%d" % token)
    frames: list[FromWorker] = [
        Emit(1, Confidence(distribution.entropy, distribution.margin)),
        Emit(2, TextDelta("3", logprobs=[entry])),
        Weighed(3, Labelled(reader.logprobs, "")),
    ]

    for frame in frames:
        there = FROM_WORKER.validate_json(FROM_WORKER.dump_json(frame))
        assert FROM_WORKER.dump_python(there, mode="json") == FROM_WORKER.dump_python(frame, mode="json")
    assert math.exp(entry["logprob"]) == math.exp(reader.logprobs[0]) == 0
    assert math.isfinite(reader.logprobs[0])
    assert all(math.isfinite(each["logprob"]) for each in entry["top_logprobs"])
