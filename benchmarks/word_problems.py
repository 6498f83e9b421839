"""What golden labels on GSM8K's training questions could teach: `python benchmarks/word_problems.py --scores FILE`.

FILE is `datasets/split2_model7/gsm8k-train.json` of github.com/shuhao02/RouterDC at 0e63989: how often each of seven
models with 7 or 8 billion parameters solved 1,000 of the training questions, of ten answers each. Its licence is not
stated, so nothing is trained on it that ships. Prints how prompt length, the shipped mf, the number of steps of the
true solution and ridge regressions on these labels (in ten parts, each scored by the others) order the questions by
what the weaker models fail at, and by what the stronger ones gain.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.store import Store
from routers.encoder import Encoder
from routers.evaluation.metrics import curve
from routers.features import log_length
from routers.mf import MatrixFactorizationRouter
from routers.training.data import stem

STRONG = ("meta-math/MetaMath-Mistral-7B", "cognitivecomputations/dolphin-2.9-llama3-8b")
WEAK = (
    "mistralai/Mistral-7B-v0.1", "itpossible/Chinese-Mistral-7B-v0.1", "HuggingFaceH4/zephyr-7b-beta",
    "meta-llama/Meta-Llama-3-8B",
)  # fmt: skip
FOLDS = 10
PENALTIES = (1e3, 5e3, 2e4)

Floats = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=os.environ.get("UPCALL_DATA"))
    options = parser.parse_args()
    rows = json.loads(options.scores.read_text())
    questions = [row["question"] for row in rows]
    strong, weak = (
        np.array([[row["scores"][name] for name in names] for row in rows]).mean(1) for names in (STRONG, WEAK)
    )
    encoder = Encoder(Store().path("use-multilingual"))
    vectors = encoder.embed(questions).astype(np.float64)
    lengths = log_length(questions).astype(np.float64)
    known = {
        stem(row["question"]): row["answer"].count("<<")
        for row in pq.read_table(options.data / "gsm8k_questions.parquet").to_pylist()
    }
    ways = {
        "length": lengths,
        "mf as shipped": MatrixFactorizationRouter(encoder).score(questions).astype(np.float64),
        "steps of the true solution": np.array([known[stem(question)] for question in questions], dtype=np.float64),
    }
    ideal = np.ones(len(questions))
    for target, better in (("what the weaker fail at", ideal), ("what the stronger gain", strong)):
        print(f"{len(questions)} questions by {target} (mean {np.mean(better - weak):.3f})")
        taught = {
            f"ridge on vector and length, penalty {penalty:g}": cross_fitted(
                np.column_stack([vectors, lengths]), better - weak, penalty
            )
            for penalty in PENALTIES
        }
        for name, scores in {**ways, **taught}.items():
            order, apgr = rank_correlation(scores, better - weak), curve(scores, better, weak).apgr
            print(f"  {name:45} rank correlation {order:.3f}  APGR {apgr:.3f}")


def cross_fitted(columns: Floats, outcome: Floats, penalty: float) -> Floats:
    """Scores of each part by a ridge regression on the others; columns in units of their spread."""
    scores = np.zeros(len(outcome))
    for part, rest in parts(len(outcome)):
        centre, spread = columns[rest].mean(0), columns[rest].std(0) + 1e-9
        seen = (columns[rest] - centre) / spread
        weights = np.linalg.solve(
            seen.T @ seen + penalty * np.eye(seen.shape[1]), seen.T @ (outcome[rest] - outcome[rest].mean())
        )
        scores[part] = (columns[part] - centre) / spread @ weights
    return scores


def parts(count: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    shuffled = np.random.default_rng(0).permutation(count)
    for part in np.array_split(shuffled, FOLDS):
        yield part, np.setdiff1d(shuffled, part)


def rank_correlation(one: Floats, other: Floats) -> float:
    return float(np.corrcoef(*(np.argsort(np.argsort(values)) for values in (one, other)))[0, 1])


if __name__ == "__main__":
    main()
