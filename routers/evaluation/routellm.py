"""RouteLLM's public result files: which they are, each pinned by its hash, and what they say."""

import csv
import importlib.resources
import json
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from routers import pins
from routers.pins import File

STRONG, WEAK = "gpt-4-1106-preview", "mistralai/Mixtral-8x7B-Instruct-v0.1"


def files() -> list[File]:
    """All of them, some ten megabytes."""
    return pins.files(tomllib.loads((importlib.resources.files("routers.evaluation") / "routellm.toml").read_text()))


def read(folder: Path, benchmark: str) -> tuple[list[str], list[tuple[float, float]]]:
    """Prompts of `mmlu`, `gsm8k` or `mt-bench` in RouteLLM's order, and the strong and weak model's quality on each.

    Prompts that its lists call contaminated are left out, as it does.

    Raises:
        OSError: a file is missing.
    """
    rows = {"mmlu": _mmlu, "gsm8k": _gsm8k, "mt-bench": _mt_bench}[benchmark](folder)
    contaminated = {row["eval_prompt"] for row in _lines(folder, benchmark.replace("-", "_"), "contaminated_prompts")}
    kept = [(turns[0], quality) for turns, quality in rows if not contaminated.intersection(turns)]
    return [prompt for prompt, _ in kept], [quality for _, quality in kept]


Row = tuple[Sequence[str], tuple[float, float]]
"""The user's turns, and the quality of both models' answers."""


def _mmlu(folder: Path) -> Iterator[Row]:
    # In the order of the list of subjects, which is that of the alphabet.
    for file in sorted((folder / "mmlu" / "responses").glob("mmlu_*.csv")):
        yield from _correctness(file)


def _gsm8k(folder: Path) -> Iterator[Row]:
    yield from _correctness(folder / "gsm8k" / "gsm8k_responses.csv")


def _mt_bench(folder: Path) -> Iterator[Row]:
    marks: dict[tuple[str, int], list[float]] = defaultdict(list)
    for row in _lines(folder, "mt_bench", "judgements"):
        marks[row["model"], row["question_id"]].append(row["score"])
    mean = {key: sum(scores) / len(scores) for key, scores in marks.items()}
    for row in _lines(folder, "mt_bench", "question"):
        number = row["question_id"]
        yield row["turns"], (mean[STRONG, number], mean[WEAK, number])


def _correctness(file: Path) -> Iterator[Row]:
    with file.open(newline="", encoding="utf-8") as text:
        for row in csv.DictReader(text):
            yield (row["prompt"],), (float(row[STRONG] == "True"), float(row[WEAK] == "True"))


def _lines(folder: Path, benchmark: str, name: str) -> list[dict[str, Any]]:
    text = (folder / benchmark / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]
