"""What verdicts are worth, simulated: `python benchmarks/feedback.py --data DIR --encoder FILE [--out FILE]`.

A user asks questions of some subjects of MMLU and, every other one, of GSM8K. mf routes them as it ships; the user
gives verdicts on some, learns a correction as `upcall calibrate --from-feedback` does, and is judged on the other half.
"""

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from daemon.routing.feedback_learning import lesson
from routers.calibration import shipped
from routers.encoder import DIMENSION
from routers.evaluation.benchmarks import BENCHMARKS
from routers.evaluation.metrics import curve
from routers.graph import ARTIFACTS, Graph
from routers.training.embeddings import Embeddings

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

COUNTS = (50, 200, 1000)
FEWEST_ROWS = 2600
"""Prompts of a user, half of them for verdicts."""
CLOUD_SHARE = 0.2
MISTAKEN = 0.1
"""Share of verdicts that are the opposite of what the user means."""


@dataclass(frozen=True, slots=True)
class Pool:
    """All prompts."""

    vectors: Floats
    scores: Floats
    strong: Floats
    weak: Floats
    subject: NDArray[np.str_]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One user after so many verdicts."""

    gain: float
    """In APGR, over the router as it ships."""
    share: float
    """Of the user's prompts above the threshold that let `CLOUD_SHARE` up before."""
    changed: bool
    """Whether the lesson was good enough to be kept."""


def of_the_choice(pool: Pool, rows: Rows, up: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where the cloud was due, for who knows which model would have done."""
    return pool.strong[rows] > pool.weak[rows]


def of_the_answer(pool: Pool, rows: Rows, up: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where it seems due to who sees one answer alone: a bad one here asks for the cloud, a bad one there does not."""
    return np.where(up, pool.strong[rows] >= 0.5, pool.weak[rows] < 0.5)


JUDGES: Mapping[str, Callable[[Pool, Rows, NDArray[np.bool_]], NDArray[np.bool_]]] = {
    "the choice": of_the_choice,
    "the answer seen alone": of_the_answer,
}


def main() -> None:
    """Simulate and print; write where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("UPCALL_DATA"))
    parser.add_argument("--encoder", type=Path, default=os.environ.get("UPCALL_ENCODER"))
    parser.add_argument("--users", type=int, default=180)
    parser.add_argument("--first", type=int, default=1000, help="of the users; what is set was set on users below 5000")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    pool = _pool(options.data, options.encoder)
    lines = [
        f"{options.users} users, from number {options.first} on; mf@{shipped('mf').version}; {MISTAKEN:.0%} of "
        "verdicts mistaken; gain in APGR on held-out prompts of the user's own mix.",
        "",
        "| the verdict is on | verdicts | kept | mean gain | lowest | 5th percentile | below -0.01 | share of 20 % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, judge in JUDGES.items():
        for count in COUNTS:
            outcomes = [_user(pool, judge, count, options.first + user) for user in range(options.users)]
            lines += [f"| {name} | {count} | {_row(outcomes)} |"]
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


def _row(outcomes: list[Outcome]) -> str:
    gains = np.array([each.gain for each in outcomes])
    shares = [each.share for each in outcomes]
    return (
        f"{np.mean([each.changed for each in outcomes]):.0%} | {gains.mean():+.4f} | {gains.min():+.4f} | "
        f"{np.quantile(gains, 0.05):+.4f} | {(gains < -0.01).sum()} of {len(gains)} | "
        f"{np.mean(shares):.1%} ({min(shares):.0%} to {max(shares):.0%})"
    )


def _user(
    pool: Pool, judge: Callable[[Pool, Rows, NDArray[np.bool_]], NDArray[np.bool_]], count: int, seed: int
) -> Outcome:
    random = np.random.default_rng(seed)
    subjects = random.permutation([subject for subject in np.unique(pool.subject) if subject != "gsm8k"])
    chosen = ["gsm8k"] if seed % 2 else []
    while np.isin(pool.subject, chosen).sum() < FEWEST_ROWS:
        chosen.append(str(subjects[len(chosen)]))
    rows = random.permutation(np.flatnonzero(np.isin(pool.subject, chosen)))
    asked, rest = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    told = asked[:count]
    threshold = np.quantile(pool.scores[asked], 1 - CLOUD_SHARE)
    up = pool.scores[told] >= threshold
    due = judge(pool, told, up) ^ (random.random(len(told)) < MISTAKEN)
    correction, worth = lesson("mf", "", pool.scores[told], pool.vectors[told], due, up)
    changed = not worth.refusal
    before = pool.scores[rest]
    after = correction.of(before, pool.vectors[rest]) if changed else before
    strong, weak = pool.strong[rest], pool.weak[rest]
    gain = curve(after, strong, weak).apgr - curve(before, strong, weak).apgr
    return Outcome(gain, float((after >= threshold).mean()), changed)


def _pool(data: Path, encoder: Path) -> Pool:
    mmlu, gsm8k = BENCHMARKS["mmlu"](data), BENCHMARKS["gsm8k"](data)
    columns = pq.read_table(data / "routellm_mmlu.parquet", columns=["prompt", "subject"]).to_pylist()
    subject = {row["prompt"]: row["subject"] for row in columns}
    prompts = [*mmlu.prompts, *gsm8k.prompts]
    vectors, lengths = Embeddings(encoder).inputs(prompts, "the benchmarks")
    graph = Graph(ARTIFACTS / "mf" / "mf.onnx", {"embedding": DIMENSION, "log_length": 1})
    return Pool(
        vectors.astype(np.float64),
        graph.run(embedding=vectors, log_length=lengths[:, None]).astype(np.float64),
        np.concatenate([mmlu.strong, gsm8k.strong]),
        np.concatenate([mmlu.weak, gsm8k.weak]),
        np.array([*(subject[prompt] for prompt in mmlu.prompts), *("gsm8k" for _ in gsm8k.prompts)]),
    )


if __name__ == "__main__":
    main()
