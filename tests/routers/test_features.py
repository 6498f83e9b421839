"""The length of a question: what counts to it, and in how much time."""

import math
import time

import numpy as np
import pytest

from routers.features import READ, log_length


@pytest.mark.parametrize("between", ["\n", "\n\n\n", "\n \t\n  "])
def test_offered_choices_do_not_count_however_they_are_set_apart(between: str) -> None:
    question = between.join(["Which is a prime?", "(A) four", "(B) five", "C. six", "d: seven"])
    choices = sum(map(len, ("four", "five", "six", "seven")))
    assert log_length([question])[0] == pytest.approx(np.log1p(len(question) - choices))


@pytest.mark.parametrize("piece", ["\n", " ", " \n", "\t\n\n", "\r\n", "A. \n", "(A\n", "1) x\n"])
def test_time_grows_with_the_length_of_a_prompt_and_not_with_its_square(piece: str) -> None:
    def seconds(length: int) -> float:
        prompt = f"x{piece * length}"[: length - 1] + "y"
        start = time.process_time()
        log_length([prompt])
        return time.process_time() - start

    long = short = math.inf
    # In turn, so that what disturbs one disturbs the other, and beyond five times only as often as it takes.
    for pair in range(20):
        long, short = min(long, seconds(READ // 2)), min(short, seconds(READ // 8))
        if pair >= 4 and long < 8 * short:
            break
    assert long < 8 * short
