"""From the share of prompts that may go up to the threshold that sends that many."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from routers.graph import ARTIFACTS
from routers.interface import RouterError

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Calibration:
    """How one version of a router scores ordinary prompts, and how far its scores can be believed as probabilities."""

    router: str
    version: str
    """Of the router; thresholds of one version say nothing about another."""
    date: str
    sample: str
    """What prompts the scores are of."""
    data_sha256: str
    n: int
    quantiles: Sequence[float]
    """Of the scores, evenly spaced from the lowest to the highest."""
    expected_calibration_error: float
    reliability: Sequence[tuple[float, float, int]]
    """Per bin of scores: their mean, the mean outcome, how many."""

    def threshold(self, cloud_share: float) -> float:
        """The score at or above which the strong model is called on `cloud_share` of the prompts."""
        if not 0 <= cloud_share <= 1:
            raise RouterError(f"cloud_share is {cloud_share}: it must lie between 0 and 1.")
        if cloud_share in (0, 1):
            return math.nextafter(1.0, 2.0) if cloud_share == 0 else 0.0
        return float(np.interp(1 - cloud_share, np.linspace(0, 1, len(self.quantiles)), self.quantiles))

    def nearest_below(self, threshold: float, share: float) -> float:
        """The score from which on, up to `threshold`, there is `share` of the prompts."""
        positions = np.linspace(0, 1, len(self.quantiles))
        position = float(np.interp(threshold, self.quantiles, positions)) - share
        return float(np.interp(position, positions, self.quantiles)) if position > 0 else 0.0

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")


def threshold_for_share(router: str, cloud_share: float, own: Path | None = None) -> float:
    """The threshold at which the sample of `in_force` sends `cloud_share` (0 to 1) of its prompts to the strong model.

    0 gives a threshold above every score, 1 one below every score.

    Raises:
        RouterError: no such share, or no usable calibration for `router`.
    """
    return in_force(router, own).threshold(cloud_share)


def in_force(router: str, own: Path | None) -> Calibration:
    """The latest calibration in the folder `own` that fits the shipped version of `router`, else the shipped one."""
    base = shipped(router)
    for path in reversed(versions(router, own) if own else []):
        calibration = read(path)
        if calibration.version == base.version:
            return calibration
    return base


def versions(router: str, own: Path) -> list[Path]:
    """The calibrations of `router` in the folder `own`, oldest first."""
    return sorted(own.glob(f"{router}-[0-9][0-9][0-9][0-9].json"))


class Kept(Protocol):
    """What is kept in numbered files."""

    @property
    def router(self) -> str: ...

    def save(self, path: Path) -> None: ...


def keep(calibration: Kept, own: Path) -> Path:
    """Write `calibration` as the latest version in the folder `own`; the path of its file."""
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    before = versions(calibration.router, own)
    number = int(before[-1].stem[-4:]) + 1 if before else 1
    path = own / f"{calibration.router}-{number:04d}.json"
    calibration.save(path)
    return path


def shipped(router: str) -> Calibration:
    """The calibration beside the artifact of `router`."""
    if router == "random":
        uniform = np.linspace(0, 1, 101).tolist()
        return Calibration("random", "1", "", "uniform by construction", "", 0, uniform, 0.0, ())
    if router == "causal_llm":
        raise RouterError("causal_llm has a calibration for each local model: see `upcall judge calibrate`.")
    return read(ARTIFACTS / router / "calibration.json")


def read(path: Path) -> Calibration:
    """The calibration in `path`.

    Raises:
        RouterError: it is missing, of another format or holds what cannot be a calibration.
    """
    try:
        stored: dict[str, Any] = dict(json.loads(path.read_text()))
        if stored.pop("format") != FORMAT:
            raise ValueError("another format")
        calibration = Calibration(**stored)
        scores = np.asarray(calibration.quantiles, dtype=np.float64)
        if len(scores) < 2 or not np.isfinite(scores).all() or (np.diff(scores) < 0).any():
            raise ValueError("the quantiles do not rise")
    except FileNotFoundError:
        raise RouterError(f"There is no calibration at {path}: run `upcall calibrate`.") from None
    except OSError as error:
        raise RouterError(f"The calibration {path} cannot be read ({error.strerror}): check its owner.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise RouterError(f"The calibration {path} cannot be read ({error}): run `upcall calibrate`.") from error
    return calibration


def measured(
    router: str,
    version: str,
    scores: NDArray[np.floating],
    outcomes: NDArray[np.floating] | None = None,
    *,
    date: str,
    sample: str,
    data_sha256: str = "",
    weights: NDArray[np.floating] | None = None,
) -> Calibration:
    """A calibration from `scores` on a sample and, where they are known, the strong model's `outcomes` there, 0 to 1.

    The reliability has ten bins of equal weight. `weights` says how much each prompt counts.
    """
    chance = np.full(len(scores), 1 / len(scores)) if weights is None else weights / weights.sum()
    order = np.argsort(scores, kind="stable")
    position = np.cumsum(chance[order]) - chance[order] / 2
    quantiles = np.interp(np.linspace(0, 1, 201), position, scores[order])
    bins: list[tuple[float, float, int]] = []
    error = 0.0
    if outcomes is not None:
        for rows in np.split(order, np.searchsorted(np.cumsum(chance[order]), np.linspace(0, 1, 11)[1:-1])):
            if len(rows) == 0:
                continue
            mean = float(np.average(scores[rows], weights=chance[rows]))
            seen = float(np.average(outcomes[rows], weights=chance[rows]))
            error += float(chance[rows].sum()) * abs(mean - seen)
            bins.append((round(mean, 4), round(seen, 4), len(rows)))
    rounded = [round(float(value), 6) for value in quantiles]
    return Calibration(router, version, date, sample, data_sha256, len(scores), rounded, round(error, 4), bins)
