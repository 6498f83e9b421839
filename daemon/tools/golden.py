"""Makes golden labels: `python -m daemon.tools.golden --data DIR`.

Qwen2.5-Coder-1.5B is asked MMLU's validation questions, and how likely it takes each right choice is written down for
`routers.training`. About half an hour on two cores, the first time; what is stopped goes on where it was.
"""

import argparse
import os
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from daemon.learn import ask, folder
from models.fetch import file_sha256
from models.store import Store
from routers.training.data import GOLDEN
from routers.training.questions import recorded


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m daemon.tools.golden", description="Make golden labels for training."
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("UPCALL_DATA"), help="folder of the data files")
    options = parser.parse_args()
    if options.data is None:
        parser.error("--data is needed, or UPCALL_DATA")
    model = Store().path("qwen2.5-coder-1.5b")
    questions = {question.key: question for question in recorded("mmlu_validation", options.data)}
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("Asking", total=len(questions))
        attempts = ask(
            model, list(questions.values()), folder(file_sha256(model)),
            on_progress=lambda done, total, state: bar.update(task, completed=done, description=state or "Asking"),
        )  # fmt: skip
    asked = [questions[key] for key in attempts.key.tolist()]
    logprobs = attempts.label_logprobs[:, : len(asked[0].labels)].astype(np.float64)
    chances = np.exp(logprobs - logprobs.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    right = chances[np.arange(len(asked)), [question.labels.index(question.gold) for question in asked]]
    np.savez_compressed(GOLDEN, key=attempts.key, right=right.astype(np.float16))
    Console().print(f"{len(asked)} labels in {GOLDEN}; the model was right on {attempts.right.mean():.1%}")


if __name__ == "__main__":
    main()
