"""Makes the second looks that ship for Qwen2.5-Coder-1.5B and for any model: `python -m daemon.tools.rule --data DIR`.

They are trained on what that model made of the questions of `upcall evaluate --second-look`, as far as these may train
what ships. Answers come from the cache; what was never asked is asked first, which takes an hour or two.
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
    parser = argparse.ArgumentParser(prog="python -m daemon.tools.rule", description="Make the looks that ship.")
    parser.add_argument("--data", type=Path, default=os.environ.get("UPCALL_DATA"), help="folder of the data files")
    parser.add_argument("--questions", type=int, default=2150, help="as for the evaluation")
    options = parser.parse_args()
    if options.data is None:
        parser.error("--data is needed, or UPCALL_DATA")
    model, encoder = Store().path("qwen2.5-coder-1.5b"), Store().path("use-multilingual")
    questions = to_judge(options.questions, options.data, public_questions())
    sha256 = file_sha256(model)
    some = lessons(questions, ask(model, questions, folder(sha256)), first_scores("mf", questions, encoder))
    made = {
        sha256[:16]: ship(some, SHIPPED / sha256[:16], sha256),
        # Only the signals: what the first score is worth is learnt of one model, and another has another.
        RULE: ship(of_any([some]), SHIPPED / RULE, "", CHOICES[:1]),
    }
    for name, calibration in made.items():
        Console().print(
            f"{name} {calibration.version}: trained on {calibration.n} questions, calibration error "
            f"{calibration.expected_calibration_error:.3f} on sources left out"
        )


if __name__ == "__main__":
    main()
