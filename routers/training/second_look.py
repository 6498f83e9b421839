"""Trains the second look of one local model on what became of public questions: `upcall learn-model`.

What is learnt is whether this model is right: a logistic regression on how sure it was, the first look's score and its
hidden state. Whether a strong model is right is nearly as likely everywhere, and stays a constant: attempts of a weak
model tell little of it, and few sources have a strong model's answers.
"""

import datetime
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from routers import logistic
from routers.calibration import Calibration, measured, shipped
from routers.interface import RouterError
from routers.logistic import Floats
from routers.second_look import FILE, FIRST_LOOK, signals
from routers.training.attempts import Attempts
from routers.training.export import write_second_look
from routers.training.questions import ORIGINS, Question

AXES = 64
"""Of the hidden state, those along which it varies most."""
PENALTY = 1.0
"""Of squared weights of standardized inputs, in questions' worth of cross entropy."""
SIGNS = np.array([-1, -1, 1, -1, 1])
"""The less sure a model is, and the harder the first look finds the prompt, the less likely it is right: the first
score's logit, then entropy and margin twice."""
CHOICES = tuple((first, hidden) for hidden in (math.inf, 1000.0, 100.0) for first in (math.inf, PENALTY))
"""Penalties of the first score and of the hidden state, simplest first: the one that holds best on sources left out."""
GAIN = 0.003
"""By how much more inputs must order the questions of such a source better; see `_order`."""
HELD_BACK = 4
"""First tokens that are judged, as by default in the daemon."""
PARTS = 3


@dataclass(frozen=True, slots=True)
class Lessons:
    """Questions put to a weak model, and what the second look may know of each."""

    source: NDArray[np.str_]
    first_score: Floats
    hidden: Floats
    """Shape `(n, width)`; of width 0 where the second look takes none."""
    signals: Floats
    own: Floats
    """The same of the first tokens that the model would have written, as the daemon has them; see `_sureness`."""
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
    said = [signals(*_sureness(found, row)) for row in range(len(found))]
    own = [signals(*_own_sureness(found, row)) for row in range(len(found))]
    return Lessons(
        np.array([questions[index].source for index in asked]),
        np.array([first_scores[index] for index in asked], dtype=np.float64),
        found.at_first.astype(np.float64),
        np.array(said),
        np.array(own),
        found.right.astype(np.float64),
        np.array([questions[index].strong for index in asked]),
    )


def _sureness(found: Attempts, row: int) -> tuple[list[float], list[float]]:
    """Entropies and margins of an answer's first tokens, no more of them than are held back.

    Where letters were chosen from these are of the letters alone. A model that answers by letter shows them with its
    first token; one that begins with other words was asked for the letter all the same.
    """
    logprobs = found.label_logprobs[row].astype(np.float64)
    logprobs = logprobs[~np.isnan(logprobs)]
    if len(logprobs) < 2:
        return _own_sureness(found, row)
    chances = np.exp(logprobs - logprobs.max())
    chances /= chances.sum()
    first, second = np.sort(chances)[::-1][:2]
    entropy = -(chances * np.log(np.clip(chances, 1e-12, 1))).sum()
    return [float(entropy)], [float(first - second)]


def _own_sureness(found: Attempts, row: int) -> tuple[list[float], list[float]]:
    watched = ~np.isnan(found.margins[row, :HELD_BACK])
    return found.entropies[row, :HELD_BACK][watched].tolist(), found.margins[row, :HELD_BACK][watched].tolist()


def of_any(every: Sequence[Lessons]) -> Lessons:
    """The lessons of several models as those of any: without hidden states, which only one of them has."""
    names = [name for name in Lessons.__slots__ if name != "hidden"]
    together = (np.concatenate([getattr(some, name) for some in every]) for name in names)
    source, first_score, signals, own, weak, strong = together
    return Lessons(source, first_score, np.empty((len(source), 0)), signals, own, weak, strong)


def signed(inputs: Floats, outcome: Floats, penalties: Floats, signs: NDArray[np.int_]) -> tuple[Floats, float]:
    """Weights and intercept of the logistic regression of `outcome`, 0 to 1, with `penalties` on the squared weights.

    An infinite penalty leaves an input out. Where `signs` is 1 or -1 a weight has that sign or is 0.
    """
    columns = np.column_stack([inputs, np.ones(len(inputs))])
    kept = np.append(np.isfinite(penalties), True)
    while True:
        weights = np.zeros(columns.shape[1])
        weights[kept] = logistic.regress(columns[:, kept], outcome, np.append(penalties, 1e-3)[kept])
        wrong = np.append(weights[:-1] * signs < 0, False)
        if not wrong.any():
            return weights[:-1], float(weights[-1])
        kept &= ~wrong


@dataclass(frozen=True, slots=True)
class Trained:
    """A second look: one weight for each input of its graph, which sum up to the logit that this model is right."""

    hidden: Floats
    plain: Floats
    """Of the first score's logit, then of the signals."""
    intercept: float
    strong: float
    """How often a strong model is right."""

    def score(self, some: Lessons) -> Floats:
        """P(strong preferred)."""
        weak = logistic.sigmoid(some.hidden @ self.hidden + _plain(some) @ self.plain + self.intercept)
        return np.asarray(0.5 + (self.strong - weak) / 2)


