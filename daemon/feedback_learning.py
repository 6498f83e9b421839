"""Learns a router's correction from the verdicts in the ledger, and says what it is worth on verdicts held out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from daemon.feedback import Judged, all_of
from routers.calibration import keep, shipped, versions
from routers.correction import Correction, Floats, learn
from routers.encoder import DIMENSION
from routers.interface import RouterError

FEWEST = 50
"""Verdicts; with fewer, chance decides what is learnt."""
FEWEST_OF_A_KIND = 5
"""Of those for the cloud and of those for here: all of one kind tell nothing about the difference."""
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Worth:
    """Router and correction on verdicts that the correction was not learnt from."""

    n: int
    before: float
    """Of two prompts, one for each place, how often the router scores the cloud's higher; 0.5 is chance."""
    after: float


def correct(router: str, ledger: Path, folder: Path) -> tuple[Path, Worth]:
    """Learn a correction of the shipped `router`, and keep it in `folder` as the latest; its file and its worth.

    Raises `RouterError` where the verdicts do not do, or what they teach makes the order of prompts no better;
    `LedgerError` where there are none to read.
    """
    version = shipped(router).version
    label = f"{router}@{version}"
    judged = [each for each in all_of(ledger) if each.router == label and each.vector is not None and each.route]
    due = np.array([each.strong_was_due for each in judged], dtype=bool)
    if len(judged) < FEWEST:
        raise RouterError(
            f"there are {len(judged)} verdicts with an embedding on what {label} scored, and learning takes {FEWEST}: "
            "give more with `upcall feedback right ID`, or on the dashboard"
        )
    if min(due.sum(), (~due).sum()) < FEWEST_OF_A_KIND:
        raise RouterError(
            f"of {len(judged)} verdicts {due.sum()} are for the cloud, and learning takes {FEWEST_OF_A_KIND} for "
            "either place: there is nothing to tell apart yet"
        )
    scores, vectors = _inputs(judged)
    correction, worth = lesson(router, version, scores, vectors, due)
    if worth.after < worth.before:
        raise RouterError(
            f"nothing is changed: on verdicts held out, what {worth.n} verdicts teach orders prompts no better "
            f"({worth.before:.3f} before, {worth.after:.3f} after); give more of them"
        )
    return keep(correction, folder), worth


def lesson(
    router: str, version: str, scores: Floats, vectors: Floats, due: NDArray[np.bool_]
) -> tuple[Correction, Worth]:
    """A correction learnt from all verdicts (see `learn`), and what its like is worth on a fifth of them at a time."""
    after = np.zeros(len(scores))
    fold = np.random.default_rng(0).permutation(len(scores)) % FOLDS
    for each in range(FOLDS):
        out = fold == each
        after[out] = learn(router, version, scores[~out], vectors[~out], due[~out]).of(scores[out], vectors[out])
    worth = Worth(len(scores), _concordance(scores, due), _concordance(after, due))
    return learn(router, version, scores, vectors, due, date=time.strftime("%Y-%m-%d")), worth


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


def _concordance(scores: Floats, due: NDArray[np.bool_]) -> float:
    """Area under the ROC curve; ties count half."""
    lead = scores[due][:, None] - scores[~due][None, :]
    return float((lead > 0).mean() + (lead == 0).mean() / 2)
