"""The second look: what it learns, what it promises of sources it has not seen, and what it refuses."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from routers import second_look
from routers.evaluation.second_look import AS_SERVED, POOLED, judge
from routers.interface import RouterError
from routers.second_look import FILE, SIGNALS, SecondLook, beside, signals
from routers.training import attempts as kept
from routers.training.attempts import Attempts
from routers.training.export import write_second_look
from routers.training.questions import ORIGINS, Question
from routers.training.second_look import Lessons, fit, held_out, lessons, of_any, ship
from tests.routers.made import WIDTH, made_lessons

SHA256 = "ab" * 32


@pytest.fixture(scope="module")
def some() -> Lessons:
    return made_lessons()


@pytest.fixture(scope="module")
def artifact(some: Lessons, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "probe"
    ship(some, folder, SHA256)
    return folder


def test_what_only_the_attempt_shows_is_found_on_sources_that_never_trained(some: Lessons) -> None:
    verdict = judge(some, {"mf": some.first_score, "knn": some.first_score}, np.arange(len(some.weak)) % 7.0, draws=60)
    apgr = {row.router: row.apgr for row in verdict.rows if row.sources == "mmlu"}
    assert not ORIGINS["mmlu"].trains
    assert apgr["combined"] > apgr["mf"] + 0.05
    assert apgr["combined"] >= apgr["first-token rule"] - 0.02
    assert apgr["oracle"] > apgr["combined"]
    assert verdict.lead_interval[0] > 0


def test_only_looks_at_the_attempt_throw_answers_away(some: Lessons) -> None:
    verdict = judge(some, {"mf": some.first_score}, np.ones(len(some.weak)), draws=20)
    pooled = {row.router: row for row in verdict.rows if row.sources == POOLED}
    assert pooled["mf"].thrown_away == pooled["length"].thrown_away == 0
    assert 0 < pooled["combined"].thrown_away == pooled["combined"].cpt[0] < 1


def test_the_rule_is_judged_as_served_too_on_the_first_tokens_that_an_answer_has(some: Lessons) -> None:
    def apgr(lessons: Lessons) -> list[float]:
        verdict = judge(lessons, {"mf": lessons.first_score}, np.ones(len(lessons.weak)), draws=2)
        rows = {row.router: row for row in verdict.rows if row.sources == POOLED}
        assert rows[AS_SERVED].thrown_away > 0
        assert rows[AS_SERVED].error is not None
        return [rows[name].apgr for name in ("first-token rule", AS_SERVED)]

    alike, telling_nothing = apgr(some), apgr(replace(some, own=np.tile(some.own[:1], (len(some.weak), 1))))
    assert alike[0] == alike[1] == telling_nothing[0]
    assert telling_nothing[1] < alike[0] - 0.03


def test_no_source_is_judged_by_what_was_trained_on_it(some: Lessons) -> None:
    here = some.source == "crux"
    changed = replace(some, weak=np.where(here, 1 - some.weak, some.weak))
    assert held_out(some)[here] == pytest.approx(held_out(changed)[here])
    assert held_out(some)[~here & (some.source != "mmlu")] != pytest.approx(
        held_out(changed)[~here & (some.source != "mmlu")]
    )


def test_benchmarks_never_train(some: Lessons, tmp_path: Path) -> None:
    benchmark = some.source == "mmlu"
    changed = replace(some, weak=np.where(benchmark, 1 - some.weak, some.weak))
    assert ship(some, tmp_path / "a", SHA256).version == ship(changed, tmp_path / "b", SHA256).version


def test_the_artifact_says_what_its_training_computed(some: Lessons, artifact: Path) -> None:
    look = SecondLook.load(artifact)
    trained = fit(some.rows(np.array([ORIGINS[name].trains for name in some.source.tolist()])))
    for row in range(0, 40, 5):
        said = look.judge(
            some.first_score[row], some.hidden[row].astype(np.float32), [some.signals[row, 0]], [some.signals[row, 1]]
        )
        alike = replace(some, signals=np.tile(some.signals[:, :2], 2))
        assert said == pytest.approx(trained.score(alike)[row], abs=1e-4)


def test_scores_can_be_believed_as_probabilities_on_sources_left_out(some: Lessons, artifact: Path) -> None:
    calibration = SecondLook.load(artifact).calibration
    trains = np.array([ORIGINS[name].trains for name in some.source.tolist()])
    scores, outcomes = held_out(some.rows(trains)), some.rows(trains).outcome
    bins = np.array_split(np.argsort(scores, kind="stable"), 10)
    by_hand = sum(len(rows) * abs(scores[rows].mean() - outcomes[rows].mean()) for rows in bins) / len(scores)
    assert calibration.expected_calibration_error == pytest.approx(by_hand, abs=0.01)
    assert calibration.expected_calibration_error < 0.05


def test_thresholds_for_a_share_come_from_its_own_scores(artifact: Path) -> None:
    calibration = SecondLook.load(artifact).calibration
    assert 0 < calibration.threshold(0.9) < calibration.threshold(0.1) < 1


def test_a_rule_without_hidden_states_takes_none(some: Lessons, tmp_path: Path) -> None:
    ship(of_any([some, some]), tmp_path / second_look.RULE, "")
    look = SecondLook.load(tmp_path / second_look.RULE)
    assert look.width == 0
    sure, unsure = look.judge(0.6, None, [0.1, 0.2], [0.95, 0.9]), look.judge(0.6, None, [2.5, 2.0], [0.05, 0.1])
    assert 0 < sure < unsure < 1


def test_what_the_user_had_learnt_comes_before_what_is_shipped_and_the_rule_comes_last(
    some: Lessons, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_look, "SHIPPED", tmp_path / "shipped")
    rule = ship(of_any([some]), tmp_path / "shipped" / second_look.RULE, "").version
    shutil.copytree(artifact, tmp_path / "shipped" / SHA256[:16])
    model = tmp_path / "model.gguf"
    assert SecondLook.find(model, "cd" * 32).version == rule
    assert SecondLook.find(model, SHA256).version == SecondLook.load(artifact).version
    own = ship(some, beside(model, SHA256), "ef" * 32).version
    assert SecondLook.find(model, SHA256).version == own


@pytest.mark.parametrize(
    ("hidden", "entropies", "margins", "message"),
    [
        (None, [1.0], [0.5], "no hidden state"),
        (np.ones(WIDTH + 1), [1.0], [0.5], f"size {WIDTH + 1}"),
        (np.full(WIDTH, np.nan), [1.0], [0.5], "not numbers"),
        (np.ones(WIDTH), [np.nan], [0.5], "not numbers"),
        (np.ones(WIDTH), [np.inf], [0.5], "not numbers"),
    ],
)
def test_signals_that_cannot_be_judged_are_refused(
    artifact: Path, hidden: np.ndarray | None, entropies: list[float], margins: list[float], message: str
) -> None:
    with pytest.raises(RouterError, match=message):
        SecondLook.load(artifact).judge(0.6, hidden, entropies, margins)


@pytest.mark.parametrize(("entropies", "margins"), [([], []), ([1.0], [0.1, 0.2])])
def test_tokens_without_both_signals_are_a_mistake_of_the_caller(entropies: list[float], margins: list[float]) -> None:
    with pytest.raises(ValueError, match="one each per token"):
        signals(entropies, margins)


def test_a_missing_or_damaged_artifact_is_refused_in_one_line(artifact: Path, tmp_path: Path) -> None:
    broken = []
    for name, damage in {
        "no graph": lambda folder: (folder / FILE).unlink(),
        "no calibration": lambda folder: (folder / "calibration.json").unlink(),
        "cut": lambda folder: (folder / FILE).write_bytes((folder / FILE).read_bytes()[:200]),
        "another version": lambda folder: (folder / "calibration.json").write_text(
            json.dumps(json.loads((folder / "calibration.json").read_text()) | {"version": "other"})
        ),
    }.items():
        shutil.copytree(artifact, tmp_path / name)
        damage(tmp_path / name)
        broken.append(tmp_path / name)
    shutil.copytree(artifact, tmp_path / "other signals")
    version = SecondLook.load(artifact).version
    write_second_look(
        tmp_path / "other signals" / FILE,
        hidden=np.ones(WIDTH, np.float32),
        plain=np.ones(SIGNALS, np.float32),
        intercept=0.0,
        strong=0.8,
        metadata={"version": version},
    )
    for folder in [*broken, tmp_path / "other signals", tmp_path / "nowhere"]:
        with pytest.raises(RouterError) as refused:
            SecondLook.load(folder)
        assert "\n" not in str(refused.value), folder


def test_weights_that_are_no_numbers_are_refused(some: Lessons, tmp_path: Path) -> None:
    ship(some, tmp_path, SHA256)
    write_second_look(
        tmp_path / FILE,
        hidden=np.full(WIDTH, np.nan, np.float32),
        plain=np.ones(1 + SIGNALS, np.float32),
        intercept=0.0,
        strong=0.8,
        metadata={"version": "x"},
    )
    with pytest.raises(RouterError, match="not numbers"):
        SecondLook.load(tmp_path)


def test_judging_imports_nothing_that_training_needs() -> None:
    heavy = "{'torch', 'sklearn', 'scipy', 'pandas', 'pyarrow', 'onnx', 'models', 'daemon'}"
    code = f"import sys, routers.second_look; found = {heavy} & set(sys.modules); sys.exit(str(found) if found else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _attempts(keys: list[str]) -> Attempts:
    count = len(keys)
    return Attempts(
        np.array(keys), np.ones(count, np.bool_), *(np.ones((count, 4), np.float16) for _ in range(2)),
        *(kept.padded([[0.5, 0.25]] * count, kept.WATCHED) for _ in range(2)), kept.padded([[]] * count, kept.CHOICES),
    )  # fmt: skip


def test_where_letters_were_chosen_from_only_the_letters_say_how_sure_the_model_was() -> None:
    questions = [Question("mmlu_pro", "which", "A", 1.0, choices=2), Question("crux", "what", "1", 1.0, "literal", 0)]
    found = replace(
        _attempts([question.key for question in questions]),
        label_logprobs=kept.padded([[np.log(0.003), np.log(0.001)], []], kept.CHOICES),
    )
    learnt = lessons(questions, found, [0.5, 0.5])
    chosen, written = learnt.signals
    assert chosen == pytest.approx([0.5623, 0.5, 0.5623, 0.5], abs=1e-4)
    assert written == pytest.approx([0.5, 0.5, 0.375, 0.375])
    assert learnt.own == pytest.approx(np.array([written, written]))


def test_doubt_never_counts_for_an_answer_whatever_the_questions_suggest(some: Lessons) -> None:
    contrary = fit(replace(some, weak=1 - some.weak))
    assert (contrary.plain * np.array([-1, -1, 1, -1, 1]) >= 0).all()
    assert (fit(some).plain != 0).any()


def test_what_does_not_help_on_sources_left_out_is_left_out(some: Lessons) -> None:
    noise = np.random.default_rng(1).normal(size=some.hidden.shape)
    assert not fit(replace(some, hidden=noise, first_score=np.full(len(some.weak), 0.6))).hidden.any()
    assert fit(some).hidden.any()


def test_an_answer_of_one_token_is_judged_where_its_hidden_state_has_no_weight(some: Lessons, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(size=some.hidden.shape)
    ship(replace(some, hidden=noise, first_score=np.full(len(some.weak), 0.6)), tmp_path / "plain", SHA256)
    look = SecondLook.load(tmp_path / "plain")
    assert look.width == 0
    assert 0 < look.judge(0.6, None, [0.1], [0.9]) < look.judge(0.6, None, [2.5], [0.1]) < 1


def test_attempts_are_kept_in_order_and_once_each(tmp_path: Path) -> None:
    assert kept.read(tmp_path / "none") is None
    for keys in (["b", "a"], ["c", "a"]):
        kept.append(tmp_path, _attempts(keys))
    found = kept.read(tmp_path)
    assert found is not None
    assert found.key.tolist() == ["b", "a", "c"]
    assert np.isnan(found.entropies[:, 2:]).all()
    assert np.isnan(found.label_logprobs).all()


def test_a_damaged_shard_is_named_with_the_remedy(tmp_path: Path) -> None:
    kept.append(tmp_path, _attempts(["a"]))
    (shard,) = tmp_path.iterdir()
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(RouterError, match="delete it"):
        kept.read(tmp_path)


@pytest.mark.parametrize(
    ("kind", "gold", "answer", "right"),
    [
        ("choice", "B", "B", True),
        ("choice", "B", "A", False),
        ("number", "1,200", "So she pays 3 * 400 = $1200.00 in all.", True),
        ("number", "45", "45 is what I thought, but it is 46", False),
        ("number", "45", "no idea", False),
        ("literal", "[(1, 'a')]", '```python\n[(1, "a")]\n```', True),
        ("literal", "'x'", "assert f(1) == 'x'", True),
        ("literal", "3", "__import__('os').getcwd()", False),
        ("literal", "3", "", False),
    ],
)
def test_answers_are_marked_by_what_they_say(kind: str, gold: str, answer: str, right: bool) -> None:
    assert Question("made", "?", gold, 1.0, kind).is_right(answer) is right  # type: ignore[arg-type]
