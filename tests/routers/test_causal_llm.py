import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from routers.causal_llm import CausalRouter, mean_label, question
from routers.interface import RouterError


class Counting:
    """A judge that finds a prompt the harder the more characters it has."""

    def log_probabilities(self, text: str, labels: Sequence[str]) -> list[float]:
        centre = 1 + 4 * min(len(text.rsplit("Question:", 1)[1]) / 500, 1)
        return [-abs(float(label) - centre) for label in labels]


class Silent:
    """A judge that gives no label any chance."""

    def log_probabilities(self, text: str, labels: Sequence[str]) -> list[float]:
        return [float("-inf") if index % 2 else float("nan") for index, _ in enumerate(labels)]


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    file = tmp_path / "causal_llm.json"
    file.write_text(json.dumps({"version": "1", "slope": 0.8, "intercept": -2.0}))
    return file


def test_every_string_has_a_score_between_0_and_1(artifact: Path, hostile: str) -> None:
    for judge in (Counting(), Silent()):
        score = CausalRouter(judge, artifact).score([hostile])
        assert score.shape == (1,)
        assert 0 <= score[0] <= 1


def test_what_the_judge_finds_harder_scores_higher(artifact: Path) -> None:
    scores = CausalRouter(Counting(), artifact).score(["Hi", "Explain " * 20, "Explain " * 60])
    assert np.all(np.diff(scores) > 0)


def test_a_judge_without_an_answer_stands_in_the_middle() -> None:
    assert mean_label(Silent(), "Hi") == 3.0


def test_a_prompt_cannot_push_out_the_examples() -> None:
    assert question("x" * 100_000).startswith("Rate from 1")
    assert len(question("x" * 100_000)) < 3_000


def test_a_missing_or_damaged_calibration_is_a_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "causal_llm.json"
    with pytest.raises(RouterError, match="missing"):
        CausalRouter(Counting(), file)
    for text in ("", "[]", '{"version": "1", "slope": NaN, "intercept": 0}'):
        file.write_text(text)
        with pytest.raises(RouterError, match="damaged"):
            CausalRouter(Counting(), file)
