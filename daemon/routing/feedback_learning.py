"""Learns a router's correction from the verdicts in the ledger, and says what it is worth on verdicts held out."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from daemon.routing.feedback import Judged, all_of
from routers.calibration import keep, shipped, versions
from routers.correction import Correction, Lesson
from routers.encoder import DIMENSION
from routers.interface import RouterError
from routers.logistic import Floats, curvature, regress, sigmoid

FEWEST = 50
"""Verdicts; with fewer, chance decides what is learnt."""
FEWEST_OF_A_KIND = 5
"""Of those for the cloud and of those for here: all of one kind tell nothing about the difference."""
FOLDS, REPEATS = 5, 10
"""Verdicts are held out a fifth at a time, divided anew so many times."""
LEAST = 1.0
"""Standard errors by which the held-out order must be better for anything to be kept."""
LIKELY, CERTAIN = 3.0, 6.0
"""From the second on, all that was learnt is kept; from the first on a long step, and with fewer a short one, since
what is learnt may be wrong."""
LONG, SHORT, MANY = 0.06, 0.015, 200
"""Mean change of a prompt's rank, as a share of all ranks, in either, from so many verdicts on; with fewer a
short one is shorter in proportion, since then chance decides more of what is learnt."""
DEPENDENT, PLAINLY = 2.5, 1.0
"""Standard errors by which verdicts may depend on who answered, among prompts that score alike; with more than the
second only a short step is taken."""


@dataclass(frozen=True, slots=True)
class Worth:
    """Router and correction on verdicts that the correction was not learnt from."""

    n: int
    before: float
    """Of two prompts, one for each place, how often the router scores the cloud's higher; 0.5 is chance."""
    after: float
    error: float
    """Standard error of the difference."""
    dependence: float
    """Standard errors by which the cloud is asked for more often where it answered than where a prompt of the same
    score was answered here: a verdict on an answer, and not on the choice, has much of that."""
    step: float
    """How far the correction goes from none (0) to all that was learnt (1)."""

    @property
    def refusal(self) -> str:
        """Why nothing is to be changed, on one line; empty where it is good enough."""
        if self.dependence > DEPENDENT:
            return (
                "of prompts that score alike, those answered in the cloud were judged to belong there more often than "
                "those answered here, as if the verdicts were on the answers; say whether the choice was right, and "
                "`upcall feedback forget` what was meant otherwise"
            )
        if self.after - self.before < LEAST * self.error:
            return (
                f"on verdicts held out, what {self.n} verdicts teach orders prompts not clearly better "
                f"({self.before:.3f} before, {self.after:.3f} after, standard error {self.error:.3f}); give more"
            )
        return ""


def correct(router: str, ledger: Path, folder: Path) -> tuple[Path, Worth]:
    """Learn a correction of the shipped `router`, and keep it in `folder` as the latest; its file and its worth.

    Raises `RouterError` where the verdicts do not do, or what they teach does not make the order of prompts clearly
    better; `LedgerError` where there are none to read.
    """
    version = shipped(router).version
    label = f"{router}@{version}"
    usable = [each for each in all_of(ledger) if each.router == label and each.vector is not None and each.route]
    # The requests of one conversation show the same turn, and verdicts on it would foretell each other: the latest
    # counts.
    judged = list({each.vector: each for each in usable}.values())
    due = np.array([each.strong_was_due for each in judged], dtype=bool)
    if len(judged) < FEWEST:
        raise RouterError(
            f"there are {len(judged)} verdicts with an embedding on different prompts that {label} scored, "
            f"and learning takes {FEWEST}: "
            "give more with `upcall feedback right ID`, or on the dashboard"
        )
    if min(due.sum(), (~due).sum()) < FEWEST_OF_A_KIND:
        raise RouterError(
            f"of {len(judged)} verdicts {due.sum()} are for the cloud, and learning takes {FEWEST_OF_A_KIND} for "
            "either place: there is nothing to tell apart yet"
        )
    up = np.array([each.route == "cloud" for each in judged], dtype=bool)
    correction, worth = lesson(router, version, *_inputs(judged), due, up)
    if worth.refusal:
        raise RouterError(f"nothing is changed: {worth.refusal}")
    if correction.slope <= 0:
        raise RouterError(
            f"nothing is changed: by {worth.n} verdicts the prompts that {label} finds hard are the easy ones; "
            "`upcall feedback list` shows whether they were meant so"
        )
    return keep(correction, folder), worth


