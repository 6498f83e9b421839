"""Gets to know a local model: asks it public questions, and trains its second look on what came of them."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import platformdirs

from daemon.routing.battery import charge
from models.llama.quiz import VERSION, Asked, Attempt, Quiz
from routers.evaluation.second_look import Verdict
from routers.evaluation.second_look import judge as judged
from routers.registry import load
from routers.training import attempts as kept
from routers.training.attempts import Attempts
from routers.training.public import read
from routers.training.questions import BLOCK, Question, sample
from routers.training.second_look import lessons, ship

NICENESS = 10
ON_BATTERY = 30.0
"""Seconds between two looks whether there is power again."""


OnProgress: TypeAlias = Callable[[int, int, str], None]
"""Hears how many questions are answered, of how many, and what is waited for, if anything."""
EXAMS = {"arc_easy": 0.15, "arc_challenge": 0.15, "openbookqa": 0.1}
"""Shares of questions that small models find easier: where a model only guesses nothing is learnt of it."""
TRAINING = {"mmlu_pro": 0.2, "agieval_en": 0.15, "crux": 0.15, "agieval_zh": 0.1, **EXAMS}
JUDGING = {"mmlu": 0.4, "mmlu_pro": 0.24, "agieval_en": 0.14, "crux": 0.12, "agieval_zh": 0.08, "gsm8k": 0.02}
"""Shares of the questions that are asked to train, and to judge what was trained on other sources. The last takes a
written answer of a hundred words each time."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """What `learn` made."""

    folder: Path
    version: str
    n: int
    weak: float
    """Share of the questions that the model was right on."""
    error: float
    """Expected calibration error on sources left out of training."""


def to_learn(count: int, data: Path, *, public: bool) -> list[Question]:
    """Some `count` questions out of the data files in `data`, or out of the published ones, where it is `public`."""
    counts = {name: int(share * count) for name, share in TRAINING.items()}
    return sample(data, counts, read) if public else sample(data, counts)


def learn(
    model: Path,
    sha256: str,
    questions: Sequence[Question],
    encoder: Path,
    out: Path,
    *,
    trusted: bool = False,
    threads: int = 0,
    on_progress: OnProgress = lambda done, total, state: None,
) -> Learnt:
    """Ask the model, whose file has that hash, the `questions` and write its second look to the folder `out`.

    Raises as `ask` does.
    """
    attempts = ask(model, questions, folder(sha256), trusted=trusted, threads=threads, on_progress=on_progress)
    some = lessons(questions, attempts, first_scores("mf", questions, encoder))
    calibration = ship(some, out, sha256)
    return Learnt(out, calibration.version, len(attempts), some.weak.mean(), calibration.expected_calibration_error)


def to_judge(count: int, data: Path, published: Path) -> list[Question]:
    """Some `count` questions out of the data files in `data`, and half as many easier ones out of those `published`."""
    asked = sample(data, {name: int(share * count) for name, share in JUDGING.items()})
    return asked + sample(published, {name: int(share * count) for name, share in EXAMS.items()}, read)


def judge(
    model: Path,
    sha256: str,
    questions: Sequence[Question],
    encoder: Path,
    *,
    trusted: bool = False,
    on_progress: OnProgress = lambda done, total, state: None,
) -> Verdict:
    """Judge what can be learnt of the model, whose file has that hash, on `questions`. Raises as `ask` does."""
    attempts = ask(model, questions, folder(sha256), trusted=trusted, on_progress=on_progress)
    known = set(attempts.key.tolist())
    questions = [question for question in questions if question.key in known]
    first = {name: np.array(first_scores(name, questions, encoder)) for name in ("mf", "knn")}
    lengths = np.array([len(question.prompt) for question in questions], dtype=np.float64)
    return judged(lessons(questions, attempts, first["mf"].tolist()), first, lengths)


def first_scores(router: str, questions: Sequence[Question], encoder: Path) -> list[float]:
    loaded = load(router, encoder)
    return [float(loaded.score([question.prompt])[0]) for question in questions]


def folder(model_sha256: str) -> Path:
    """Where the model's attempts are kept; each way of asking has a place of its own."""
    return Path(platformdirs.user_cache_path("upcall")) / "attempts" / f"{model_sha256[:16]}-{VERSION}"


def ask(
    model: Path,
    questions: Sequence[Question],
    where: Path,
    *,
    trusted: bool = False,
    threads: int = 0,
    on_progress: OnProgress = lambda done, total, state: None,
) -> Attempts:
    """Put to the model those `questions` that it was not asked before, keeping its attempts in `where`.

    `trusted` is whether its file's own chat template may run, where upcall has none of its own for it.
    Gives way to other programs, and waits while the machine runs on battery. What is interrupted goes on from its last
    block.

    Raises `LoadError` for a model that cannot be asked, `RouterError` where kept attempts are damaged.
    """
    known = kept.read(where)
    seen = set() if known is None else set(known.key.tolist())
    left = [question for question in questions if question.key not in seen]
    done = len(questions) - len(left)
    on_progress(done, len(questions), "")
    if left:
        if hasattr(os, "nice"):
            os.nice(max(0, NICENESS - os.nice(0)))
        quiz = Quiz(model, trusted=trusted, threads=threads)
        try:
            for start in range(0, len(left), BLOCK):
                block = left[start : start + BLOCK]
                while _on_battery():
                    on_progress(done, len(questions), "waiting for mains power")
                    time.sleep(ON_BATTERY)
                asked = [Asked(question.prompt, question.labels, question.max_tokens) for question in block]
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
    found = charge()
    return found is not None and found.discharging
