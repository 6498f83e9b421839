"""What a row of logits says about the next token, before any grammar, bias or temperature."""

import base64
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEAST_LOGPROB = -9999.0
"""In the place of less, as in OpenAI's answers: JSON has no infinity."""


class Distribution:
    """The softmax of `row`, float32 of shape `(n_vocab,)`, which must stay as it is while this is used.

    `scratch`, of the same shape, is overwritten: fresh memory for each token would cost more than the sums over it.
    """

    def __init__(self, row: NDArray[np.float32], scratch: NDArray[np.float32] | None = None) -> None:
        self._row = row
        self._scratch = scratch
        self.argmax = int(row.argmax())

    @property
    def is_number(self) -> bool:
        """False where a damaged model computes nonsense; argmax stops at the first NaN."""
        return math.isfinite(self._row[self.argmax])

    @property
    def entropy(self) -> float:
        """In nats."""
        powers, total = self._powers
        # Not a product of BLAS, which would wake threads of its own beside llama.cpp's.
        weighed = float(np.einsum("i,i", powers, self._row))
        if math.isnan(weighed):  # 0 times -inf, of tokens that the model rules out
            possible = powers > 0
            weighed = float(np.einsum("i,i", powers[possible], self._row[possible]))
        return self._log_total - weighed / total

    @property
    def margin(self) -> float:
        """Probability of the likeliest token less that of the second."""
        powers, total = self._powers
        first = powers[self.argmax]
        powers[self.argmax] = 0.0
        second = powers.max()
        powers[self.argmax] = first
        return float(first - second) / total

    def logprob(self, token: int) -> float:
        """Natural logarithm of the token's probability; finite also where the model rules the token out."""
        return max(float(self._row[token]) - self._log_total, _LEAST_LOGPROB)

    def top(self, count: int) -> list[int]:
        """The likeliest tokens, likeliest first."""
        if count == 0:
            return []
        best = np.argpartition(self._row, -count)[-count:]
        return [int(token) for token in best[np.argsort(-self._row[best], kind="stable")]]

    @cached_property
    def _powers(self) -> tuple[NDArray[np.float32], float]:
        powers = np.subtract(self._row, self._row[self.argmax], out=self._scratch)
        np.exp(powers, out=powers)
        return powers, float(powers.sum())

    @cached_property
    def _log_total(self) -> float:
        return float(self._row[self.argmax]) + math.log(self._powers[1])


def logprob_entry(
    distribution: Distribution, token: int, alternatives: int, piece: Callable[[int], bytes]
) -> dict[str, Any]:
    """OpenAI's `logprobs.content` entry of a token; `piece` gives a token's bytes."""

    def entry(token: int) -> dict[str, Any]:
        text = piece(token)
        return {
            "token": text.decode("utf-8", "replace"),
            "logprob": distribution.logprob(token),
            "bytes": list(text),
        }

    return {**entry(token), "top_logprobs": [entry(other) for other in distribution.top(alternatives)]}


def packed(state: NDArray[np.float32]) -> str:
    """A hidden state as it travels: see `Hidden.values`."""
    return base64.b64encode(np.clip(state, -65504, 65504).astype("<f2").tobytes()).decode()
