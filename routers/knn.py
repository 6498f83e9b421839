"""The nearest-neighbour router: what happened on the most similar prompts whose outcome is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from routers.encoder import DIMENSION, Encoder
from routers.graph import ARTIFACTS
from routers.references import References, read

NEIGHBOURS = 100
SHARPNESS = 10.0
"""A neighbour weighs as exp(SHARPNESS * cosine)."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A known prompt near the one asked about; its text is not kept."""

    source: str
    """Where it is from, and which part of that."""
    similarity: float
    """Cosine."""
    lead: float
    """How far strong models were ahead of weak ones, in standard deviations of the source."""


class NearestNeighboursRouter:
    """The weighted mean lead of the strong models on the nearest prompts, calibrated.

    Raises:
        RouterError: the artifact is missing, damaged or for another encoder.
    """

    name = "knn"

    def __init__(self, encoder: Encoder, artifact: Path = ARTIFACTS / "knn" / "knn.npz") -> None:
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

    def explain(self, vector: NDArray[np.float32], count: int = 5) -> list[Neighbour]:
        """The `count` known prompts nearest to the one that the encoder made `vector` of, nearest first."""
        similarity = self._known.similarity(vector[None])[0]
        nearest = np.argsort(-similarity)[:count]
        parts, part, lead = (self._known.columns[name] for name in ("parts", "part", "lead"))
        return [Neighbour(str(parts[part[row]]), float(similarity[row]), float(lead[row]) / 32) for row in nearest]


def leads(known: References, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weighted mean lead of the nearest references of each of `vectors`, before calibration."""
    similarity = known.similarity(vectors)
    nearest = np.argpartition(-similarity, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    weight = np.exp(SHARPNESS * np.take_along_axis(similarity, nearest, axis=1))
    lead = known.columns["lead"].astype(np.float32)[nearest] / 32
    mean: NDArray[np.float32] = (weight * lead).sum(axis=1) / weight.sum(axis=1)
    return mean
