"""Calibrates the causal-LLM router for a model that its caller can ask."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from routers.calibration import Calibration
from routers.causal_llm import LABELS, NAME, Judge, mean_label, own_folder, question
from routers.training import data
from routers.training.calibrate import MIX, calibrate
from routers.training.pairs import held_back

PER_SOURCE = 40
"""Prompts asked about of each calibrating source."""


def train(
    data_folder: Path,
    judge: Judge,
    model: str,
    out: Path | None = None,
    per_source: int = PER_SOURCE,
    progress: bool = True,
) -> Calibration:
    """Ask `judge`, known as `model`, about held-back prompts of each calibrating source, and fit the logistic.

    What is fitted is kept in `out`, by default where `reading` looks first.
    """
    kept = [_sample(source, per_source) for source in data.sources(data_folder) if source.name in MIX]
    labels = []
    for source in kept:
        title = f"Asking about {source.name}"
        shown = track(source.prompts, title, disable=not progress, console=Console(stderr=True))
        logs = [judge.log_probabilities(question(prompt), LABELS) for prompt in shown]
        labels.append(mean_label(logs))
    fingerprint = data.fingerprint(data_folder, [source.name for source in kept])
    fitted = calibrate(NAME, labels, kept, lambda number, rows: labels[number][rows], fingerprint)
    folder = (out or own_folder()) / judge.model_sha256[:12]
    folder.mkdir(parents=True, exist_ok=True)
    artifact = {
        "version": fitted.calibration.version,
        "model": model,
        "model_sha256": judge.model_sha256,
        "slope": fitted.slope,
        "intercept": fitted.intercept,
    }
    (folder / "causal_llm.json").write_text(json.dumps(artifact, indent=1) + "\n")
    fitted.calibration.save(folder / "calibration.json")
    return fitted.calibration


def _sample(source: data.Source, count: int) -> data.Source:
    usable: NDArray[np.intp] = np.flatnonzero(held_back(source.prompts))
    rows = np.sort(np.random.default_rng(0).permutation(usable)[:count])
    return data.Source(
        source.name,
        [source.prompts[row] for row in rows],
        {model: outcome[rows] for model, outcome in source.outcomes.items()},
        source.strong,
        source.weak,
        [source.groups[row] for row in rows],
    )
