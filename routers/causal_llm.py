"""The causal-LLM router (RouteLLM, arXiv 2406.18665 §4.2): the weak model itself says how well it would do.

The paper fine-tunes an 8B model to answer with one of five label tokens. Here the local model is asked as it is, with
a few solved examples, and a logistic turns its label probabilities into a win rate. What is fitted is fitted for one
model file, and known by its hash. Who owns the model passes it in.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import platformdirs
from numpy.typing import NDArray

from routers.calibration import Calibration, read
from routers.encoder import readable
from routers.graph import ARTIFACTS
from routers.interface import RouterError
from routers.logistic import sigmoid

NAME = "causal_llm"
LABELS = ("1", "2", "3", "4", "5")
"""What the model chooses from: 1 is easy for it, 5 beyond it."""


class Judge(Protocol):
    """A language model that can be held to a few next tokens."""

    @property
    def model_sha256(self) -> str:
        """Of the model's file."""
        ...

    def log_probabilities(self, text: str, labels: Sequence[str]) -> Sequence[float]:
        """Of each label being what follows `text`, natural logarithms, not normalized over the labels."""
        ...


class CausalRouter:
    """The judge's mean label, calibrated.

    Raises:
        RouterError: there is no calibration for the judge's model, or it is damaged.
    """

    name = NAME

    def __init__(self, judge: Judge, artifacts: Path | None = None) -> None:
        self._judge = judge
        self._reading = reading(judge.model_sha256, artifacts)
        self.version = self._reading.version

    def score(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """P(strong preferred) of each prompt; see `Router.score`."""
        return self._reading.rate([self._judge.log_probabilities(question(prompt), LABELS) for prompt in prompts])


@dataclass(frozen=True, slots=True)
class Reading:
    """What one model's mean labels are worth."""

    version: str
    slope: float
    intercept: float
    calibration: Calibration

    def rate(self, logs: Sequence[Sequence[float]]) -> NDArray[np.float32]:
        """Win rates, shape `(n,)`, of judgements of `LABELS`, each as from `Judge.log_probabilities`."""
        return sigmoid(self.slope * mean_label(logs) + self.intercept).astype(np.float32)


def own_folder() -> Path:
    """Of the calibrations that were made on this machine."""
    return platformdirs.user_state_path("upcall") / NAME


def reading(model_sha256: str, artifacts: Path | None = None) -> Reading:
    """The calibration for the model file with this hash, in `artifacts`, or one's own, or one that ships.

    Raises:
        RouterError: there is none, or it is damaged.
    """
    places = [place / model_sha256[:12] for place in ([artifacts] if artifacts else [own_folder(), ARTIFACTS / NAME])]
    folder = next((place for place in places if place.is_dir()), places[-1])
    artifact = folder / "causal_llm.json"
    try:
        stored = json.loads(artifact.read_text())
        slope, intercept, version = float(stored["slope"]), float(stored["intercept"]), str(stored["version"])
        if not np.isfinite([slope, intercept]).all():
            raise ValueError("numbers that are not finite")
    except FileNotFoundError:
        raise RouterError(
            f"The router causal_llm is not calibrated for this local model (SHA-256 {model_sha256[:12]}…): "
            "run `upcall judge train`, or choose another router."
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise RouterError(f"The router's artifact {artifact} is damaged ({error}): train it again.") from error
    return Reading(version, slope, intercept, read(folder / "calibration.json"))


def mean_label(logs: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Expected label, 1 to 5, of each judgement, shape `(n,)`; 3 where one has no number in it."""
    raw = np.asarray(logs, dtype=np.float64).reshape(-1, len(LABELS))
    raw = np.where(np.isfinite(raw), raw, -1e9)
    powers: NDArray[np.float64] = np.exp(raw - raw.max(axis=1, keepdims=True))
    mean: NDArray[np.float64] = powers @ np.arange(1, 1 + len(LABELS)) / powers.sum(axis=1)
    return mean


def question(prompt: str) -> str:
    """The few-shot question; its beginning is the same for every prompt, so that a cached prefix serves them all."""
    text = readable(prompt)
    shown = text if len(text) <= _HEAD + _TAIL else f"{text[:_HEAD]}\n{text[-_TAIL:]}"
    return f"{_EXAMPLES}Question: {shown or '(empty)'}\nDifficulty: "


_HEAD, _TAIL = 240, 120
"""Characters: reading a hundred tokens takes a small model on two cores a third of a second."""
_EXAMPLES = """Rate from 1 (very easy) to 5 (very hard) how hard each question is for a small language model.

Question: Say hello in French.
Difficulty: 1

Question: What are the main causes of inflation?
Difficulty: 3

Question: Prove that the polynomial x^4 + 1 is irreducible over the rationals but reducible modulo every prime.
Difficulty: 5

"""
