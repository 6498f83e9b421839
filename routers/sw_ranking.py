"""Similarity-weighted ranking (RouteLLM, arXiv 2406.18665 §4.2): a Bradley-Terry ranking made anew for every prompt.

Each known vote counts by how similar its prompt is to the one asked about. Models are ranked by tier, as in the paper,
so all votes add up to one small table of wins, and the ranking is a few Newton steps on ten unknowns: under a
millisecond, where the paper fits a logistic regression to every vote.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from routers.encoder import DIMENSION, Encoder
from routers.graph import ARTIFACTS
from routers.references import References, read

GAMMA = 10.0
"""A vote weighs GAMMA^(1 + S), S its similarity relative to the most similar vote's."""
STRONG, WEAK = (0, 1), (2,)
"""Tiers of the strong and the weak models, as in the paper."""
WIN = 64
"""What a win counts in the artifact, a tie half of it; golden labels lie between."""
RIDGE = 1e-3
"""Pull of every tier towards 0, so that a tier without votes has a finite rank."""


class SimilarityWeightedRouter:
    """How far the strong tiers rank above the weak one when votes on similar prompts count more, calibrated.

    Raises:
        RouterError: the artifact is missing, damaged or for another encoder.
    """

    name = "sw_ranking"

    def __init__(self, encoder: Encoder, artifact: Path = ARTIFACTS / "sw_ranking" / "sw_ranking.npz") -> None:
        self.encoder = encoder
        self._known = read(artifact, DIMENSION)
        self.version = self._known.version

    def score(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """P(strong preferred) of each prompt; see `Router.score`."""
        return self.score_embedded(prompts, self.encoder.embed(prompts))

    def score_embedded(self, prompts: Sequence[str], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same from the encoder's vectors, for who needs those too."""
        lead = [leads(self._known, vector[None])[0] for vector in vectors]
        return self._known.rate(np.array(lead, dtype=np.float32))


def leads(known: References, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rank of the strong tiers less that of the weak one for each of `vectors`, in logits, before calibration."""
    first, second = known.columns["first"].astype(np.int64), known.columns["second"].astype(np.int64)
    outcome = known.columns["outcome"].astype(np.float32) / WIN
    tiers = int(max(first.max(), second.max())) + 1
    similarity = known.similarity(vectors)
    relative = similarity / np.maximum(similarity.max(axis=1, keepdims=True), 1e-6)
    weights = GAMMA ** (1 + np.clip(relative, -1, 1))
    ranked = np.zeros(len(vectors), dtype=np.float32)
    for row, weight in enumerate(weights):
        weight = weight / weight.mean()
        wins = np.zeros((tiers, tiers))
        wins += np.bincount(first * tiers + second, weight * outcome, tiers * tiers).reshape(tiers, tiers)
        wins += np.bincount(second * tiers + first, weight * (1 - outcome), tiers * tiers).reshape(tiers, tiers)
        ranks = bradley_terry(wins)
        ranked[row] = ranks[list(STRONG)].mean() - ranks[list(WEAK)].mean()
    return ranked


def bradley_terry(wins: NDArray[np.float64], steps: int = 8) -> NDArray[np.float64]:
    """Ranks in logits that best explain `wins[a, b]`, how much a won against b; Newton's method from all equal."""
    games = wins + wins.T
    ranks = np.zeros(len(wins))
    for _ in range(steps):
        chance = 1 / (1 + np.exp(ranks[None, :] - ranks[:, None]))
        gradient = (wins - games * chance).sum(axis=1) - RIDGE * ranks
        curvature = -games * chance * (1 - chance)
        np.fill_diagonal(curvature, 0)
        np.fill_diagonal(curvature, RIDGE - curvature.sum(axis=1))
        ranks = ranks + np.clip(np.linalg.solve(curvature, gradient), -2, 2)
    return ranks
