"""Trains the matrix factorization router: `python -m routers.training.mf --data DIR --encoder FILE`.

As in RouteLLM (arXiv 2406.18665 §4.2) a model's score on a prompt is v · (P[m]/|P[m]| ⊙ W x) and the chance that one
model beats another the logistic of the difference of their scores. What differs: the prompt vector x comes from an
encoder on this machine, and beside it stand the length of the question and its product with x, since a long problem is
hard where a long chat need not be; marks and correctness of many models train one factorization, each source with an
offset of its own, ties counting as half; and the models of a tier share a row, since most of them appear in one source
only.
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
from routers.features import SPAN, TYPICAL
from routers.graph import ARTIFACTS
from routers.training import data, pairs
from routers.training.calibrate import calibrate
from routers.training.embeddings import Embeddings, Rows
from routers.training.export import write_mf


@dataclass(frozen=True, slots=True)
class Settings:
    """What was chosen on held-out sources; `routers/results/README.md` says how."""

    rank: int = 16
    steps: int = 30
    noise: float = 0.12
    """Of Gaussian noise on each component of the prompt vector, near RouteLLM's; applied in expectation."""
    length_noise: float = 0.04
    product_noise: float = 0.12
    seed: int = 0


class MatrixFactorization(torch.nn.Module):
    """Scores of models on prompts, for training; serving uses its ONNX export."""

    def __init__(self, dimension: int, tiers: int, groups: int, settings: Settings) -> None:
        super().__init__()
        self.tiers = torch.nn.Parameter(torch.randn(tiers, settings.rank))
        self.projection = torch.nn.Parameter(torch.zeros(dimension, settings.rank))
        self.direction = torch.nn.Parameter(torch.randn(settings.rank) / settings.rank**0.5)
        self.offsets = torch.nn.Parameter(torch.zeros(groups))

    def models(self) -> torch.Tensor:
        """Unit rows, one per tier."""
        return torch.nn.functional.normalize(self.tiers, dim=1)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """What to multiply inputs with for the lead of the first tier over the second, shape `(pairs, dimension)`."""
        models = self.models()
        return ((models[first] - models[second]) * self.direction) @ self.projection.T


@dataclass(frozen=True, slots=True)
class Trained:
    """A factorization, and the vector that its prompts are seen from."""

    model: MatrixFactorization
    mean: Rows
    """Of the prompt vectors, each source counting by its weight."""

    def lead(self, vectors: Rows, lengths: Rows) -> NDArray[np.float64]:
        """Of the strong tier over the weak one, per prompt, before calibration."""
        with torch.no_grad():
            line = self.model(torch.tensor([pairs.STRONG]), torch.tensor([pairs.WEAK]))[0].double().numpy()
        return np.asarray(inputs(vectors, lengths, self.mean) @ line)


def inputs(vectors: Rows, lengths: Rows, mean: Rows) -> Rows:
    """Centred vectors, relative logarithmic lengths and their products, shape `(n, 2 * dimension + 1)`."""
    relative = np.clip(lengths - TYPICAL, *SPAN)[:, None]
    centred = vectors - mean
    return np.concatenate([centred, relative, centred * relative], axis=1).astype(np.float32)


def fit(
    vectors: Rows, lengths: Rows, comparisons: pairs.Comparisons, settings: Settings, progress: bool = False
) -> Trained:
    """Train on `comparisons` between rows of `vectors`."""
    share = np.bincount(comparisons.prompt, comparisons.weight, len(vectors))
    mean = np.average(vectors, axis=0, weights=share).astype(np.float32)
    return Trained(_factorize(inputs(vectors, lengths, mean), comparisons, settings, progress), mean)


