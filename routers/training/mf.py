"""Trains the matrix factorization router: `python -m routers.training.mf --data DIR --encoder FILE`.

As in RouteLLM (arXiv 2406.18665 §4.2) a model's score on a prompt is v · (P[m]/|P[m]| ⊙ W x) and the chance that one
model beats another the logistic of the difference of their scores. What differs: the prompt vector x comes from an
encoder on this machine and has the features of `routers.features` beside it; marks and correctness of many models train
one factorization, each source with an offset of its own, ties counting as half; and a model's row is its tier's plus a
deviation that is held small, since most models appear in one source only.
"""

import argparse
import datetime
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from routers import features
from routers.calibration import Calibration, measured
from routers.graph import ARTIFACTS
from routers.training import data, pairs
from routers.training.calibrate import platt
from routers.training.embeddings import Embeddings, Rows
from routers.training.export import write_mf


@dataclass(frozen=True, slots=True)
class Settings:
    """What was chosen on held-out sources; `routers/results/README.md` says how."""

    weights: Mapping[str, float] = field(
        default_factory=lambda: {
            "gsm8k_questions": 1.0,
            "mmlu_pro_wide": 1.0,
            "llmrouter_dc_9models": 1.0,
            "arena_bench_v1_gpt4_scores": 1.0,
        }
    )
    """How much each source counts; those not named do not train."""
    rank: int = 64
    steps: int = 1000
    batch: int = 2048
    learning_rate: float = 1e-2
    noise: float = 0.12
    """Of Gaussian noise on each component of the prompt vector, as RouteLLM adds 0.1; applied in expectation."""
    deviation_decay: float = 0.1
    feature_scale: float = 0.5
    """Standard deviation of a feature beside the unit vector."""
    seed: int = 0


CALIBRATION_MIX = {
    "arena_bench_v1_gpt4_scores": 0.35,
    "arena_hard_v01_battles": 0.15,
    "llmrouter_dc_9models": 0.3,
    "mmlu_pro_wide": 0.1,
    "gsm8k_questions": 0.1,
}
"""What ordinary prompts are taken to be: half from real users, the rest questions and problems."""


class MatrixFactorization(torch.nn.Module):
    """Scores of models on prompts, for training; serving uses its ONNX export."""

    def __init__(self, dimension: int, tiers: NDArray[np.int64], sources: int, settings: Settings) -> None:
        super().__init__()
        self.tiers = torch.nn.Parameter(torch.randn(int(tiers.max()) + 1, settings.rank))
        self.deviations = torch.nn.Parameter(torch.zeros(len(tiers), settings.rank))
        self.tier_of = torch.from_numpy(tiers)
        self.projection = torch.nn.Parameter(torch.zeros(dimension, settings.rank))
        self.direction = torch.nn.Parameter(torch.randn(settings.rank) / settings.rank**0.5)
        self.offsets = torch.nn.Parameter(torch.zeros(sources))

    def models(self) -> torch.Tensor:
        """Unit rows: one per model, then one per tier."""
        rows = torch.cat([self.tiers[self.tier_of] + self.deviations, self.tiers])
        return torch.nn.functional.normalize(rows, dim=1)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """What to multiply prompts with for the lead of the first model over the second, shape `(pairs, dimension)`."""
        models = self.models()
        return ((models[first] - models[second]) * self.direction) @ self.projection.T


@dataclass(frozen=True, slots=True)
class Trained:
    """A factorization and what its inputs were scaled with."""

    model: MatrixFactorization
    features_mean: NDArray[np.float32]
    features_scale: NDArray[np.float32]

    def lead(self, vectors: Rows, shape: Rows) -> NDArray[np.float64]:
        """Of the strong tier over the weak one, per prompt, before calibration."""
        strong, weak = len(self.model.tier_of) + pairs.STRONG, len(self.model.tier_of) + pairs.WEAK
        with torch.no_grad():
            line = self.model(torch.tensor([strong]), torch.tensor([weak]))[0].double().numpy()
        inputs = np.concatenate([vectors, (shape - self.features_mean) * self.features_scale], axis=1)
        return np.asarray(inputs @ line)


