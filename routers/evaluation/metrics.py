"""RouteLLM's metrics, computed as its code does (arXiv 2406.18665, `routellm/evals`).

Everywhere `scores` are a router's, `strong` and `weak` the two models' quality on the same prompts (0 to 1, or a mark).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVELS = (0.2, 0.5, 0.8)
"""Shares of the quality gap at which CPT is reported."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Quality against the share of prompts sent to the strong model, at RouteLLM's eleven thresholds, share rising."""

    share: Floats
    quality: Floats
    weak: float
    strong: float

    @property
    def apgr(self) -> float:
        """Average performance gap recovered: 0 is the weak model alone, 1 the strong; random choice gives 0.5."""
        gap = (self.strong - self.weak) * (self.share[-1] - self.share[0])
        return float((np.trapezoid(self.quality, self.share) - self.weak * (self.share[-1] - self.share[0])) / gap)

    def cpt(self, level: float) -> float:
        """Share of strong calls at which `level` of the quality gap is recovered, 0 to 1.

        As in RouteLLM this takes quality to rise with the share; on a curve that falls anywhere, read it with care.
        """
        return float(np.interp(self.weak + level * (self.strong - self.weak), self.quality, self.share))


def curve(scores: NDArray[np.floating], strong: Floats, weak: Floats, seed: int = 0) -> Curve:
    """The curve of `scores`: thresholds at their deciles, strong chosen at or above each. Ties are broken by `seed`.

    RouteLLM's `pd.qcut` fails on tied scores. Only the order of the scores matters, so ranks stand in for them.
    """
    n = len(scores)
    shuffled = np.random.default_rng(seed).permutation(n)
    order = shuffled[np.argsort(-scores[shuffled], kind="stable")]  # hardest first
    gain = np.concatenate([[0.0], np.cumsum((strong - weak)[order])])
    ranks = np.quantile(np.arange(n), np.linspace(0, 1, 11))  # decile edges among ascending scores
    chosen = n - np.ceil(ranks).astype(int)
    chosen[-1] = 0
    chosen = chosen[::-1]
    mean_weak = float(weak.mean())
    return Curve(chosen / n, mean_weak + gain[chosen] / n, mean_weak, float(strong.mean()))


def interval(
    scores: NDArray[np.floating], strong: Floats, weak: Floats, draws: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals over prompts: `apgr` and `cpt20`, `cpt50`, `cpt80`."""
    random = np.random.default_rng(seed)
    samples: dict[str, list[float]] = {"apgr": [], **{f"cpt{level * 100:.0f}": [] for level in LEVELS}}
    for draw in range(draws):
        rows = random.integers(0, len(scores), len(scores))
        drawn = curve(scores[rows], strong[rows], weak[rows], seed=draw)
        if drawn.strong <= drawn.weak:
            continue  # no gap to recover in this draw
        samples["apgr"].append(drawn.apgr)
        for level in LEVELS:
            samples[f"cpt{level * 100:.0f}"].append(drawn.cpt(level))
    return {name: percentiles(values) for name, values in samples.items()}


def percentiles(values: list[float]) -> tuple[float, float]:
    """Between which 95 % of `values` lie."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
