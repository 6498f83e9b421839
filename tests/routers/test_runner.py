from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="needs pyarrow (make train-deps)")

import json

from routers.evaluation.runner import Result, save


def test_saving_replaces_the_same_router_and_benchmark_and_keeps_the_rest(tmp_path: Path) -> None:
    three: dict[str, tuple[float, float]] = dict.fromkeys(("20", "50", "80"), (0.0, 1.0))
    first = Result("mmlu", "mf", "1", 10, 0.5, (0.4, 0.6), dict.fromkeys(three, 0.5), three, [0, 1], [0, 1], 0, 1)
    file = tmp_path / "results" / "evaluation.json"
    save([first, replace(first, router="knn")], file)
    save([replace(first, version="2", apgr=0.7), replace(first, benchmark="gsm8k")], file)
    found = [(row["benchmark"], row["router"], row["apgr"]) for row in json.loads(file.read_text())]
    assert found == [("mmlu", "mf", 0.7), ("mmlu", "knn", 0.5), ("gsm8k", "mf", 0.5)]
