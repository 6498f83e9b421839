"""The matrix factorization router (RouteLLM, arXiv 2406.18665), on this machine: no embedding leaves it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from routers.encoder import DIMENSION, Encoder
from routers.features import log_length
from routers.graph import ARTIFACTS, Graph


class MatrixFactorizationRouter:
    """Scores a model on a prompt as v · (P[m] ⊙ W x); the win rate is the logistic of the strong model's lead.

    Beside the prompt's vector, x holds the length of its question and the product of the two.

    Raises:
        RouterError: the artifact is missing, damaged or for another encoder.
    """

    name = "mf"

    def __init__(self, encoder: Encoder, artifact: Path = ARTIFACTS / "mf" / "mf.onnx") -> None:
        self.encoder = encoder
        self._graph = Graph(artifact, {"embedding": DIMENSION, "log_length": 1})
        self.version = self._graph.version

    def score(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """P(strong preferred) of each prompt; see `Router.score`."""
        if not prompts:
            return np.zeros(0, dtype=np.float32)
        return self.score_embedded(prompts, self.encoder.embed(prompts))

    def score_embedded(self, prompts: Sequence[str], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same from the encoder's vectors, for who needs those too."""
        return self._graph.run(embedding=vectors, log_length=log_length(prompts)[:, None])
