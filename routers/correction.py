"""What verdicts on decisions change in a router's scores: a logistic layer on top, pulled hard towards none."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from routers.calibration import versions
from routers.encoder import DIMENSION, Encoder
from routers.interface import Router, RouterError
from routers.logistic import Floats, curvature, logit, regress, sigmoid

FORMAT = 2
RIDGE, RIDGE_FEW = 10.0, 1500.0
"""Pull of the direction towards zero: the first always, the second by the number of verdicts, so that few hardly move
anything. Chosen on sources that no result is reported on (benchmarks/results/feedback.md)."""
SLOPE_RIDGE = 30.0
"""Pull of the slope towards one."""
MATCHED = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.98)
"""Quantiles of the corrected logits that are brought back to where the router's own have them."""


@runtime_checkable
class EmbeddingRouter(Router, Protocol):
    """A router that sees prompts through the encoder."""

    encoder: Encoder

    def score_embedded(self, prompts: Sequence[str], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """As `score`, from the encoder's `vectors`."""
        ...


@dataclass(frozen=True, slots=True)
class Correction:
    """Of one version of a router: lead = bias + slope · logit(score) + direction · embedding, and what is at the
    quantiles of those leads goes to the same quantiles of the router's own logits, straight in between."""

    router: str
    version: str
    date: str
    n: int
    """Verdicts that it was learnt from."""
    bias: float
    slope: float
    direction: Sequence[float]
    """One weight for each dimension of the encoder."""
    quantiles: Sequence[float]
    """Of the leads, rising."""
    own: Sequence[float]
    """Of the router's own logits, rising; as many."""

    def of(self, scores: NDArray[np.floating], vectors: NDArray[np.floating]) -> NDArray[np.float32]:
        """`scores` of shape (n,), in [0, 1], with `vectors` of shape (n, 512), corrected; the scale stays."""
        lead = self.bias + self.slope * logit(scores) + vectors @ np.asarray(self.direction, dtype=np.float64)
        # Beyond the ends in parallel, so that no two prompts become alike.
        beyond = lead - np.clip(lead, self.quantiles[0], self.quantiles[-1])
        return sigmoid(np.interp(lead, self.quantiles, self.own) + beyond).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write as JSON, readable by its owner alone: what was learnt of prompts tells of them."""
        path.touch(mode=0o600)
        path.write_text(json.dumps({"format": FORMAT, **asdict(self)}) + "\n")


class Lesson:
    """A logistic regression fitted to verdicts: on the router's `scores` (n,), the prompts' `vectors` (n, 512), and
    whether `strong` was due (n,)."""

    def __init__(self, scores: Floats, vectors: Floats, strong: NDArray[np.bool_]) -> None:
        self.own = logit(scores)
        """The router's own leads (n,)."""
        # The pull leaves no weight to directions in which no prompt lies, so few verdicts need few.
        self._basis, _ = np.linalg.qr(vectors.T)
        self._columns = np.column_stack([np.ones(len(self.own)), self.own, vectors @ self._basis])
        ridge = np.full(self._basis.shape[1], RIDGE + RIDGE_FEW / len(self.own))
        pull = np.concatenate([[1e-3, SLOPE_RIDGE], ridge])
        self._none = np.concatenate([[0.0, 1.0], np.zeros(len(ridge))])
        """The weights of no correction."""
        self._weights = regress(self._columns, strong, pull, towards=self._none)
        chance = sigmoid(self._columns @ self._weights)
        self._misfit, self._weight = chance - strong, chance * (1 - chance)
        self._reach = np.linalg.solve(curvature(self._columns, chance, pull), self._columns.T)

    def leads(self, step: float = 1.0) -> Floats:
        """Of the prompts themselves, (n,), after a `step` from the router's own (0) to what was learnt (1)."""
        leads: Floats = self._columns @ (self._none + step * (self._weights - self._none))
        return leads

    def held_out(self, rows: NDArray[np.intp]) -> Floats:
        """The leads of `rows`, had they not been learnt from: one step of Newton's from the fit to all."""
        shared = self._columns[rows] @ self._reach[:, rows]
        kept = np.eye(len(rows)) - self._weight[rows, None] * shared
        leads: Floats = self._columns[rows] @ self._weights + shared @ np.linalg.solve(kept, self._misfit[rows])
        return leads

    def correction(self, router: str, version: str, step: float = 1.0, date: str = "") -> Correction:
        """What was learnt, after a `step` as in `leads`.

        What the router's thresholds send up of these prompts stays as much, and only which prompts go up changes.
        """
        bias, slope, *weights = self._none + step * (self._weights - self._none)
        direction = [round(float(each), 6) for each in self._basis @ weights]
        quantiles, own = self._matched(step)
        return Correction(router, version, date, len(self.own), float(bias), float(slope), direction, quantiles, own)

    def _matched(self, step: float) -> tuple[list[float], list[float]]:
        """Quantiles of the corrected leads and of the router's own, as far as both rise."""
        both = np.quantile(np.column_stack([self.leads(step), self.own]), MATCHED, axis=0).round(6)
        kept = [both[0]]
        for each in both[1:]:
            if (each > kept[-1]).all():
                kept.append(each)
        quantiles, own = np.array(kept).T.tolist()
        return quantiles, own


def in_force(router: str, version: str, own: Path) -> tuple[Correction, int] | None:
    """The latest correction in the folder `own` for this version of `router`, and its number.

    Raises:
        RouterError: it cannot be read.
    """
    for path in reversed(versions(router, own)):
        correction = read(path)
        if correction.version == version:
            return correction, int(path.stem[-4:])
    return None


def read(path: Path) -> Correction:
    """The correction in `path`.

    Raises:
        RouterError: it is of another format or holds what cannot be a correction.
    """
    try:
        stored: dict[str, Any] = json.loads(path.read_text())
        if stored.pop("format") != FORMAT:
            raise ValueError("another format")
        correction = Correction(**stored)
        numbers = np.array([correction.bias, correction.slope, *correction.direction], dtype=np.float64)
        knots = np.array([correction.quantiles, correction.own], dtype=np.float64)
        rising = knots.ndim == 2 and knots.size > 0 and np.isfinite(knots).all() and (np.diff(knots) > 0).all()
        whole = numbers.shape == (DIMENSION + 2,) and np.isfinite(numbers).all() and correction.slope > 0
        if not (rising and whole):
            raise ValueError("its numbers make no correction")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RouterError(
            f"The correction {path} cannot be read ({error}): "
            "take it back with `upcall calibrate --from-feedback --undo`."
        ) from error
    return correction
