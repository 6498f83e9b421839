"""Questions asked many at a time: nothing lost, nothing mixed, and the same signals as a served answer carries."""

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from models.interface import Hidden
from models.llama.errors import LoadError
from models.llama.model import LlamaModel
from models.llama.quiz import WATCHED, Asked, Attempt, Quiz
from models.llama.settings import LlamaSettings
from tests.models.llama.conftest import ask

WIDTH = 576
CHOICES = [
    Asked(f"What is {first} + {second}?\nA. {first + second}\nB. {first}\nC. {first * second + 7}\nD. 0", tuple("ABCD"))
    for first, second in ((2, 3), (4, 5), (11, 8), (20, 22), (6, 1))
]
WORDS = Asked("Write a Python function that adds two numbers.", max_tokens=24)
"""The default model is sure how its answer to this begins: with a block of code."""


@pytest.fixture(scope="module")
def quiz(smollm2: Path) -> Iterator[Quiz]:
    quiz = Quiz(smollm2)
    yield quiz
    quiz.close()


def asked(quiz: Quiz, *questions: Asked) -> list[Attempt]:
    found = dict(quiz.ask(questions))
    assert sorted(found) == list(range(len(questions)))
    return [found[index] for index in sorted(found)]


def test_choices_are_answered_by_the_likeliest_letter_with_how_likely_each_was(quiz: Quiz) -> None:
    for attempt in asked(quiz, *CHOICES):
        assert attempt.answer == "ABCD"[int(np.argmax(attempt.label_logprobs))]
        assert 0.9 < sum(np.exp(attempt.label_logprobs)) <= 1, "asked where an answer has its letter"
        assert len(attempt.entropies) == len(attempt.margins) == 2
        assert attempt.at_prompt.shape == attempt.at_first.shape == (WIDTH,)
        assert not np.array_equal(attempt.at_prompt, attempt.at_first)


def test_a_question_is_answered_alike_alone_and_among_others_of_any_kind(quiz: Quiz) -> None:
    together = asked(quiz, *CHOICES[:2], WORDS, *CHOICES[2:])
    for question, attempt in zip(CHOICES[:2], together[:2], strict=True):
        (alone,) = asked(quiz, question)
        assert attempt.label_logprobs == pytest.approx(alone.label_logprobs, abs=0.5)
        assert attempt.entropies[0] == pytest.approx(alone.entropies[0], abs=0.5)
    assert "def" in together[2].answer


def test_answers_in_words_end_where_they_must_and_only_their_first_tokens_are_watched(quiz: Quiz) -> None:
    short, long = asked(quiz, Asked(WORDS.prompt, max_tokens=3), Asked(WORDS.prompt, max_tokens=40))
    assert len(short.entropies) == 3
    assert len(long.entropies) == WATCHED
    assert long.answer.startswith(short.answer)
    assert not long.label_logprobs


def test_a_question_longer_than_a_batch_is_left_out_and_keeps_nobody_waiting(quiz: Quiz) -> None:
    long = Asked("A word. " * 400 + CHOICES[0].prompt, tuple("ABCD"))
    assert [index for index, _ in quiz.ask([CHOICES[0], long, CHOICES[1]])] == [0, 2]


@pytest.mark.asyncio(loop_scope="session")
async def test_what_is_learnt_from_is_what_a_served_answer_carries(quiz: Quiz, smollm2: Path) -> None:
    attempt, other = asked(quiz, WORDS, CHOICES[0])
    model = LlamaModel(LlamaSettings(path=str(smollm2), name="served", context_length=1024, hidden_state=True))
    answer = await ask(model, WORDS.prompt, max_tokens=4)
    await model.close()

    assert answer.confidences[0].entropy == pytest.approx(attempt.entropies[0], abs=0.3)
    assert answer.confidences[0].margin == pytest.approx(attempt.margins[0], abs=0.2)
    (event,) = answer.all(Hidden)
    served = np.frombuffer(base64.b64decode(event.values), "<f2").astype(float)
    away, apart = (np.linalg.norm(served - each.at_first.astype(float)) for each in (attempt, other))
    assert away < 0.3 * apart


def test_a_file_that_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(LoadError) as refused:
        Quiz(file)
    assert "\n" not in str(refused.value)
