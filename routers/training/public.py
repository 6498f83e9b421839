"""Public questions from where they are published, each file pinned by its hash: for `upcall learn-model` without data.

They are those of the data files, with the same strong models' answers; 12 of CRUXEval's 800 are marked otherwise.
"""

import ast
import importlib.resources
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from routers import pins
from routers.pins import File
from routers.training.questions import AGIEVAL, LETTERS, Question, agieval, crux, listed, literal


def files() -> list[File]:
    """All of them, some fifty megabytes; each source in a folder of its name."""
    table = tomllib.loads((importlib.resources.files("routers.training") / "public.toml").read_text())
    return [file for name, repository in table.items() for file in pins.files(repository, f"{name}/")]


def read(name: str, folder: Path) -> Iterable[Question]:
    """The questions of a source out of the files in `folder`. Raises `KeyError` for a source that is not published."""
    return READERS[name](folder)


def _mmlu_pro(folder: Path) -> Iterator[Question]:
    for path in sorted((folder / "mmlu_pro").rglob("*_result.json")):
        for row in json.loads(path.read_text(encoding="utf-8")):
            choices = len(row["options"])
            # Half of MMLU-Pro is MMLU's test with more choices.
            if not row["src"].startswith("ori_mmlu") and row["answer"] in LETTERS[:choices]:
                prompt = listed(row["question"], row["options"])
                yield Question("mmlu_pro", prompt, row["answer"], float(row["pred"] == row["answer"]), choices=choices)


def _agieval(name: str) -> Callable[[Path], Iterator[Question]]:
    def read(folder: Path) -> Iterator[Question]:
        for path in sorted((folder / "agieval").rglob("samples_agieval_*.jsonl")):
            for row in _lines(path):
                task = path.name.removeprefix("samples_agieval_").rpartition("_")[0]
                if task in AGIEVAL[name].tasks:
                    yield from agieval(name, row["doc"]["query"], row["doc"]["gold"], row["acc"])

    return read


def _exam(name: str) -> Callable[[Path], Iterator[Question]]:
    def read(folder: Path) -> Iterator[Question]:
        for path in sorted((folder / "exams").rglob(f"samples_{name}_*.jsonl")):
            for row in _lines(path):
                asked, choices = row["doc"], row["doc"]["choices"]
                stem = asked.get("question") or asked["question_stem"]
                prompt = listed(stem.strip(), [choice.strip() for choice in choices["text"]])
                letter = LETTERS[choices["label"].index(asked["answerKey"])]
                yield Question(name, prompt, letter, row["acc"], choices=len(choices["label"]))

    return read


def _crux(folder: Path) -> Iterator[Question]:
    for path in (folder / "crux").rglob("*.json"):
        for row in json.loads(path.read_text(encoding="utf-8")):
            yield from crux(row["question"], row["answer"], float(is_said(row["output"][0], row["answer"])))


def is_said(output: str, gold: str) -> bool:
    """Whether a model's JSON, which may not be valid, says the literal `gold`, with or without its quotation marks."""
    if not (found := re.search(r'"answer":\s*(.*?)\s*\}?\s*(?:```)?\s*\Z', output, re.DOTALL)):
        return False
    try:
        said = json.loads(found[1], strict=False)
    except ValueError:
        said = found[1].strip('"')
    return str(said) == str(ast.literal_eval(gold)) or literal(str(said)) == literal(gold)


READERS: Mapping[str, Callable[[Path], Iterable[Question]]] = {
    "mmlu_pro": _mmlu_pro,
    "agieval_en": _agieval("agieval_en"),
    "agieval_zh": _agieval("agieval_zh"),
    "crux": _crux,
    **{name: _exam(name) for name in ("arc_easy", "arc_challenge", "openbookqa")},
}
"""By names of `questions.ORIGINS`."""


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
