import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from routers.calibration import measured, shipped
from routers.causal_llm import CausalRouter, mean_label, question
from routers.interface import RouterError
from routers.registry import load
from routers.training.calibrate import platt

SHA256 = "ab" * 32


class Counting:
    """A judge that finds a prompt the harder the more characters it has."""

    model_sha256 = SHA256

    def log_probabilities(self, text: str, labels: Sequence[str]) -> list[float]:
        centre = 1 + 4 * min(len(text.rsplit("Question:", 1)[1]) / 500, 1)
        return [-abs(float(label) - centre) for label in labels]


class Silent:
    """A judge that gives no label any chance."""

    model_sha256 = SHA256

    def log_probabilities(self, text: str, labels: Sequence[str]) -> list[float]:
        return [float("-inf") if index % 2 else float("nan") for index, _ in enumerate(labels)]


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """A folder with the calibration of one model."""
    folder = tmp_path / SHA256[:12]
    folder.mkdir()
    (folder / "causal_llm.json").write_text(json.dumps({"version": "1", "slope": 0.8, "intercept": -2.0}))
    scores = np.linspace(0.2, 0.7, 50)
    measured("causal_llm", "1", scores, date="2026-01-01", sample="a line").save(folder / "calibration.json")
    return tmp_path


def test_every_string_has_a_score_between_0_and_1(artifacts: Path, hostile: str) -> None:
    for judge in (Counting(), Silent()):
        score = CausalRouter(judge, artifacts).score([hostile])
        assert score.shape == (1,)
        assert score.dtype == np.float32
        assert 0 <= score[0] <= 1


def test_no_prompts_have_no_scores(artifacts: Path) -> None:
    assert CausalRouter(Counting(), artifacts).score([]).shape == (0,)


def test_what_the_judge_finds_harder_scores_higher(artifacts: Path) -> None:
    scores = CausalRouter(Counting(), artifacts).score(["Hi", "Explain " * 10, "Explain " * 40])
    assert np.all(np.diff(scores) > 0)


def test_a_judge_without_an_answer_stands_in_the_middle() -> None:
    assert mean_label([Silent().log_probabilities("", "12345")]).tolist() == [3.0]


def test_a_prompt_cannot_push_out_the_examples() -> None:
    assert question("x" * 100_000).startswith("Rate from 1")
    assert len(question("x" * 100_000)) < 1_000


def test_a_model_without_a_calibration_is_told_what_to_run(artifacts: Path) -> None:
    class Stranger(Counting):
        model_sha256 = "cd" * 32

    with pytest.raises(RouterError, match="upcall judge train"):
        CausalRouter(Stranger(), artifacts)
    with pytest.raises(RouterError, match="each local model"):
        shipped("causal_llm")


def test_without_a_model_to_ask_there_is_a_clear_error() -> None:
    with pytest.raises(RouterError, match="asks the local model"):
        load("causal_llm", Path("unused"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"version": "1", "intercept": 0}',
        '{"version": "1", "slope": NaN, "intercept": 0}',
    ],
)
def test_a_damaged_calibration_is_a_clear_error(artifacts: Path, text: str) -> None:
    (artifacts / SHA256[:12] / "causal_llm.json").write_text(text)
    with pytest.raises(RouterError, match="damaged"):
        CausalRouter(Counting(), artifacts)


def test_labels_that_order_prompts_the_wrong_way_leave_everyone_at_the_mean_outcome() -> None:
    lead = np.linspace(1, 5, 100)
    outcome = np.linspace(0.9, 0.5, 100)
    slope, intercept = platt(lead, outcome, np.ones(100))
    rate = 1 / (1 + np.exp(-(slope * lead + intercept)))

    assert slope > 0
    assert rate == pytest.approx(np.full(100, 0.7), abs=0.01)
