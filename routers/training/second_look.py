"""Trains the second look of one local model on what became of public questions: `upcall learn-model`.

Two logistic regressions read the model's hidden state, how sure it was of its first tokens, and the first look's score:
one for whether this model is right, one for whether a strong model is. What counts is where the strong one does better,
so a third weighs both beside the plain signals. It learns from predictions about sources that the first two never saw.
"""

import datetime
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from routers.calibration import Calibration, measured
from routers.interface import RouterError
from routers.second_look import FILE, signals
from routers.training.attempts import Attempts
from routers.training.export import write_second_look
from routers.training.questions import ORIGINS, Question

Floats = NDArray[np.float64]
AXES = 64
PENALTY = 30.0
"""Of squared weights of standardized inputs, in questions' worth of cross entropy."""
BLEND_PENALTY = 1.0
PARTS = 3


@dataclass(frozen=True, slots=True)
class Lessons:
    """Questions put to a weak model, and what the second look may know of each."""

    source: NDArray[np.str_]
    first_score: Floats
    hidden: Floats
    """Shape `(n, width)`; of width 0 where the second look takes none."""
    signals: Floats
    weak: Floats
    """How right the weak model was, 0 to 1."""
    strong: Floats

    def rows(self, chosen: NDArray[np.bool_]) -> "Lessons":
        return Lessons(*(getattr(self, name)[chosen] for name in self.__slots__))

    @property
    def outcome(self) -> Floats:
        """1 where only the strong model is right, 0 where only the weak one is, a half where they are equal."""
        return 0.5 + (self.strong - self.weak) / 2


def lessons(questions: Sequence[Question], attempts: Attempts, first_scores: Sequence[float]) -> Lessons:
    """Of those `questions` that were attempted; `first_scores` are of all of them, in their order."""
    row = {key: index for index, key in enumerate(attempts.key.tolist())}
    asked = [index for index, question in enumerate(questions) if question.key in row]
    found = attempts.rows(np.array([row[questions[index].key] for index in asked], dtype=np.intp))
    said = [
        signals(entropies[~np.isnan(entropies)], margins[~np.isnan(margins)])
        for entropies, margins in zip(found.entropies, found.margins, strict=True)
    ]
    return Lessons(
        np.array([questions[index].source for index in asked]),
        np.array([first_scores[index] for index in asked], dtype=np.float64),
        found.at_first.astype(np.float64),
        np.array(said),
        found.right.astype(np.float64),
        np.array([questions[index].strong for index in asked]),
    )


def of_any(every: Sequence[Lessons]) -> Lessons:
    """The lessons of several models as those of any: without hidden states, which only one of them has."""
    names = [name for name in Lessons.__slots__ if name != "hidden"]
    together = (np.concatenate([getattr(some, name) for some in every]) for name in names)
    source, first_score, signals, weak, strong = together
    return Lessons(source, first_score, np.empty((len(source), 0)), signals, weak, strong)


@dataclass(frozen=True, slots=True)
class Line:
    """A logistic regression: the logit is `inputs @ weights + intercept`."""

    weights: Floats
    intercept: float

    def logit(self, inputs: Floats) -> Floats:
        return np.asarray(inputs @ self.weights + self.intercept)


def regress(inputs: Floats, outcome: Floats, penalty: float) -> Line:
    """The logistic regression of `outcome`, 0 to 1, with `penalty` on the squared weights of standardized inputs."""
    mean, scale = inputs.mean(axis=0), inputs.std(axis=0) + 1e-9
    columns = np.column_stack([(inputs - mean) / scale, np.ones(len(inputs))])
    weights = np.zeros(columns.shape[1])
    hold = np.diag([penalty] * inputs.shape[1] + [1e-3])
    for _ in range(30):
        chance = _chance(columns @ weights)
        gradient = columns.T @ (chance - outcome) + hold @ weights
        curvature = (columns * (chance * (1 - chance))[:, None]).T @ columns + hold
        step = np.linalg.solve(curvature, gradient)
        weights -= step
        if np.abs(step).max() < 1e-6:
            break
    plain = weights[:-1] / scale
    return Line(plain, float(weights[-1] - mean @ plain))


@dataclass(frozen=True, slots=True)
class Heads:
    """Whether the weak and the strong model are right, from axes of the hidden state and everything else."""

    mean: Floats
    axes: Floats
    """Shape `(width, kept)`."""
    weak: Line
    strong: Line

    def logits(self, some: Lessons) -> Floats:
        """Shape `(n, 2)`: weak, strong."""
        inputs = _inputs(some, self.mean, self.axes)
        return np.stack([self.weak.logit(inputs), self.strong.logit(inputs)], axis=1)


