"""The second look: what the local model's own first tokens say about whether its answer will do.

Difficulty shows in the attempt: the model's hidden state (arXiv 2602.11877) and how sure it was of its first tokens
(2602.22090) carry what the prompt alone does not.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from routers.calibration import Calibration, read, shipped
from routers.graph import ARTIFACTS, Graph
from routers.interface import RouterError

SHIPPED = ARTIFACTS / "second_look"
FIRST_LOOK = "mf"
"""The router whose score a second look takes."""
RULE = "rule"
"""The artifact that goes by the first tokens alone, for models that nobody trained a second look for."""
SIGNALS = 4
FILE = "second_look.onnx"


class SecondLook:
    """A trained second look, for one model or, without hidden states, for any. For any one thread at a time."""

    def __init__(self, graph: Graph, calibration: Calibration) -> None:
        self._graph = graph
        self.version = graph.version
        self.calibration = calibration
        """Of its own scores, which spread wider than a first look's: thresholds come from here."""
        self.width = graph.widths.get("hidden", 0)
        """Of the hidden states it takes; 0 where it takes none."""

    @classmethod
    def load(cls, folder: Path) -> "SecondLook":
        """The second look in `folder`.

        Raises:
            RouterError: the artifact is missing, damaged or of another version than its calibration.
        """
        try:
            (folder / FILE).open("rb").close()
        except OSError as error:
            raise RouterError(
                f"{folder / FILE} cannot be read ({error.strerror}): check its owner; what was learnt while upcall "
                "runs is read from its next start on"
            ) from error
        graph = Graph(folder / FILE, {"first_score": 1, "signals": SIGNALS, "hidden": None})
        calibration = read(folder / "calibration.json")
        now = f"{FIRST_LOOK}@{shipped(FIRST_LOOK).version}"
        if graph.first_look and graph.first_look != now:
            raise RouterError(
                f"{folder} holds a second look that goes by the scores of {graph.first_look}, and this is {now}: "
                "run `upcall learn-model` again."
            )
        if calibration.version != graph.version:
            raise RouterError(
                f"{folder} holds a second look of version {graph.version} with the calibration of "
                f"{calibration.version}: run `upcall learn-model` again."
            )
        return cls(graph, calibration)

    @classmethod
    def find(cls, model: Path, sha256: str) -> "SecondLook":
        """The second look for the file `model` with that hash: trained by its user, shipped, or the rule for any.

        Raises `RouterError` as `load` does.
        """
        for folder in (beside(model, sha256), SHIPPED / sha256[:16]):
            if (folder / FILE).is_file():
                return cls.load(folder)
        return cls.load(SHIPPED / RULE)

    def judge(
        self,
        first_score: float,
        hidden: NDArray[np.floating] | None,
        entropies: Sequence[float],
        margins: Sequence[float],
    ) -> float:
        """P(strong preferred), calibrated, for an answer whose first tokens are known.

        `first_score` is `mf`'s. `hidden` has shape `(width,)` and is of the first token; `entropies` and `margins`
        are of the first tokens so far, at least one, as `Confidence` events carry them.

        Raises:
            RouterError: the hidden state is missing, of another width, or what the model said holds no numbers.
        """
        inputs = {"first_score": np.array([[first_score]]), "signals": signals(entropies, margins)[None]}
        if self.width:
            if hidden is None or hidden.shape != (self.width,):
                given = "no hidden state" if hidden is None else f"a hidden state of size {hidden.size}"
                raise RouterError(
                    f"The second look takes hidden states of size {self.width} and was given {given}: "
                    "it was trained for another model; run `upcall learn-model`."
                )
            inputs["hidden"] = hidden[None]
        if not all(np.isfinite(each).all() for each in inputs.values()):
            raise RouterError("The local model's confidence holds values that are not numbers: pull the model again.")
        return float(self._graph.run(**{name: each.astype(np.float32) for name, each in inputs.items()})[0])


def beside(model: Path, sha256: str) -> Path:
    """Where `upcall learn-model` puts what it has learnt about a model file."""
    return model.with_name(f"{model.name}.second-look-{sha256[:16]}")


def signals(entropies: Sequence[float], margins: Sequence[float]) -> NDArray[np.float64]:
    """Entropy and margin of the first token, and their means over the tokens so far; shape `(SIGNALS,)`."""
    if not len(entropies) or len(entropies) != len(margins):
        raise ValueError(f"{len(entropies)} entropies and {len(margins)} margins: there must be one each per token")
    return np.array([entropies[0], margins[0], np.mean(entropies), np.mean(margins)])
