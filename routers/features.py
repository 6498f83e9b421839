"""What of a prompt a sentence embedding loses: its length, its numbers, its shape."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NAMES = (
    "log_characters",
    "log_words",
    "log_sentences",
    "log_lines",
    "log_numbers",
    "digit_share",
    "symbol_share",
    "upper_share",
    "word_length",
    "choices",
    "log_choice_characters",
    "code",
    "mathematics",
    "question",
    "not_latin",
)
READ = 20_000
"""Characters looked at for everything but the length: the rest of a prompt changes shares and counts little."""


def features(prompts: Sequence[str]) -> NDArray[np.float32]:
    """One row per prompt, columns as in `NAMES`: finite, about 0 to 3, of shape `(len(prompts), len(NAMES))`."""
    return np.array([_row(prompt) for prompt in prompts], dtype=np.float32).reshape(len(prompts), len(NAMES))


def _row(prompt: str) -> list[float]:
    text = prompt[:READ].strip()
    words = text.split()
    characters = max(len(text), 1)
    choices = _CHOICE.findall(text)
    return [
        _log(len(prompt.strip())),
        _log(len(words)),
        _log(len(_SENTENCE_END.findall(text))),
        _log(text.count("\n")),
        _log(len(_NUMBER.findall(text))),
        sum(map(str.isdigit, text)) / characters,
        len(_SYMBOL.findall(text)) / characters,
        sum(map(str.isupper, text)) / characters,
        min(characters / max(len(words), 1), 20.0) / 10,
        float(len(choices) >= 2),
        _log(sum(map(len, choices))),
        float(bool(_CODE.search(text))),
        float(bool(_MATHEMATICS.search(text))),
        float("?" in text or "¿" in text),
        sum(map(_not_latin, text[:1000])) / min(characters, 1000),
    ]


def _log(count: int) -> float:
    return float(np.log1p(count)) / 3


def _not_latin(character: str) -> bool:
    return ord(character) > 0x24F and character.isalpha()


_SENTENCE_END = re.compile(r"[.!?。！？]+(?:\s|$)")  # noqa: RUF001
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SYMBOL = re.compile(r"[^\w\s.,;:!?'\"-]")
_CHOICE = re.compile(r"^\s*\(?[A-Ja-j1-9][.):]\s+(.+)$", re.MULTILINE)
_CODE = re.compile(
    r"```|\bdef \w+\(|\bclass \w+[:({]|#include|\bfunction\b|;\s*$|\bimport \w+|</?\w+>|\breturn\b", re.MULTILINE
)
_MATHEMATICS = re.compile(r"\\[a-zA-Z]+|\$[^$]+\$|\b\w\s*=\s*[\w(]|\^|[∑∫√≤≥≠]")