def heads(some: Lessons) -> Heads:
    mean = some.hidden.mean(axis=0)
    centred = some.hidden - mean
    axes = np.empty((0, 0))
    if len(mean):
        axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :AXES]
    inputs = _inputs(some, mean, axes)
    return Heads(mean, axes, regress(inputs, some.weak, PENALTY), regress(inputs, some.strong, PENALTY))


@dataclass(frozen=True, slots=True)
class Trained:
    """A second look: one weight for each input of its graph. Two regressions and a third over them are one line."""

    hidden: Floats
    plain: Floats
    """Of the first score's logit, then of the signals."""
    intercept: float

    def logit(self, some: Lessons) -> Floats:
        return np.asarray(some.hidden @ self.hidden + _plain(some) @ self.plain + self.intercept)

    def score(self, some: Lessons) -> Floats:
        """P(strong preferred)."""
        return _chance(self.logit(some))


def fit(some: Lessons) -> Trained:
    """Train on `some`, so that what is learnt holds for a source that is not among them; one alone is cut in parts."""
    unseen = np.zeros((len(some.source), 2))
    parts = some.source if len(np.unique(some.source)) > 1 else np.arange(len(some.source)) % PARTS
    for part in np.unique(parts):
        here = parts == part
        unseen[here] = heads(some.rows(~here)).logits(some.rows(here))
    blend = regress(np.column_stack([unseen, _plain(some)]), some.outcome, BLEND_PENALTY)
    both = heads(some)
    hidden, plain = np.zeros(some.hidden.shape[1]), blend.weights[2:].copy()
    intercept = blend.intercept
    for line, share in zip((both.weak, both.strong), blend.weights[:2], strict=True):
        kept = both.axes.shape[1]
        hidden += share * (both.axes @ line.weights[:kept])
        plain += share * line.weights[kept:]
        intercept += share * (line.intercept - both.mean @ both.axes @ line.weights[:kept])
    return Trained(hidden, plain, float(intercept))


def held_out(some: Lessons) -> Floats:
    """Scores of each source by a second look trained on the others, as far as these may train what is shipped."""
    trains = np.array([ORIGINS[name].trains for name in some.source.tolist()])
    scores = np.zeros(len(some.source))
    for name in np.unique(some.source):
        here = some.source == name
        scores[here] = fit(some.rows(trains & ~here)).score(some.rows(here))
    return scores


def ship(some: Lessons, out: Path, model_sha256: str) -> Calibration:
    """Train on all of `some` that may train, and write the graph and its calibration to `out`.

    The calibration is of each question's score by a second look that had not seen its source.

    Raises:
        RouterError: the questions are of fewer than two sources.
    """
    some = some.rows(np.array([ORIGINS[name].trains for name in some.source.tolist()]))
    if len(np.unique(some.source)) < 2:
        raise RouterError("A second look learns from questions of two sources at least: ask the model more of them.")
    trained, unseen = fit(some), held_out(some)
    digest = hashlib.sha256(model_sha256.encode())
    for array in (trained.hidden, trained.plain, np.array(trained.intercept)):
        digest.update(np.ascontiguousarray(array, dtype=np.float32).tobytes())
    names = ", ".join(f"{(some.source == name).sum()} {name}" for name in np.unique(some.source))
    right = f"the model was right on {some.weak.mean():.3f}"
    calibration = measured(
        "second_look", digest.hexdigest()[:12], unseen, some.outcome,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        sample=f"questions of sources left out of training in turn: {names}; {right}",
    )  # fmt: skip
    metadata = {"version": calibration.version, "date": calibration.date, "model_sha256": model_sha256}
    write_second_look(
        out / FILE,
        hidden=trained.hidden.astype(np.float32),
        plain=trained.plain.astype(np.float32),
        intercept=trained.intercept,
        metadata=metadata,
    )
    calibration.save(out / "calibration.json")
    return calibration


def _inputs(some: Lessons, mean: Floats, axes: Floats) -> Floats:
    return np.column_stack([(some.hidden - mean) @ axes, _plain(some)])


def _plain(some: Lessons) -> Floats:
    chance = np.clip(some.first_score, 1e-4, 1 - 1e-4)
    return np.column_stack([np.log(chance / (1 - chance)), some.signals])


def _chance(logit: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(logit, -30, 30))))