def fit(
    vectors: Rows, shape: Rows, comparisons: pairs.Comparisons, settings: Settings, progress: bool = False
) -> Trained:
    """Train on `comparisons` between rows of `vectors` and `shape`, the prompts' features."""
    torch.manual_seed(settings.seed)
    generator = np.random.default_rng(settings.seed)
    used = shape[np.unique(comparisons.prompt)]
    mean, scale = used.mean(axis=0), settings.feature_scale / (used.std(axis=0) + 1e-3)
    inputs = torch.from_numpy(np.concatenate([vectors, (shape - mean) * scale], axis=1))
    model = MatrixFactorization(inputs.shape[1], comparisons.tiers, int(comparisons.source.max()) + 1, settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    cumulative = np.cumsum(comparisons.weight, dtype=np.float64)
    distinct, numbered = np.unique(np.stack([comparisons.first, comparisons.second]), axis=1, return_inverse=True)
    first, second = torch.from_numpy(distinct[0]), torch.from_numpy(distinct[1])
    prompt, source, outcomes, pair = (
        torch.from_numpy(each) for each in (comparisons.prompt, comparisons.source, comparisons.outcome, numbered)
    )
    for _ in track(range(settings.steps), description="Training mf", disable=not progress):
        drawn = torch.from_numpy(np.searchsorted(cumulative, generator.random(settings.batch) * cumulative[-1]))
        lines = model(first, second)
        logits = (inputs[prompt[drawn]] @ lines.T).gather(1, pair[drawn, None])[:, 0] + model.offsets[source[drawn]]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, outcomes[drawn])
        chance = torch.sigmoid(logits.detach())
        noise = settings.noise**2 / 2 * (chance * (1 - chance) * lines.square().sum(dim=1)[pair[drawn]]).mean()
        (loss + noise + settings.deviation_decay * model.deviations.square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return Trained(model.eval(), mean.astype(np.float32), scale.astype(np.float32))


def train(
    data_folder: Path,
    encoder: Path,
    out: Path = ARTIFACTS / "mf",
    settings: Settings | None = None,
    progress: bool = True,
) -> Calibration:
    """Train, export to `out` and calibrate; minutes on two cores, most of them embedding the first time.

    Prompts that `pairs.held_back` keeps never train: they calibrate.
    """
    settings = settings or Settings()
    every = data.sources(data_folder)
    embeddings = Embeddings(encoder)
    inputs = {source.name: embeddings.inputs(source.prompts, source.name) for source in every}
    used = [source for source in every if source.name in settings.weights]
    vectors, shape = (np.concatenate([inputs[source.name][part] for source in used]) for part in (0, 1))
    kept = [~pairs.held_back(source.prompts) for source in used]
    trained = fit(vectors, shape, pairs.compare(used, settings.weights, kept), settings, progress)

    samples = [_sample(source, trained, inputs[source.name], CALIBRATION_MIX) for source in every]
    lead, outcome, weight = (np.concatenate(column) for column in zip(*samples, strict=True))
    slope, intercept = platt(lead, outcome, weight)
    model = trained.model
    models = model.models().detach().numpy()
    version = _version(model, slope, intercept)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    data_hash = data.fingerprint(data_folder, [source.name for source in used])
    write_mf(
        out / "mf.onnx",
        projection=model.projection.detach().numpy(),
        models=models,
        direction=model.direction.detach().numpy(),
        strong=len(model.tier_of) + pairs.STRONG,
        weak=len(model.tier_of) + pairs.WEAK,
        features_mean=trained.features_mean,
        features_scale=trained.features_scale,
        calibration=(slope, intercept),
        metadata={
            "version": version,
            "date": today,
            "data_sha256": data_hash,
            "seed": str(settings.seed),
            "features": ",".join(features.NAMES),
        },
    )
    calibration = measured(
        "mf", version, 1 / (1 + np.exp(-(slope * lead + intercept))), outcome,
        date=today, sample=f"prompts kept from training, mixed {CALIBRATION_MIX}", data_sha256=data_hash,
        weights=weight,
    )  # fmt: skip
    calibration.save(out / "calibration.json")
    return calibration


def _sample(
    source: data.Source, trained: Trained, inputs: tuple[Rows, Rows], mix: Mapping[str, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Leads, outcomes and weights of the calibrating prompts of `source`."""
    outcome = 0.5 + (source.quality(source.strong) - source.quality(source.weak)) / 2
    rows = np.flatnonzero(pairs.held_back(source.prompts) & ~np.isnan(outcome))
    lead = trained.lead(inputs[0][rows], inputs[1][rows])
    return lead, outcome[rows].astype(np.float64), np.full(len(rows), mix.get(source.name, 0.0) / len(rows))


def _version(model: MatrixFactorization, slope: float, intercept: float) -> str:
    digest = hashlib.sha256(repr((slope, intercept)).encode())
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()[:12]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m routers.training.mf", description="Train the mf router.")
    parser.add_argument("--data", type=Path, default=os.environ.get("UPCALL_DATA"), help="folder of the data files")
    parser.add_argument(
        "--encoder", type=Path, default=os.environ.get("UPCALL_ENCODER"), help="the encoder's ONNX file"
    )
    parser.add_argument("--out", type=Path, default=ARTIFACTS / "mf")
    options = parser.parse_args(arguments)
    if options.data is None or options.encoder is None:
        parser.error("--data and --encoder are needed, or UPCALL_DATA and UPCALL_ENCODER")
    calibration = train(options.data, options.encoder, options.out)
    Console().print(
        f"mf {calibration.version} written to {options.out}; "
        f"calibration error {calibration.expected_calibration_error:.3f}"
    )


if __name__ == "__main__":
    main()
