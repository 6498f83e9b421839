"""A conversation's earlier turns are not embedded again with each request, and nothing else changes by that."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from daemon.routing import turn_vectors
from daemon.routing.turn_vectors import TurnVectors
from routers.encoder import Encoder

TURNS = ["What is a monad?", "Prove that every finite integral domain is a field.", "👍"]


class Counted(Encoder):
    """The real encoder, noting what it was asked."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked: list[str] = []

    def embed(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        self.asked += prompts
        return super().embed(prompts)


@pytest.fixture
def encoder(use_encoder: Path) -> Counted:
    return Counted(use_encoder)


def test_each_request_of_a_conversation_embeds_only_its_new_turn(encoder: Counted) -> None:
    vectors = TurnVectors()
    for length in range(1, len(TURNS) + 1):
        vectors.of(encoder, TURNS[:length])
    assert encoder.asked == TURNS


def test_remembered_vectors_are_those_of_the_encoder_in_the_order_of_the_turns(encoder: Counted) -> None:
    vectors = TurnVectors()
    vectors.of(encoder, TURNS)
    assert np.array_equal(vectors.of(encoder, TURNS[::-1]), Encoder.embed(encoder, TURNS[::-1]))


def test_the_turns_not_asked_for_the_longest_are_forgotten(encoder: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_vectors, "REMEMBERED", 2)
    vectors = TurnVectors()
    for turn in [*TURNS[:2], TURNS[0], TURNS[2]]:  # the first is asked for again, so that the second goes
        vectors.of(encoder, [turn])
    encoder.asked.clear()
    vectors.of(encoder, [TURNS[0]])
    vectors.of(encoder, [TURNS[1]])
    assert encoder.asked == [TURNS[1]]


def test_more_turns_than_are_remembered_are_all_embedded(encoder: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_vectors, "REMEMBERED", 2)
    assert TurnVectors().of(encoder, TURNS).shape == (3, 512)


def test_another_encoder_is_asked_anew(encoder: Counted, use_encoder: Path) -> None:
    vectors, other = TurnVectors(), Counted(use_encoder)
    vectors.of(encoder, TURNS)
    vectors.of(other, TURNS)
    assert other.asked == TURNS


def test_no_text_of_a_prompt_is_remembered(encoder: Counted) -> None:
    vectors = TurnVectors()
    vectors.of(encoder, TURNS)
    assert {type(key) for key in vectors._known} == {bytes}
    assert {len(key) for key in vectors._known} == {16}
