"""Trains the matrix factorization router: `python -m routers.training.mf --data DIR --encoder FILE`.

As in RouteLLM (arXiv 2406.18665 §4.2) a model's score on a prompt is v · (P[m]/|P[m]| ⊙ W x) and the chance that one
model beats another the logistic of the difference of their scores. What differs: the prompt vector x comes from an
encoder on this machine; marks and correctness of many models train one factorization, each part of a source with an
offset of its own, ties counting as half; a model's row is its tier's plus a deviation that is held small, since most
models appear in one source only; and a term for the length of the question stands beside it.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from routers.calibration import Calibration
from routers.graph import ARTIFACTS
from routers.training import data, pairs
from routers.training.calibrate import calibrate
from routers.training.embeddings import Embeddings, Rows
from routers.training.export import write_mf


@dataclass(frozen=True, slots=True)
class Settings:
    """What was chosen on held-out sources; `routers/results/README.md` says how."""

    rank: int = 64
    steps: int = 400
    batch: int = 4096
    learning_rate: float = 2e-2
    noise: float = 0.1
    """Of Gaussian noise on each component of the prompt vector, as much as RouteLLM adds; applied in expectation."""
    deviation_decay: float = 10.0
    seed: int = 0


class MatrixFactorization(torch.nn.Module):
    """Scores of models on prompts, for training; serving uses its ONNX export."""

    def __init__(self, dimension: int, tiers: NDArray[np.int64], groups: int, settings: Settings) -> None:
        super().__init__()
        self.tiers = torch.nn.Parameter(torch.randn(int(tiers.max()) + 1, settings.rank))
        self.deviations = torch.nn.Parameter(torch.zeros(len(tiers), settings.rank))
        self.tier_of = torch.from_numpy(tiers)
        self.projection = torch.nn.Parameter(torch.zeros(dimension, settings.rank))
        self.direction = torch.nn.Parameter(torch.randn(settings.rank) / settings.rank**0.5)
        self.offsets = torch.nn.Parameter(torch.zeros(groups))

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
    """A factorization, and the term for length beside it."""

    model: MatrixFactorization
    length_mean: float = 0.0
    length_scale: float = 0.0
    """What a unit of logarithmic length adds to the lead."""

    def lead(self, vectors: Rows, lengths: Rows) -> NDArray[np.float64]:
        """Of the strong tier over the weak one, per prompt, before calibration."""
        strong, weak = len(self.model.tier_of) + pairs.STRONG, len(self.model.tier_of) + pairs.WEAK
        with torch.no_grad():
            line = self.model(torch.tensor([strong]), torch.tensor([weak]))[0].double().numpy()
        return np.asarray(vectors @ line + (lengths - self.length_mean) * self.length_scale)


def fit(
    vectors: Rows, lengths: Rows, comparisons: pairs.Comparisons, settings: Settings, progress: bool = False
) -> Trained:
    """Train on `comparisons` between rows of `vectors`, then give length the spread that the learned lead has.

    A weight of the length that was learned with the rest carried over to held-out sources worse than this equal one.
    """
    model = _factorize(vectors, comparisons, settings, progress)
    used = np.unique(comparisons.prompt)
    spread = Trained(model).lead(vectors[used], lengths[used]).std()
    return Trained(model, float(lengths[used].mean()), float(spread / lengths[used].std()))


def _factorize(
    vectors: Rows, comparisons: pairs.Comparisons, settings: Settings, progress: bool
) -> MatrixFactorization:
    torch.set_num_threads(1)  # two wait for each other at every step where the machine is busy
    torch.manual_seed(settings.seed)
    generator = np.random.default_rng(settings.seed)
    inputs = torch.from_numpy(vectors)
    model = MatrixFactorization(inputs.shape[1], comparisons.tiers, int(comparisons.group.max()) + 1, settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    distinct, numbered = np.unique(np.stack([comparisons.first, comparisons.second]), axis=1, return_inverse=True)
    first, second = torch.from_numpy(distinct[0]), torch.from_numpy(distinct[1])
    columns = (comparisons.prompt, numbered, comparisons.group, comparisons.outcome, comparisons.spread)
    prompt, pair, group, outcome, spread = (torch.from_numpy(each) for each in columns)
    cumulative = np.cumsum(comparisons.weight, dtype=np.float64)
    for _ in track(range(settings.steps), description="Training mf", disable=not progress):
        drawn = torch.from_numpy(np.searchsorted(cumulative, generator.random(settings.batch) * cumulative[-1]))
        lines = model(first, second)
        lead = (inputs[prompt[drawn]] @ lines.T).gather(1, pair[drawn, None])[:, 0]
        # Leads are in units of their source's spread and count by it, so that no source dominates by its scale.
        logits = 2 * spread[drawn] * lead + model.offsets[group[drawn]]
        misfit = torch.nn.functional.binary_cross_entropy_with_logits(logits, outcome[drawn], reduction="none")
        noise = settings.noise**2 / 2 * lines.square().sum(dim=1)[pair[drawn]].mean()
        loss = (misfit / spread[drawn].square()).mean() + noise
        (loss + settings.deviation_decay * model.deviations.square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
    return model


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
    inputs = [embeddings.inputs(source.prompts, source.name) for source in every]
    vectors, lengths = (np.concatenate([each[part] for each in inputs]) for part in (0, 1))
    kept = [~pairs.held_back(source.prompts) for source in every]
    trained = fit(vectors, lengths, pairs.compare(every, kept), settings, progress)
    model = trained.model
    fitted = calibrate(
        "mf",
        [parameter.detach().numpy() for parameter in model.parameters()],
        every,
        lambda number, rows: trained.lead(inputs[number][0][rows], inputs[number][1][rows]),
        data.fingerprint(data_folder, [source.name for source in every]),
    )
    write_mf(
        out / "mf.onnx",
        projection=model.projection.detach().numpy(),
        models=model.models().detach().numpy(),
        direction=model.direction.detach().numpy(),
        strong=len(model.tier_of) + pairs.STRONG,
        weak=len(model.tier_of) + pairs.WEAK,
        length_mean=trained.length_mean,
        length_scale=trained.length_scale,
        calibration=(fitted.slope, fitted.intercept),
        metadata={
            "version": fitted.calibration.version,
            "date": fitted.calibration.date,
            "data_sha256": fitted.calibration.data_sha256,
            "seed": str(settings.seed),
        },
    )
    fitted.calibration.save(out / "calibration.json")
    return fitted.calibration


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
