from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="needs pyarrow (make train-deps)")

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from routers.calibration import shipped
from routers.evaluation import plots, runner
from routers.evaluation.benchmarks import Benchmark
from routers.evaluation.runner import Result, run, save


class Stopping:
    """Scores by length, and stops as if by Ctrl-C after some prompts."""

    name, version = "stopping", "1"

    def __init__(self, after: int) -> None:
        self.left = after

    def score(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return np.array([len(prompt) / 1000 for prompt in prompts], dtype=np.float32)


def test_an_evaluation_that_was_stopped_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [f"{'word ' * (row % 7)}{row}" for row in range(450)]
    quality = np.random.default_rng(0).random((2, 450))
    benchmark = Benchmark("made", prompts, quality.max(axis=0), quality.min(axis=0))
    monkeypatch.setitem(runner.BENCHMARKS, "made", lambda data: benchmark)
    router = Stopping(after=300)
    monkeypatch.setattr(runner, "load", lambda *_: router)

    def evaluate() -> Result:
        return run(["stopping"], ["made"], tmp_path, tmp_path, draws=5, cache=tmp_path, progress=False)[0]

    with pytest.raises(KeyboardInterrupt):
        evaluate()
    router.left = 250
    continued = evaluate()
    assert (router.left, continued.n) == (0, 450)
    monkeypatch.setattr(runner, "load", lambda *_: Stopping(after=450))
    assert run(["stopping"], ["made"], tmp_path, tmp_path, draws=5, progress=False)[0] == continued


def test_saving_replaces_the_same_router_and_benchmark_and_keeps_the_rest(tmp_path: Path) -> None:
    three: dict[str, tuple[float, float]] = dict.fromkeys(("20", "50", "80"), (0.0, 1.0))
    first = Result("mmlu", "mf", "1", 10, 0.5, (0.4, 0.6), dict.fromkeys(three, 0.5), three, [0, 1], [0, 1], 0, 1)
    file = tmp_path / "results" / "evaluation.json"
    save([first, replace(first, router="knn")], file)
    save([replace(first, version="2", apgr=0.7), replace(first, benchmark="gsm8k")], file)
    found = [(row["benchmark"], row["router"], row["apgr"]) for row in json.loads(file.read_text())]
    assert found == [("mmlu", "mf", 0.7), ("mmlu", "knn", 0.5), ("gsm8k", "mf", 0.5)]


def test_a_router_without_a_reliability_has_no_picture_of_one(tmp_path: Path) -> None:
    plots.reliability([shipped("random")], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    plots.reliability([shipped("random"), shipped("mf")], tmp_path / "some.png")
    assert (tmp_path / "some.png").exists()
