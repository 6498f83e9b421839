"""Logistic regression with a pull on each weight, by Newton's method: win rates and corrections are fitted with it."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEPS = 1000
"""At most: a handful where the start is near, and each of the others brings a far one `LONGEST` nearer."""
ENOUGH = 1e-6
"""Steps end where they change no weight by more."""
LONGEST = 4.0
"""Change of a row's logit in one step: from far off, a whole step of Newton's may lead further away."""
SMALLEST = 1e-6
"""Probabilities are kept so far from 0 and 1, where logits end."""


def regress(
    columns: Floats,
    outcome: NDArray[np.generic],
    pull: Floats,
    *,
    towards: Floats | float = 0.0,
    share: Floats | float = 1.0,
) -> Floats:
    """Weights (k,) for which the logistic of `columns` (n, k) times them fits `outcome` (n,), 0 to 1, best.

    The least cross entropy, each row counted `share` times, plus half of `pull` (k,) times the squared distance of each
    weight from `towards` (k,). Without a pull, outcomes told apart without a mistake have no finite weights.
    """
    told = outcome.astype(np.float64)
    weights = np.zeros(columns.shape[1]) + towards
    for _ in range(STEPS):
        chance = sigmoid(columns @ weights)
        gradient = columns.T @ (share * (chance - told)) + pull * (weights - towards)
        step = np.linalg.solve(curvature(columns, chance, pull, share), gradient)
        weights -= step / max(1.0, float(np.abs(columns @ step).max()) / LONGEST)
        if np.abs(step).max() < ENOUGH:
            break
    return weights


def curvature(columns: Floats, chance: Floats, pull: Floats, share: Floats | float = 1.0) -> Floats:
    """Of what `regress` makes least, where it gives the rows the `chance` (n,): shape (k, k), the inverse of the
    weights' covariance."""
    curved: Floats = (columns * (share * chance * (1 - chance))[:, None]).T @ columns + np.diag(pull)
    return curved


def logit(chances: NDArray[np.floating]) -> Floats:
    """Of probabilities, held off 0 and 1."""
    held = np.clip(np.asarray(chances, dtype=np.float64), SMALLEST, 1 - SMALLEST)
    leads: Floats = np.log(held / (1 - held))
    return leads


def sigmoid(leads: NDArray[np.floating]) -> Floats:
    """The inverse of `logit`."""
    chances: Floats = 1 / (1 + np.exp(-np.clip(np.asarray(leads, dtype=np.float64), -50, 50)))
    return chances