def fit(some: Lessons, choices: Sequence[tuple[float, float]] = CHOICES) -> Trained:
    """Train on `some`, so that what is learnt holds for a source that is not among them; one alone is cut in parts."""
    shift, turn = _inputs(some)
    inputs = (np.column_stack([_plain(some), some.hidden]) - shift) @ turn
    signs = np.zeros(inputs.shape[1], dtype=np.int_)
    signs[: len(SIGNS)] = SIGNS
    parts = some.source if len(np.unique(some.source)) > 1 else np.arange(len(some.source)) % PARTS
    best, most = np.empty(0), -math.inf
    for first, hidden in choices:
        penalties = np.full(len(signs), hidden)
        penalties[: len(SIGNS)] = first, *(PENALTY,) * (len(SIGNS) - 1)
        orders = []
        for part in np.unique(parts):
            here = parts == part
            weights, _ = signed(inputs[~here], some.weak[~here], penalties, signs)
            orders.append(_order(-inputs[here] @ weights, (some.strong - some.weak)[here]))
        if np.mean(orders) > most + GAIN:
            best, most = penalties, float(np.mean(orders))
    weights, intercept = signed(inputs, some.weak, best, signs)
    plain, hidden_weights = np.split(turn @ weights, [len(SIGNS)])
    return Trained(hidden_weights, plain, float(intercept - shift @ turn @ weights), _strong(some))


def _order(scores: Floats, lead: Floats) -> float:
    """Mean outcome where the highest `scores` go up first, less that where chance decides, over all shares.

    What is likely of all questions of a source no second look can know, and in the daemon the first look has told.
    """
    ranks = scores.argsort(kind="stable").argsort() / len(scores)
    return float(((ranks - ranks.mean()) * lead).mean())


def _inputs(some: Lessons) -> tuple[Floats, Floats]:
    """What to take off the plain inputs beside the hidden state, and what to multiply that with.

    The plain inputs are standardized; of the hidden state there remain the directions of the largest variance, scaled
    alike, so that a penalty holds back the most what varies the least.
    """
    plain = _plain(some)
    mean = some.hidden.mean(axis=0)
    _, sizes, directions = np.linalg.svd(some.hidden - mean, full_matrices=False)
    axes = directions[:AXES].T
    turn = np.zeros((plain.shape[1] + len(mean), plain.shape[1] + axes.shape[1]))
    turn[range(plain.shape[1]), range(plain.shape[1])] = 1 / (plain.std(axis=0) + 1e-9)
    if axes.size:
        turn[plain.shape[1] :, plain.shape[1] :] = axes / np.sqrt((sizes[:AXES] ** 2).mean() / len(plain))
    return np.append(plain.mean(axis=0), mean), turn


def _strong(some: Lessons) -> float:
    """How often models of the class that prompts go up to were right."""
    known = np.array(["gpt-4" in ORIGINS[name].strong for name in some.source.tolist()])
    return float(some.strong[known].mean() if known.any() else some.strong.mean())


def held_out(some: Lessons, choices: Sequence[tuple[float, float]] = CHOICES, seen: Lessons | None = None) -> Floats:
    """Scores of each source by a second look trained on the others, as far as these may train what is shipped.

    What is scored are the same questions as `seen`, where that is given.
    """
    trains = np.array([ORIGINS[name].trains for name in some.source.tolist()])
    scores = np.zeros(len(some.source))
    for name in np.unique(some.source):
        here = some.source == name
        scores[here] = fit(some.rows(trains & ~here), choices).score((seen or some).rows(here))
    return scores


def ship(some: Lessons, out: Path, model_sha256: str, choices: Sequence[tuple[float, float]] = CHOICES) -> Calibration:
    """Train on all of `some` that may train, and write the graph and its calibration to `out`.

    The calibration is of each question's score by a second look that had not seen its source.

    Raises:
        RouterError: the questions are of fewer than two sources.
    """
    some = some.rows(np.array([ORIGINS[name].trains for name in some.source.tolist()]))
    if len(np.unique(some.source)) < 2:
        raise RouterError("A second look learns from questions of two sources at least: ask the model more of them.")
    trained, unseen = fit(some, choices), held_out(some, choices)
    digest = hashlib.sha256(model_sha256.encode())
    for array in (trained.hidden, trained.plain, np.array([trained.intercept, trained.strong])):
        digest.update(np.ascontiguousarray(array, dtype=np.float32).tobytes())
    names = ", ".join(f"{(some.source == name).sum()} {name}" for name in np.unique(some.source))
    right = f"the model was right on {some.weak.mean():.3f}"
    calibration = measured(
        "second_look", digest.hexdigest()[:12], unseen, some.outcome,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        sample=f"questions of sources left out of training in turn: {names}; {right}",
    )  # fmt: skip
    metadata = {"version": calibration.version, "date": calibration.date, "model_sha256": model_sha256}
    if trained.plain[0]:
        metadata["first_look"] = f"{FIRST_LOOK}@{shipped(FIRST_LOOK).version}"
    write_second_look(
        out / FILE,
        # The hidden state comes with the second token: an answer that has only one is looked at where it has no weight.
        hidden=trained.hidden.astype(np.float32) if trained.hidden.any() else np.empty(0, np.float32),
        plain=trained.plain.astype(np.float32),
        intercept=trained.intercept,
        strong=trained.strong,
        metadata=metadata,
    )
    calibration.save(out / "calibration.json")
    return calibration


def _plain(some: Lessons) -> Floats:
    return np.column_stack([logistic.logit(np.clip(some.first_score, 1e-4, 1 - 1e-4)), some.signals])
