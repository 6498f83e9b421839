"""Gets to know a local model: asks it public questions, and trains its second look on what came of them."""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import platformdirs
import psutil

from models.llama.quiz import Asked, Attempt, Quiz
from routers.training import attempts as kept
from routers.training.attempts import Attempts
from routers.training.questions import BLOCK, Question

ON_BATTERY = 30.0
"""Seconds between two looks whether there is power again."""


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder(model_sha256: str) -> Path:
    """Where the model's attempts are kept."""
    return Path(platformdirs.user_cache_path("upcall")) / "attempts" / model_sha256[:16]


def ask(
    model: Path,
    questions: Sequence[Question],
    where: Path,
    *,
    threads: int = 0,
    on_progress: Callable[[int, int, str], None] = lambda done, total, state: None,
) -> Attempts:
    """Put to the model those `questions` that it was not asked before, keeping its attempts in `where`.

    Gives way to other programs, and waits while the machine runs on battery. What is interrupted goes on from its last
    block. `on_progress` hears how many are answered, of how many, and what it waits for.

    Raises `LoadError` for a model that cannot be asked, `RouterError` where kept attempts are damaged.
    """
    known = kept.read(where)
    seen = set() if known is None else set(known.key.tolist())
    left = [question for question in questions if question.key not in seen]
    done = len(questions) - len(left)
    on_progress(done, len(questions), "")
    if left:
        if hasattr(os, "nice"):
            os.nice(10)
        quiz = Quiz(model, threads=threads)
        try:
            for start in range(0, len(left), BLOCK):
                block = left[start : start + BLOCK]
                while _on_battery():
                    on_progress(done, len(questions), "waiting for mains power")
                    time.sleep(ON_BATTERY)
                asked = [Asked(question.prompt, question.labels) for question in block]
                found = [(block[index], attempt) for index, attempt in quiz.ask(asked)]
                if found:
                    kept.append(where, _attempts(found))
                done += len(block)
                on_progress(done, len(questions), "")
        finally:
            quiz.close()
    known = kept.read(where)
    if known is None:
        raise ValueError("none of the questions fits the model's context")
    row = {key: index for index, key in enumerate(known.key.tolist())}
    return known.rows(np.array([row[each.key] for each in questions if each.key in row], dtype=np.intp))


def _attempts(found: Sequence[tuple[Question, Attempt]]) -> Attempts:
    return Attempts(
        key=np.array([question.key for question, _ in found]),
        right=np.array([question.is_right(attempt.answer) for question, attempt in found]),
        at_prompt=np.stack([attempt.at_prompt for _, attempt in found]),
        at_first=np.stack([attempt.at_first for _, attempt in found]),
        entropies=kept.padded([attempt.entropies for _, attempt in found], kept.WATCHED),
        margins=kept.padded([attempt.margins for _, attempt in found], kept.WATCHED),
        label_logprobs=kept.padded([attempt.label_logprobs for _, attempt in found], kept.CHOICES),
    )


def _on_battery() -> bool:
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return battery is not None and battery.power_plugged is False
