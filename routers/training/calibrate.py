"""Turning a score into a probability."""

import numpy as np
from numpy.typing import NDArray


def platt(
    lead: NDArray[np.floating], outcome: NDArray[np.floating], weight: NDArray[np.floating]
) -> tuple[float, float]:
    """Slope and intercept for which the logistic of `slope * lead + intercept` fits `outcome` (0 to 1) best.

    Newton's method on the cross entropy, with a prior that keeps the slope positive and finite on separable data.
    """
    weight = weight / weight.sum()
    scale = float(np.std(lead)) or 1.0
    inputs = np.stack([lead / scale, np.ones_like(lead)], axis=1)
    line = np.zeros(2)
    for _ in range(50):
        chance = 1 / (1 + np.exp(-inputs @ line))
        gradient = inputs.T @ (weight * (chance - outcome)) + 1e-4 * line
        curvature = (inputs * (weight * chance * (1 - chance))[:, None]).T @ inputs + 1e-4 * np.eye(2)
        line -= np.linalg.solve(curvature, gradient)
    return max(float(line[0]), 1e-3) / scale, float(line[1])
