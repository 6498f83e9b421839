"""What of a prompt a sentence embedding loses: how long the question is."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TYPICAL = 5.0
"""Logarithmic length that counts as neither short nor long: 150 characters."""
SPAN = (-2.5, 3.0)
"""Around it, where length tells something: from 12 characters to 3,000, as many as the encoder reads."""


def log_length(prompts: Sequence[str]) -> NDArray[np.float32]:
    """Logarithm of the characters of each prompt's question, without the choices it offers; shape `(len(prompts),)`.

    Choices are left out: their number is the questioner's taste. Words, sentences, numbers, symbols and code were
    tried beside the length and carried over to held-out sources no better.
    """
    return np.array([_row(prompt.strip()) for prompt in prompts], dtype=np.float32)


def _row(text: str) -> float:
    choices = _CHOICE.findall(text[:READ])
    return float(np.log1p(len(text) - (sum(map(len, choices)) if len(choices) > 1 else 0)))


READ = 20_000
"""Characters in which choices are looked for, so that the time for a huge prompt is bounded."""
# Not ^\s*: over blank lines that would be tried from each of them to the end of all.
_CHOICE = re.compile(r"^[^\S\n]*\(?[A-Ja-j1-9][.):]\s+(.+)$", re.MULTILINE)
