"""The causal-LLM router (RouteLLM, arXiv 2406.18665 §4.2): the weak model itself says how well it would do.

The paper fine-tunes an 8B model to answer with one of five label tokens. Here the local model is asked as it is, with
three solved examples, and a logistic turns its label probabilities into a win rate. Who owns the model passes it in.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from routers.encoder import readable
from routers.graph import ARTIFACTS
from routers.interface import RouterError

LABELS = ("1", "2", "3", "4", "5")
"""What the model chooses from: 1 is easy for it, 5 beyond it."""


class Judge(Protocol):
    """A language model that can be held to a few next tokens."""

    def log_probabilities(self, text: str, labels: Sequence[str]) -> Sequence[float]:
        """Of each label being what follows `text`, natural logarithms, not normalized over the labels."""
        ...


class CausalRouter:
    """The judge's mean label, calibrated.

    Raises:
        RouterError: the calibration is missing or damaged.
    """

    name = "causal_llm"

    def __init__(self, judge: Judge, artifact: Path = ARTIFACTS / "causal_llm" / "causal_llm.json") -> None:
        self._judge = judge
        try:
            stored = json.loads(artifact.read_text())
            self.version = str(stored["version"])
            self._slope, self._intercept = float(stored["slope"]), float(stored["intercept"])
            if not np.isfinite([self._slope, self._intercept]).all():
                raise ValueError("numbers that are not finite")
        except FileNotFoundError:
            raise RouterError(
                f"The router's artifact {artifact} is missing: train causal_llm for your model."
            ) from None
        except (KeyError, TypeError, ValueError) as error:
            raise RouterError(f"The router's artifact {artifact} is damaged ({error}): train it again.") from error

    def score(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """P(strong preferred) of each prompt; see `Router.score`."""
        lead = np.array([mean_label(self._judge, prompt) for prompt in prompts], dtype=np.float64)
        return (1 / (1 + np.exp(-(self._slope * lead + self._intercept)))).astype(np.float32)


def mean_label(judge: Judge, prompt: str) -> float:
    """Expected label, 1 to 5, under the judge's probabilities; 3 where it gives none that can be read."""
    logs = np.asarray(judge.log_probabilities(question(prompt), LABELS), dtype=np.float64)
    logs = np.where(np.isfinite(logs), logs, -1e9)
    chance = np.exp(logs - logs.max())
    total = chance.sum()
    return float(chance @ np.arange(1, 6) / total) if logs.max() > -1e9 else 3.0


def question(prompt: str) -> str:
    """The few-shot question; its beginning is the same for every prompt, so that a cached prefix serves them all."""
    return f"{_EXAMPLES}Question: {readable(prompt)[-_SHOWN:] or '(empty)'}\nDifficulty: "


_SHOWN = 1500
_EXAMPLES = """Rate from 1 (very easy) to 5 (very hard) how hard each question is for a small language model.

Question: Say hello in French.
Difficulty: 1

Question: What are the main causes of inflation?
Difficulty: 3

Question: Prove that the polynomial x^4 + 1 is irreducible over the rationals but reducible modulo every prime.
Difficulty: 5

"""
