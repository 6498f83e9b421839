from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="needs torch (make train-deps)")

from routers.features import SPAN, TYPICAL  # noqa: E402
from routers.references import References  # noqa: E402
from routers.sw_ranking import WIN  # noqa: E402
from routers.training import data as training_data  # noqa: E402
from routers.training import mf, pairs  # noqa: E402
from routers.training.export import write_mf  # noqa: E402
from routers.training.references import leads_by_others  # noqa: E402


def test_no_benchmark_prompt_is_trained_on(data: Path) -> None:
    banned = training_data.benchmark_prompts(data)
    for source in training_data.sources(data):
        assert not banned & set(source.prompts), source.name
    assert not banned & set(training_data.votes(data).prompts)


def test_no_question_of_a_benchmark_is_trained_on_with_other_choices(data: Path) -> None:
    asked = {training_data.stem(prompt) for prompt in training_data.benchmark_prompts(data)}
    for source in training_data.sources(data):
        assert not asked & {training_data.stem(prompt) for prompt in source.prompts}, source.name


def test_golden_labels_are_chances_and_nearly_every_question_has_one(data: Path) -> None:
    (source,) = (source for source in training_data.sources(data) if source.name == "mmlu_questions")
    labels = source.quality(source.weak)
    known = labels[~np.isnan(labels)]

    assert len(known) > 0.95 * len(source.prompts) > 1500
    assert known.min() >= 0
    assert known.max() <= 1
    assert 0.3 < known.mean() < 0.7, "a model that only guesses teaches nothing"


def test_a_question_is_the_same_whatever_choices_and_punctuation_it_has() -> None:
    first, second = "Who was the first American in space?\nA. Glenn\nB. Shepard", "who was the first american in space"
    assert training_data.stem(first) == training_data.stem(second)
    assert training_data.stem("Which?\nA. One") != training_data.stem("Which?\nA. Two")


def test_nothing_whose_licence_forbids_shipping_is_trained_on(data: Path) -> None:
    trained = {source.name for source in training_data.sources(data)}
    assert not trained & {"alpaca_eval", "routerbench_0shot_partial", "code_humaneval_mbpp_plus"}


def _source(n: int = 400) -> tuple[training_data.Source, np.ndarray]:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(n, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    hard = (vectors[:, 0] > 0).astype(np.float32)
    outcomes = {"big": np.ones(n, dtype=np.float32), "small": 1 - hard}
    return training_data.Source(
        "made", [f"{row}" for row in range(n)], outcomes, ("big",), ("small",), ["one"] * n
    ), vectors


def test_training_finds_what_makes_prompts_hard_and_the_export_agrees_with_torch(tmp_path: Path) -> None:
    source, vectors = _source()
    lengths = np.random.default_rng(1).uniform(0, 12, len(vectors)).astype(np.float32)
    comparisons = pairs.compare([source], [np.ones(len(vectors), dtype=bool)])
    trained = mf.fit(vectors, lengths, comparisons, mf.Settings(steps=60, noise=0.04))
    typical = np.full(len(vectors), TYPICAL, dtype=np.float32)
    assert np.corrcoef(trained.lead(vectors, typical), vectors[:, 0])[0, 1] > 0.9

    model = trained.model
    path = tmp_path / "mf.onnx"
    write_mf(
        path,
        projection=model.projection.detach().numpy(),
        models=model.models().detach().numpy(),
        direction=model.direction.detach().numpy(),
        strong=pairs.STRONG,
        weak=pairs.WEAK,
        mean=trained.mean,
        typical_length=TYPICAL,
        length_span=SPAN,
        calibration=(1.5, -0.2),
        metadata={"version": "test"},
    )
    exported = ort.InferenceSession(path).run(None, {"embedding": vectors, "log_length": lengths[:, None]})[0]
    expected = torch.sigmoid(torch.from_numpy(1.5 * trained.lead(vectors, lengths) - 0.2)).numpy()
    assert exported == pytest.approx(expected, abs=1e-4)


def test_the_same_seed_gives_the_same_weights() -> None:
    source, vectors = _source(100)
    comparisons = pairs.compare([source], [np.ones(100, dtype=bool)])
    lengths = np.linspace(0, 1, 100, dtype=np.float32)
    first, second = (mf.fit(vectors, lengths, comparisons, mf.Settings(steps=20)) for _ in range(2))
    assert np.array_equal(first.lead(vectors, lengths), second.lead(vectors, lengths))


def test_ties_count_as_a_half() -> None:
    source, _ = _source(50)
    comparisons = pairs.compare([source], [np.ones(50, dtype=bool)])
    equal = source.outcomes["big"] == source.outcomes["small"]
    versus_big = comparisons.first == 0
    assert set(comparisons.outcome[versus_big & equal[comparisons.prompt]].tolist()) == {0.5}


def test_harness_text_is_cut_from_prompts() -> None:
    framed = 'Which gas?\nA) Helium\nB) Neon\nPrint only a single choice from "A" or "B" without explanation.\nAnswer:'
    assert training_data.question(framed) == "Which gas?\nA) Helium\nB) Neon"
    assert training_data.question("## Question: \n\nHow many?\n\n\n## Instruction \n\nAnswer in JSON.") == "How many?"
    assert training_data.question("Answer:") != ""


def test_what_a_prompts_own_vote_says_moves_no_threshold() -> None:
    random = np.random.default_rng(0)
    votes = random.standard_normal((12, 4)).astype(np.float32)
    tiers = {"first": np.arange(12) % 2, "second": np.full(12, 2)}

    def leads_of(outcome: NDArray[np.int_]) -> NDArray[np.float32]:
        known = References(
            np.zeros(4, np.float32), np.eye(4, dtype=np.float32), votes, {**tiers, "outcome": outcome}, "", 1, 0
        )
        return leads_by_others(known, votes, np.arange(12) == 3)

    outcome = random.integers(0, WIN + 1, 12)
    changed = np.where(np.arange(12) == 3, WIN - outcome, outcome)
    other = np.where(np.arange(12) == 4, WIN - outcome, outcome)
    assert leads_of(outcome) == leads_of(changed)
    assert leads_of(outcome) != leads_of(other)
