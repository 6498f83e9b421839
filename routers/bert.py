"""The BERT classifier (RouteLLM, arXiv 2406.18665 §4.2): MiniLM with its upper layers fine-tuned, int8.

The token embeddings and the lower layers stay as they are and are read from the model store's file; the layers above
them are the artifact. Both are pinned: the artifact names the hash of the file that it was trained over.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from routers.features import log_length
from routers.graph import ARTIFACTS, Graph
from routers.minilm import WIDTH, MiniLM, after_layer

FIRST, LAYERS = 3, 3
"""Of MiniLM's six layers those that the artifact holds: three are a file of 5 MB."""


class BertRouter:
    """The classifier's lead of the strong model, calibrated; a term for the length counts as much, as in `mf`.

    `encoder` is MiniLM's file, its vocabulary beside it.

    Raises:
        RouterError: a file is missing or damaged, or the artifact was trained over another encoder.
    """

    name = "bert"

    def __init__(self, encoder: Path, artifact: Path = ARTIFACTS / "bert" / "bert.onnx") -> None:
        self._graph = Graph(artifact, {"states": WIDTH, "log_length": 1})
        self._base = MiniLM(encoder, after_layer(FIRST - 1))
        self.version = self._graph.version

    def score(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """P(strong preferred) of each prompt; see `Router.score`."""
        rates = np.zeros(len(prompts), dtype=np.float32)
        for row, (prompt, length) in enumerate(zip(prompts, log_length(prompts), strict=True)):
            # One at a time: the graph quantizes its inputs with one scale per batch.
            states = self._base.states([self._base.tokens(prompt)])
            rates[row] = self._graph.run(states=states, log_length=length.reshape(1, 1))[0]
        return rates
