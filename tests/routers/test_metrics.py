from pathlib import Path

import numpy as np
import pytest

from routers.evaluation.benchmarks import BENCHMARKS
from routers.evaluation.metrics import curve, interval


def test_prompt_length_and_oracle_give_the_numbers_of_routellms_own_code(data: Path) -> None:
    # APGR and CPT50 computed with RouteLLM's code path on the same files.
    expected = {"mmlu": (0.583, 0.367, 1.268), "gsm8k": (0.597, 0.368, 1.115), "mt-bench": (0.556, 0.344, 0.953)}
    for name, (length, cpt50, oracle) in expected.items():
        benchmark = BENCHMARKS[name](data)
        lengths = np.array([len(prompt) for prompt in benchmark.prompts], dtype=np.float64)
        found = curve(lengths, benchmark.strong, benchmark.weak)
        assert found.apgr == pytest.approx(length, abs=0.002)
        assert found.cpt(0.5) == pytest.approx(cpt50, abs=0.005)
        best = curve(benchmark.strong - benchmark.weak, benchmark.strong, benchmark.weak)
        assert best.apgr == pytest.approx(oracle, abs=0.01)


def test_a_curve_runs_from_the_weak_model_to_the_strong() -> None:
    random = np.random.default_rng(0)
    weak = random.random(500)
    strong = weak + 0.2
    found = curve(random.random(500), strong, weak)
    assert found.share[0] == 0
    assert found.share[-1] == 1
    assert found.quality[0] == pytest.approx(weak.mean())
    assert found.quality[-1] == pytest.approx(strong.mean())
    assert found.apgr == pytest.approx(0.5, abs=1e-9)  # every prompt gains alike, so no choice is better


def test_only_the_order_of_scores_matters() -> None:
    random = np.random.default_rng(1)
    scores, strong, weak = random.random(300), random.random(300) + 0.3, random.random(300)
    assert curve(scores, strong, weak).apgr == curve(np.exp(9 * scores), strong, weak).apgr


def test_the_interval_holds_the_estimate_and_narrows_with_more_prompts() -> None:
    random = np.random.default_rng(2)

    def width(n: int) -> float:
        weak = random.random(n)
        scores = random.random(n)
        strong = weak + 0.5 * scores
        low, high = interval(scores, strong, weak, draws=200)["apgr"]
        assert low <= curve(scores, strong, weak).apgr <= high
        return high - low

    assert width(2000) < width(100)
