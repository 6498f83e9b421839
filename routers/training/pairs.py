"""From sources to comparisons of two models on one prompt, and the split that keeps prompts for calibration."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from routers.training.data import Source

STRONG, WEAK = 0, 1
"""Tiers."""


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Outcomes of pairs of models on the same prompt; all arrays of one length."""

    prompt: NDArray[np.int64]
    """Row among the prompts of all sources, in order."""
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    outcome: NDArray[np.float32]
    """1 where the first was better, 0 where the second was, a half where they were equal."""
    source: NDArray[np.int64]
    weight: NDArray[np.float32]
    """Sums to the source's weight over the source."""
    names: Sequence[str]
    """Of the models."""
    tiers: NDArray[np.int64]
    """Of the models."""


def compare(sources: Sequence[Source], weights: Mapping[str, float], keep: Sequence[NDArray[np.bool_]]) -> Comparisons:
    """Every strong model of a source against every weak one, on the prompts that `keep` marks."""
    names: list[str] = []
    tiers: list[int] = []
    columns: list[tuple[NDArray[np.int64], int, int, NDArray[np.float32], int, NDArray[np.float32]]] = []
    start = 0
    for number, (source, kept) in enumerate(zip(sources, keep, strict=True)):
        ids = {model: len(names) + offset for offset, model in enumerate((*source.strong, *source.weak))}
        names += [f"{source.name}/{model}" for model in ids]
        tiers += [STRONG] * len(source.strong) + [WEAK] * len(source.weak)
        pairs = [(strong, weak) for strong in source.strong for weak in source.weak]
        lead = {pair: source.outcomes[pair[0]] - source.outcomes[pair[1]] for pair in pairs}
        usable = {pair: np.flatnonzero(kept & ~np.isnan(lead[pair])) for pair in pairs}
        total = sum(map(len, usable.values()))
        for (strong, weak), rows in usable.items():
            outcome = (0.5 + lead[strong, weak][rows] / 2).astype(np.float32)
            weight = np.full(len(rows), weights[source.name] / total, dtype=np.float32)
            columns.append((rows + start, ids[strong], ids[weak], outcome, number, weight))
        start += len(source.prompts)
    count = [len(column[0]) for column in columns]
    return Comparisons(
        np.concatenate([column[0] for column in columns]),
        np.repeat([column[1] for column in columns], count),
        np.repeat([column[2] for column in columns], count),
        np.concatenate([column[3] for column in columns]),
        np.repeat([column[4] for column in columns], count),
        np.concatenate([column[5] for column in columns]),
        names,
        np.array(tiers),
    )


def held_back(prompts: Sequence[str], share: float = 0.15) -> NDArray[np.bool_]:
    """Which prompts calibrate and never train: the same ones in every run, whatever the source."""
    hashed = [int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4]) for text in prompts]
    return np.array(hashed, dtype=np.float64) < share * 2**32
