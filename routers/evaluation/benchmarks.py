"""The benchmarks that judge routers, as RouteLLM cut them: what the router sees, how good both models' answers were."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from routers.evaluation import routellm
from routers.interface import RouterError


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Prompts and the quality of the strong and the weak model's answers to each."""

    name: str
    prompts: list[str]
    strong: NDArray[np.float64]
    weak: NDArray[np.float64]


def _read(name: str, file: str, prompt: str, strong: str, weak: str) -> Callable[[Path], Benchmark]:
    def load(data: Path) -> Benchmark:
        if name in RAW and not (data / f"{file}.parquet").exists():
            prompts, pairs = routellm.read(data, name)
            return Benchmark(name, prompts, *np.array(pairs, dtype=np.float64).T)
        rows = [row for row in pq.read_table(data / f"{file}.parquet").to_pylist() if not row["contaminated"]]
        rows = [row for row in rows if row[strong] is not None and row[weak] is not None]
        quality = np.array([[row[strong], row[weak]] for row in rows], dtype=np.float64)
        return Benchmark(name, [row[prompt] for row in rows], quality[:, 0], quality[:, 1])

    return load


RAW = frozenset(("mmlu", "gsm8k", "mt-bench"))
"""Those that are also read from RouteLLM's own files, of the same rows in the same order."""
OPUS, LLAMA = "claude-3-opus-20240229", "Meta-Llama-3-8B-Instruct"
BENCHMARKS = {
    "mmlu": _read("mmlu", "routellm_mmlu", "prompt", "strong_correct", "weak_correct"),
    "gsm8k": _read("gsm8k", "routellm_gsm8k", "prompt", "strong_correct", "weak_correct"),
    "mt-bench": _read("mt-bench", "routellm_mt_bench", "turn1", "strong_mean", "weak_mean"),
    "mt-bench-opus-llama3": _read("mt-bench-opus-llama3", "mt_bench_pairs_wide", "turn1", OPUS, LLAMA),
}
"""By name, as a function of the data folder. GPT-4-1106 against Mixtral 8x7B, then Claude 3 Opus against Llama 3 8B."""


def checked(names: Sequence[str]) -> Sequence[str]:
    """`names`. Raises `RouterError` where one is of no benchmark."""
    for name in names:
        if name not in BENCHMARKS:
            raise RouterError(f"There is no benchmark {name!r}: the benchmarks are {', '.join(BENCHMARKS)}.")
    return names
