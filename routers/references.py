"""Prompts whose outcome is known, as vectors: what routers that look for similar prompts search. No text is kept."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from routers.interface import RouterError
from routers.logistic import sigmoid


@dataclass(frozen=True, slots=True)
class References:
    """Compressed vectors of known prompts: projected on their principal axes, unit length, eight bits a number."""

    mean: NDArray[np.float32]
    """Of the whole vectors, shape `(dimension,)`."""
    axes: NDArray[np.float32]
    """Shape `(dimension, kept)`."""
    vectors: NDArray[np.float32]
    """Shape `(n, kept)`, rows of about unit length."""
    columns: dict[str, NDArray[np.generic]]
    """What is known of each prompt; by name, of length n or of any other meaning the router gives it."""
    version: str
    slope: float
    intercept: float
    """The win rate is the logistic of `slope * lead + intercept`."""

    def similarity(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosine of each of `vectors`, shape `(m, dimension)`, to each reference, `(m, n)`; 0 for a zero vector."""
        projected = (vectors - self.mean) @ self.axes
        projected[~vectors.any(axis=1)] = 0.0
        norms = np.linalg.norm(projected, axis=1, keepdims=True)
        cosines: NDArray[np.float32] = projected / np.maximum(norms, 1e-6) @ self.vectors.T
        return cosines

    def rate(self, lead: NDArray[np.floating]) -> NDArray[np.float32]:
        """Win rates of calibrated leads."""
        rates: NDArray[np.float32] = sigmoid(self.slope * lead + self.intercept).astype(np.float32)
        return rates


def read(path: Path, dimension: int) -> References:
    """The references in `path`, for vectors of `dimension`.

    Raises:
        RouterError: the file is missing, damaged, for another encoder or holds numbers that are not finite.
    """
    if not path.is_file():
        raise RouterError(f"The router's artifact {path} is missing: install upcall again, or train the router.")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        mean, axes = arrays.pop("mean").astype(np.float32), arrays.pop("axes").astype(np.float32)
        vectors = arrays.pop("vectors").astype(np.float32) / 127
        slope, intercept = (float(each) for each in arrays.pop("calibration"))
        version = str(arrays.pop("version"))
    except Exception as error:  # a damaged archive raises zlib, zip, key and value errors
        raise RouterError(f"The router's artifact {path} is damaged ({error}): install upcall again.") from error
    if axes.shape[0] != dimension or mean.shape != (dimension,):
        raise RouterError(f"{path} is for vectors of size {axes.shape[0]}, not {dimension}: train the router again.")
    numbers = [mean, axes, vectors, np.array([slope, intercept])]
    numbers += [each for each in arrays.values() if np.issubdtype(each.dtype, np.floating)]
    if not all(np.isfinite(each).all() for each in numbers):
        raise RouterError(f"{path} holds numbers that are not finite: install upcall again, or train the router.")
    return References(mean, axes, vectors, arrays, version, slope, intercept)
