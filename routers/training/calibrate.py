"""Turning a router's raw lead into a probability, on prompts that never trained it."""

import datetime
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from routers.calibration import Calibration, measured
from routers.logistic import regress, sigmoid
from routers.training.data import Source
from routers.training.pairs import held_back

Floats = NDArray[np.floating]
MIX = {
    "arena_bench_v1_gpt4_scores": 0.35,
    "arena_hard_v01_battles": 0.15,
    "llmrouter_dc_9models": 0.3,
    "mmlu_pro_wide": 0.1,
    "gsm8k_questions": 0.1,
}
"""What ordinary prompts are taken to be: half from real users, the rest questions and problems."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """The logistic of `slope * lead + intercept` is the win rate."""

    slope: float
    intercept: float
    calibration: Calibration


def calibrate(
    router: str,
    weights: Sequence[NDArray[np.generic]],
    sources: Sequence[Source],
    lead_of: Callable[[int, NDArray[np.intp]], Floats],
    data_sha256: str,
    everyday: Floats | None = None,
) -> Fitted:
    """Fit the router's leads to the outcomes of the prompts held back; `weights` make the version.

    `lead_of` gives the leads on some rows of a source, by its number. Thresholds come from `everyday`, the leads on
    prompts as people send them; without it, from the prompts held back, which are harder than those.
    """
    leads, outcomes, shares = [], [], []
    for number, source in enumerate(sources):
        if source.name not in MIX:
            continue
        outcome = 0.5 + (source.quality(source.strong) - source.quality(source.weak)) / 2
        rows = np.flatnonzero(held_back(source.prompts) & ~np.isnan(outcome))
        leads.append(lead_of(number, rows))
        outcomes.append(outcome[rows])
        shares.append(np.full(len(rows), MIX[source.name] / len(rows)))
    lead = np.concatenate(leads)
    outcome, share = np.concatenate(outcomes), np.concatenate(shares)
    slope, intercept = platt(lead, outcome, share)
    digest = hashlib.sha256(repr((slope, intercept)).encode())
    for array in weights:
        digest.update(np.ascontiguousarray(array).tobytes())
    calibration = measured(
        router, digest.hexdigest()[:12], sigmoid(slope * lead + intercept), outcome,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(), data_sha256=data_sha256, weights=share,
        sample="prompts kept from training: " + ", ".join(f"{part:.0%} {name}" for name, part in MIX.items()),
    )  # fmt: skip
    if everyday is not None:
        scores = sigmoid(slope * everyday + intercept)
        sample = f"thresholds: prompts that people sent to the Chatbot Arena; reliability: {calibration.sample}"
        ordinary = measured(router, calibration.version, scores, date=calibration.date, sample=sample)
        calibration = replace(calibration, sample=sample, n=ordinary.n, quantiles=ordinary.quantiles)
    return Fitted(slope, intercept, calibration)


def platt(lead: Floats, outcome: Floats, weight: Floats) -> tuple[float, float]:
    """Slope and intercept for which the logistic of `slope * lead + intercept` fits `outcome` (0 to 1) best.

    A pull keeps the slope finite where leads tell outcomes apart without a mistake; it stays positive in any case.
    """
    weight = weight / weight.sum()
    scale = float(np.std(lead)) or 1.0
    columns = np.stack([lead / scale, np.ones_like(lead)], axis=1, dtype=np.float64)
    line = regress(columns, outcome, np.full(2, 1e-4), share=weight.astype(np.float64))
    if line[0] >= 1e-3:
        return float(line[0]) / scale, float(line[1])
    # Leads that say nothing: the mean outcome for all, in their order.
    mean = float(weight @ outcome)
    return 1e-3 / scale, float(np.log(mean / (1 - mean)) - 1e-3 / scale * (weight @ lead))
