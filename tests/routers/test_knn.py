from pathlib import Path

import numpy as np
import pytest

from routers.encoder import Encoder
from routers.interface import RouterError
from routers.knn import NearestNeighboursRouter

ARTIFACT = Path("routers/artifacts/knn/knn.npz")


def test_neighbours_are_of_the_same_kind_and_nearest_first(encoder: Encoder) -> None:
    router = NearestNeighboursRouter(encoder)
    question = "Tom has 3 boxes with 12 pencils each. He gives 7 pencils to Ann. How many pencils does he have left?"
    near = router.explain(encoder.embed([question])[0], 10)
    assert [each.similarity for each in near] == sorted((each.similarity for each in near), reverse=True)
    assert sum("gsm8k" in each.source or "llmrouter" in each.source for each in near) >= 7


def test_a_score_agrees_with_the_neighbours_that_explain_it(encoder: Encoder) -> None:
    router = NearestNeighboursRouter(encoder)
    prompts = [
        "Who wrote Hamlet?",
        "Name a colour.",
        "Compute the integral of x^2 sin(x) from 0 to pi.",
        "Write a Python function that merges two sorted lists.",
        "A gas expands adiabatically from 2 L to 5 L. Find its final pressure.",
        "What is the capital of Australia?",
        "Ann buys 4 pens at 3 dollars and pays with 20. How much does she get back?",
        "Which organelle makes ATP?",
    ]
    explained = [np.mean([each.lead for each in router.explain(vector, 100)]) for vector in encoder.embed(prompts)]
    assert np.corrcoef(explained, router.score(prompts))[0, 1] > 0.9


def test_a_damaged_artifact_is_a_clear_error(encoder: Encoder, tmp_path: Path) -> None:
    file = tmp_path / "knn.npz"
    file.write_bytes(ARTIFACT.read_bytes()[:5000])
    with pytest.raises(RouterError, match="damaged"):
        NearestNeighboursRouter(encoder, file)


def test_an_artifact_with_nan_is_a_clear_error(encoder: Encoder, tmp_path: Path) -> None:
    with np.load(ARTIFACT) as stored:
        arrays = dict(stored)
    arrays["axes"][0, 0] = np.nan
    np.savez(tmp_path / "knn.npz", **arrays)
    with pytest.raises(RouterError, match="not finite"):
        NearestNeighboursRouter(encoder, tmp_path / "knn.npz")
