"""Judges second looks on whole sources that they were not trained on, beside what the prompt alone tells."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from routers.calibration import measured
from routers.evaluation.metrics import curve, interval
from routers.training.questions import ORIGINS
from routers.training.second_look import CHOICES, Lessons, held_out

Floats = NDArray[np.float64]
LEVELS = (0.5, 0.8)
LEAST_GAP = 0.1
"""Between two models; where it is smaller there is little to recover, and shares of it say nothing."""


@dataclass(frozen=True, slots=True)
class Row:
    """One router on some sources; shares and APGR as fractions, intervals 95 % bootstrap over questions."""

    sources: str
    router: str
    n: int
    weak: float
    strong: float
    apgr: float
    apgr_interval: tuple[float, float]
    cpt: tuple[float, float]
    """At 50 and 80 % of the gap."""
    cpt_interval: tuple[tuple[float, float], tuple[float, float]]
    thrown_away: float
    """Of the answers that the weak model begins, those given up at CPT50: all its calls, where it begins first."""
    error: float | None
    """Expected calibration error of scores that are probabilities."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What second looks are worth on sources that they were not trained on."""

    rows: Sequence[Row]
    lead: float
    """APGR of `combined` less that of `mf`, on the first group."""
    lead_interval: tuple[float, float]
    """95 % bootstrap, on the same questions for both."""


@dataclass(frozen=True, slots=True)
class View:
    """What of the lessons a second look may see, and which penalties of `CHOICES` it has the choice of."""

    of: Callable[[Lessons], Lessons]
    choices: Sequence[tuple[float, float]] = CHOICES


LOOKS: Mapping[str, View] = {
    "prefill probe": View(
        lambda some: replace(some, first_score=np.full(len(some.weak), 0.5), signals=np.zeros_like(some.signals)),
        [choice for choice in CHOICES if np.isinf(choice[0]) and np.isfinite(choice[1])],
    ),
    "first-token rule": View(lambda some: some, CHOICES[:1]),
    "combined": View(lambda some: some),
}


AS_SERVED = "rule, as served"
"""The first-token rule on the first tokens that the model would have written, whether or not they are the letter."""


def judge(some: Lessons, first_looks: Mapping[str, Floats], lengths: Floats, draws: int = 1000) -> Verdict:
    """Judge each router on each group of sources.

    `first_looks` are scores of the same questions by routers that see the prompt alone, `lengths` their characters.
    """
    scores = {
        "random": np.random.default_rng(0).random(len(lengths)),
        "length": lengths,
        **first_looks,
        **{name: held_out(view.of(some), view.choices) for name, view in LOOKS.items()},
        AS_SERVED: held_out(some, CHOICES[:1], replace(some, signals=some.own)),
        "oracle": some.strong - some.weak,
    }
    rows = []
    for label, names in groups(some).items():
        chosen = np.isin(some.source, names)
        for router, values in scores.items():
            rows.append(_row(label, router, values[chosen], some.rows(chosen), draws))
    chosen = np.isin(some.source, groups(some)[POOLED])
    return Verdict(rows, *_lead(scores["combined"][chosen], scores["mf"][chosen], some.rows(chosen), draws))


POOLED = "all, strong GPT-4"


def groups(some: Lessons) -> dict[str, Sequence[str]]:
    """Sources together whose strong model is of one class, then each by itself where its strong model is the better."""
    names = [name for name in ORIGINS if name in some.source]
    better = [name for name in names if (some.strong - some.weak)[some.source == name].mean() >= LEAST_GAP]
    return {POOLED: [name for name in names if "gpt-4" in ORIGINS[name].strong], **{name: [name] for name in better}}


def _row(label: str, router: str, scores: Floats, some: Lessons, draws: int) -> Row:
    whole = curve(scores, some.strong, some.weak)
    spread = interval(scores, some.strong, some.weak, draws)
    error = None
    looks = router in LOOKS or router == AS_SERVED
    if looks:
        error = measured(router, "", scores, some.outcome, date="", sample=label).expected_calibration_error
    return Row(
        label, router, len(scores), whole.weak, whole.strong, whole.apgr, spread["apgr"],
        (whole.cpt(LEVELS[0]), whole.cpt(LEVELS[1])), (spread["cpt50"], spread["cpt80"]),
        whole.cpt(LEVELS[0]) if looks else 0.0, error,
    )  # fmt: skip


def _lead(scores: Floats, others: Floats, some: Lessons, draws: int) -> tuple[float, tuple[float, float]]:
    random = np.random.default_rng(0)
    leads = []
    for _ in range(draws):
        rows = random.integers(0, len(scores), len(scores))
        pair = [curve(each[rows], some.strong[rows], some.weak[rows]).apgr for each in (scores, others)]
        leads.append(pair[0] - pair[1])
    whole = curve(scores, some.strong, some.weak).apgr - curve(others, some.strong, some.weak).apgr
    low, high = np.percentile(leads, [2.5, 97.5])
    return whole, (float(low), float(high))


def table(verdict: Verdict) -> Table:
    """For people."""
    shown = Table("sources", "router", "n", "APGR", "CPT50", "CPT80", "thrown away", "calibration error")
    for row in verdict.rows:
        cpts = [
            f"{share:.1%} [{low:.0%}, {high:.0%}]" for share, (low, high) in zip(row.cpt, row.cpt_interval, strict=True)
        ]
        low, high = row.apgr_interval
        error = "" if row.error is None else f"{row.error:.3f}"
        apgr = f"{row.apgr:.3f} [{low:.2f}, {high:.2f}]"
        shown.add_row(row.sources, row.router, str(row.n), apgr, *cpts, f"{row.thrown_away:.0%}", error)
    return shown
