"""Calibrates the causal-LLM router for a model that its caller can ask."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from routers.calibration import Calibration
from routers.causal_llm import LABELS, NAME, Judge, chances, question
from routers.graph import ARTIFACTS
from routers.training import data
from routers.training.calibrate import MIX, calibrate
from routers.training.pairs import held_back

PER_SOURCE = 60
"""Prompts asked about of each calibrating source, for the labels' values and again for the calibration."""
RIDGE = 0.02
"""Pulls the labels' values towards their number."""


def train(
    data_folder: Path,
    judge: Judge,
    model: str,
    out: Path = ARTIFACTS / NAME,
    per_source: int = PER_SOURCE,
    progress: bool = True,
) -> Calibration:
    """Ask `judge`, known as `model`, about prompts of each calibrating source, and fit what its labels are worth.

    The values of the labels come from prompts that trained the other routers, the logistic from those held back.
    """
    sources = [source for source in data.sources(data_folder) if source.name in MIX]
    seen, kept = ([_sample(source, per_source, held) for source in sources] for held in (False, True))
    values = _values([_asked(judge, source, progress) for source in seen], seen)
    leads = [_asked(judge, source, progress) @ values for source in kept]
    fingerprint = data.fingerprint(data_folder, [source.name for source in sources])
    fitted = calibrate(NAME, leads, kept, lambda number, rows: leads[number][rows], fingerprint)
    folder = out / judge.model_sha256[:12]
    folder.mkdir(parents=True, exist_ok=True)
    artifact = {
        "version": fitted.calibration.version,
        "model": model,
        "model_sha256": judge.model_sha256,
        "values": values.tolist(),
        "slope": fitted.slope,
        "intercept": fitted.intercept,
    }
    (folder / "causal_llm.json").write_text(json.dumps(artifact, indent=1) + "\n")
    fitted.calibration.save(folder / "calibration.json")
    return fitted.calibration


def _asked(judge: Judge, source: data.Source, progress: bool) -> NDArray[np.float64]:
    shown = track(source.prompts, description=f"Asking about {source.name}", disable=not progress)
    return chances([judge.log_probabilities(question(prompt), LABELS) for prompt in shown])


def _values(asked: Sequence[NDArray[np.float64]], sources: Sequence[data.Source]) -> NDArray[np.float64]:
    """What each label is worth: ridge regression of the outcome within its source, away from the label's number."""
    inputs, targets, weights = [], [], []
    for chance, source in zip(asked, sources, strict=True):
        outcome = source.quality(source.strong) - source.quality(source.weak)
        known = ~np.isnan(outcome)
        inputs.append(chance[known] - chance[known].mean(axis=0))
        spread = float(outcome[known].std()) or 1.0
        targets.append((outcome[known] - outcome[known].mean()) / spread)
        weights.append(np.full(known.sum(), MIX[source.name] / known.sum()))
    chance, target, weight = np.concatenate(inputs), np.concatenate(targets), np.concatenate(weights)
    number = np.linspace(-1, 1, len(LABELS))
    covariance = (chance * weight[:, None]).T @ chance
    residual = chance.T @ (weight * (target - chance @ number))
    return number + np.linalg.solve(covariance + RIDGE * np.eye(len(LABELS)), residual)


def _sample(source: data.Source, count: int, held: bool) -> data.Source:
    usable: NDArray[np.intp] = np.flatnonzero(held_back(source.prompts) == held)
    rows = np.sort(np.random.default_rng(0).permutation(usable)[:count])
    return data.Source(
        source.name,
        [source.prompts[row] for row in rows],
        {model: outcome[rows] for model, outcome in source.outcomes.items()},
        source.strong,
        source.weak,
        [source.groups[row] for row in rows],
    )