def lesson(
    router: str, version: str, scores: Floats, vectors: Floats, due: NDArray[np.bool_], up: NDArray[np.bool_]
) -> tuple[Correction, Worth]:
    """A correction learnt from all verdicts, and what it is worth.

    `scores` (n,) are the router's, `vectors` (n, 512) the prompts'; `due` (n,) says whether the cloud was, `up` (n,)
    whether it answered.
    """
    learnt = Lesson(scores, vectors, due)
    before, gains = _held_out(learnt, due)
    gain = float(gains[due].mean())
    # As for a difference of two areas under ROC curves (DeLong and others, 1988).
    error = math.sqrt(sum(float(gains[kind].var(ddof=1)) / kind.sum() for kind in (due, ~due)))
    dependence = _dependence(learnt.own, due, up)
    most = SHORT * min(1.0, len(due) / MANY)
    if gain >= LIKELY * error and dependence <= PLAINLY:
        most = 1.0 if gain >= CERTAIN * error else LONG
    step = _step(learnt, most)
    worth = Worth(len(due), before, before + gain, error, dependence, step)
    return learnt.correction(router, version, step, time.strftime("%Y-%m-%d")), worth


def take_back(router: str, folder: Path) -> Path:
    """Remove the latest correction of `router`; the one before holds again. Raises `RouterError`."""
    if not (kept := versions(router, folder)):
        raise RouterError(f"there is no correction of {router} in {folder}")
    kept[-1].unlink()
    return kept[-1]


def _inputs(judged: Sequence[Judged]) -> tuple[Floats, Floats]:
    scores = np.array([each.score for each in judged], dtype=np.float64)
    vectors = np.frombuffer(b"".join(each.vector or b"" for each in judged), dtype="<f2").reshape(-1, DIMENSION)
    return scores, vectors.astype(np.float64)


def _held_out(learnt: Lesson, due: NDArray[np.bool_]) -> tuple[float, Floats]:
    """How well the router orders prompts of the two kinds, and by how much more often each prompt stands right to those
    of the other kind once corrected (n,); over pairs that were held out together."""
    random = np.random.default_rng(0)
    before, gains = 0.0, np.zeros(len(due))
    fold = np.zeros(len(due), dtype=np.intp)
    for _ in range(REPEATS):
        for kind in (due, ~due):
            fold[kind] = random.permutation(int(kind.sum())) % FOLDS
        for each in range(FOLDS):
            rows = np.flatnonzero(fold == each)
            own = _standing(learnt.own[rows], due[rows])
            before += float(own[due[rows]].sum()) / due.sum() / REPEATS
            gains[rows] += (_standing(learnt.held_out(rows), due[rows]) - own) / REPEATS
    return before, gains


def _standing(leads: Floats, due: NDArray[np.bool_]) -> Floats:
    """For each prompt (n,), how often it stands right to one of the other kind; ties count half."""
    ahead = leads[due][:, None] - leads[~due][None, :]
    right = (ahead > 0) + (ahead == 0) / 2
    standing = np.zeros(len(leads))
    standing[due], standing[~due] = right.mean(axis=1), right.mean(axis=0)
    return standing


def _step(learnt: Lesson, most: float) -> float:
    """The longest step, up to 1, that changes ranks by `most` of them on average."""
    ranks = _ranks(learnt.own)
    low, high = 0.0, 2.0
    for _ in range(20):
        step = (low + high) / 2
        moved = float(np.abs(_ranks(learnt.leads(step)) - ranks).mean()) / len(ranks)
        low, high = (step, high) if moved <= most else (low, step)
    return min(low, 1.0)


def _ranks(leads: Floats) -> NDArray[np.intp]:
    return leads.argsort(kind="stable").argsort()


def _dependence(own: Floats, due: NDArray[np.bool_], up: NDArray[np.bool_]) -> float:
    """See `Worth.dependence`: the route's coefficient beside the score, by its standard error."""
    if up.all() or not up.any():
        return 0.0
    columns = np.column_stack([np.ones(len(own)), (own - own.mean()) / (own.std() or 1.0), up])
    # Hardly any; without it, kinds that are told apart without a mistake have no finite weights.
    pull = np.array([1e-3, 1e-3, 0.1])
    weights = regress(columns, due, pull)
    covariance = np.linalg.inv(curvature(columns, sigmoid(columns @ weights), pull))
    return float(weights[2] / math.sqrt(covariance[2, 2]))