def _factorize(rows: Rows, comparisons: pairs.Comparisons, settings: Settings, progress: bool) -> MatrixFactorization:
    torch.set_num_threads(1)  # two wait for each other at every step where the machine is busy
    torch.manual_seed(settings.seed)
    dimension = rows.shape[1] // 2
    blocks = ((settings.noise, dimension), (settings.length_noise, 1), (settings.product_noise, dimension))
    noise = torch.cat([torch.full((width,), level) for level, width in blocks])
    model = MatrixFactorization(
        rows.shape[1], int(comparisons.tiers.max()) + 1, int(comparisons.group.max()) + 1, settings
    )
    whole = float(comparisons.weight.sum())
    parts = [_part(rows, comparisons, number, whole) for number in range(len(model.offsets))]
    # Not in batches drawn at random: their noise would drown sources whose leads are small.
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=PER_STEP, history_size=20, line_search_fn="strong_wolfe", tolerance_change=1e-9
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = torch.zeros(())
        for number, part in enumerate(parts):
            lines = model(part.first, part.second)
            lead = (part.rows @ lines.T)[part.prompt, part.pair] + model.offsets[number]
            # Leads are in units of their source's spread and count by it, so that no source dominates by its scale.
            misfit = torch.nn.functional.binary_cross_entropy_with_logits(
                2 * part.spread * lead, part.outcome, part.weight, reduction="sum"
            )
            blurred = (noise * lines).square().sum(dim=1) @ part.share / 2
            total = total + (misfit / part.spread**2 + blurred) * part.factor
        total.backward()  # type: ignore[no-untyped-call]
        return total

    steps = range(settings.steps // PER_STEP)
    for _ in track(steps, "Training mf", disable=not progress, console=Console(stderr=True)):
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    model.eval()
    return model


PER_STEP = 10


@dataclass(frozen=True, slots=True)
class _Part:
    """The comparisons of one source."""

    rows: torch.Tensor
    """Inputs of its prompts."""
    first: torch.Tensor
    """Tiers, one per pair of them that meets."""
    second: torch.Tensor
    share: torch.Tensor
    """How much each pair counts."""
    prompt: torch.Tensor
    """One per comparison, as are the following."""
    pair: torch.Tensor
    outcome: torch.Tensor
    weight: torch.Tensor
    """Sums to 1."""
    spread: float
    factor: float
    """How much the source counts, of 1 for all."""


def _part(rows: Rows, comparisons: pairs.Comparisons, number: int, whole: float) -> _Part:
    among = np.flatnonzero(comparisons.group == number)
    prompt = comparisons.prompt[among]
    tiers = comparisons.tiers[np.stack([comparisons.first[among], comparisons.second[among]])]
    distinct, pair = np.unique(tiers, axis=1, return_inverse=True)
    own = float(comparisons.weight[among].sum())
    weight = comparisons.weight[among] / own
    share = np.bincount(pair, weight).astype(np.float32)
    first, second = torch.from_numpy(distinct[0]), torch.from_numpy(distinct[1])
    return _Part(
        torch.from_numpy(rows[prompt.min() : prompt.max() + 1]),
        first,
        second,
        torch.from_numpy(share),
        torch.from_numpy(prompt - prompt.min()),
        torch.from_numpy(pair),
        torch.from_numpy(comparisons.outcome[among]),
        torch.from_numpy(weight),
        float(comparisons.spread[among[0]]),
        own / whole,
    )


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
    known = [embeddings.inputs(source.prompts, source.name) for source in every]
    vectors, lengths = (np.concatenate([each[part] for each in known]) for part in (0, 1))
    kept = [~pairs.held_back(source.prompts) for source in every]
    trained = fit(vectors, lengths, pairs.compare(every, kept), settings, progress)
    model = trained.model
    fitted = calibrate(
        "mf",
        [trained.mean, *(parameter.detach().numpy() for parameter in model.parameters())],
        every,
        lambda number, rows: trained.lead(known[number][0][rows], known[number][1][rows]),
        data.fingerprint(data_folder, ["arena55k_subset", *(source.name for source in every)]),
        everyday=trained.lead(*embeddings.inputs(data.votes(data_folder).prompts, "arena prompts")),
    )
    write_mf(
        out / "mf.onnx",
        projection=model.projection.detach().numpy(),
        models=model.models().detach().numpy(),
        direction=model.direction.detach().numpy(),
        strong=pairs.STRONG,
        weak=pairs.WEAK,
        mean=trained.mean,
        typical_length=TYPICAL,
        length_span=SPAN,
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
