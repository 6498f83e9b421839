"""Makes the second look that ships for any model: `python -m daemon.tools.rule --data DIR`.

It is trained on what Qwen2.5-Coder-1.5B made of the questions of `upcall evaluate --second-look`, as far as these may
train what ships. Answers come from the cache; what was never asked is asked first, which takes the better part of an
hour.
"""

import argparse
import os
from pathlib import Path

from rich.console import Console

from daemon.commands.learn import public_questions
from daemon.learn import ask, first_scores, folder, to_judge
from models.fetch import file_sha256
from models.store import Store
from routers.second_look import RULE, SHIPPED
from routers.training.second_look import CHOICES, lessons, of_any, ship


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m daemon.tools.rule", description="Make the rule for any model.")
    parser.add_argument("--data", type=Path, default=os.environ.get("UPCALL_DATA"), help="folder of the data files")
    parser.add_argument("--questions", type=int, default=2150, help="as for the evaluation")
    options = parser.parse_args()
    if options.data is None:
        parser.error("--data is needed, or UPCALL_DATA")
    model, encoder = Store().path("qwen2.5-coder-1.5b"), Store().path("use-multilingual")
    questions = to_judge(options.questions, options.data, public_questions())
    attempts = ask(model, questions, folder(file_sha256(model)))
    some = of_any([lessons(questions, attempts, first_scores("mf", questions, encoder))])
    # Only the signals: what the first score is worth is learnt of one model, and another has another.
    calibration = ship(some, SHIPPED / RULE, "", CHOICES[:1])
    Console().print(
        f"rule {calibration.version}: trained on {calibration.n} questions, calibration error "
        f"{calibration.expected_calibration_error:.3f} on sources left out"
    )


if __name__ == "__main__":
    main()
