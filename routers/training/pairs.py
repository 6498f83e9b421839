"""From sources to comparisons of two models on one prompt, and the split that keeps prompts for calibration."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from routers.training.data import Source

STRONG, WEAK = 0, 1
"""Tiers."""


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Outcomes of pairs of models on the same prompt; all arrays but the last of one length."""

    prompt: NDArray[np.int64]
    """Row among the prompts of all sources, in order."""
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    outcome: NDArray[np.float32]
    """1 where the first was better, 0 where the second was, a half where they were equal."""
    group: NDArray[np.int64]
    """The source: outcomes compare within one."""
    spread: NDArray[np.float32]
    """Of the source: standard deviation over its prompts of the strong models' mean lead."""
    weight: NDArray[np.float32]
    """Sums over a source to its own weight."""
    tiers: NDArray[np.int64]
    """Of the models."""


def compare(sources: Sequence[Source], keep: Sequence[NDArray[np.bool_]]) -> Comparisons:
    """Every strong model of a source against every weak one, on the prompts that `keep` marks.

    An ideal model whose every answer is right stands beside the strong ones and counts as much as they do together:
    where even they fail, the weak model's failure still says that the prompt is hard.
    """
    tiers: list[int] = []
    columns: list[tuple[NDArray[np.generic], ...]] = []
    start = 0
    for number, (source, kept) in enumerate(zip(sources, keep, strict=True)):
        spread = _spread(source, kept)
        first = len(tiers)
        tiers += [STRONG] * (len(source.strong) + 1) + [WEAK] * len(source.weak)
        ideal = np.ones(len(source.prompts), dtype=np.float32)
        better = [*(source.outcomes[model] for model in source.strong), ideal]
        for strong, won in enumerate(better):
            for weak, model in enumerate(source.weak):
                lead = won - source.outcomes[model]
                rows = np.flatnonzero(kept & ~np.isnan(lead))
                share = source.weight * (0.5 if won is ideal else 0.5 / len(source.strong))
                columns.append(
                    (
                        rows + start,
                        np.full(len(rows), first + strong),
                        np.full(len(rows), first + len(better) + weak),
                        (0.5 + lead[rows] / 2).astype(np.float32),
                        np.full(len(rows), number),
                        np.full(len(rows), spread),
                        np.full(len(rows), share / len(source.weak) / len(rows)),
                    )
                )
        start += len(source.prompts)
    prompt, better_model, worse, outcome, group, spreads, weight = (
        np.concatenate(each) for each in zip(*columns, strict=True)
    )
    return Comparisons(
        prompt, better_model, worse, outcome, group, spreads.astype(np.float32), weight.astype(np.float32),
        np.array(tiers),
    )  # fmt: skip


def _spread(source: Source, kept: NDArray[np.bool_]) -> float:
    lead = (1 + source.quality(source.strong)) / 2 - source.quality(source.weak)
    return float(np.nanstd(lead[kept]))


def held_back(prompts: Sequence[str], share: float = 0.15) -> NDArray[np.bool_]:
    """Which prompts calibrate and never train: the same ones in every run, whatever the source."""
    hashed = [int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4]) for text in prompts]
    return np.array(hashed, dtype=np.float64) < share * 2**32
