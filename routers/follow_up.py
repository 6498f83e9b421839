"""Recognises follow-ups that ask nothing of their own, however many words they take: "go on from where you stopped"."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from routers.encoder import DIMENSION
from routers.interface import RouterError

ARTIFACT = Path(__file__).with_name("artifacts") / "follow_up" / "follow_up.json"
FORMAT = 1


class FollowUps:
    """A logistic layer over the encoder's vectors. Raises `RouterError` where its artifact is damaged."""

    def __init__(self, artifact: Path = ARTIFACT) -> None:
        try:
            said = json.loads(artifact.read_text(encoding="utf-8"))
            self._bias = float(said["bias"])
            self._weights = np.asarray(said["weights"], dtype=np.float32)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RouterError(f"{artifact} cannot be read ({error}): reinstall upcall.") from None
        if said.get("format") != FORMAT or self._weights.shape != (DIMENSION,):
            raise RouterError(f"{artifact} is of another version of upcall: reinstall upcall.")

    def are(self, vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether each turn is one, by its vector; shapes `(n, 512)` and `(n,)`."""
        likely: NDArray[np.bool_] = vectors @ self._weights + self._bias > 0
        return likely
