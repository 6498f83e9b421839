"""Trains the routers that search known prompts: `python -m routers.training.references --data DIR --encoder FILE`."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from routers import knn, sw_ranking
from routers.calibration import Calibration
from routers.graph import ARTIFACTS
from routers.references import References
from routers.training import data, pairs
from routers.training.calibrate import calibrate
from routers.training.embeddings import Embeddings, Rows

KEPT = 64
"""Principal axes; more did not change which prompts are near."""
PARTS = 10
"""Into which votes are parted, to see how a prompt is scored whose own vote is not known."""


def train_knn(data_folder: Path, encoder: Path, out: Path = ARTIFACTS / "knn") -> Calibration:
    """Keep the prompts of every source, with the standardized lead of its strong models, and calibrate."""
    every = data.sources(data_folder)
    embeddings = Embeddings(encoder)
    vectors = [embeddings.of(source.prompts, source.name) for source in every]
    kept, lead, part = [], [], []
    parts: list[str] = []
    for source in every:
        # As for mf, half the lead is over an ideal model: where even the strong fail, the weak one's failure tells.
        raw = (1 + source.quality(source.strong)) / 2 - source.quality(source.weak)
        rows = ~pairs.held_back(source.prompts) & ~np.isnan(raw)
        standard = np.zeros(len(raw), dtype=np.float32)
        names = np.array(source.groups)
        for name in dict.fromkeys(source.groups):
            among = rows & (names == name)
            if among.any():
                standard[among] = (raw[among] - raw[among].mean()) / (np.nanstd(raw[rows]) + 1e-6)
        kept.append(rows)
        lead.append(standard[rows])
        labels = [f"{source.name}/{name}" for name in names[rows]]
        offset = len(parts)
        distinct = list(dict.fromkeys(labels))
        parts += distinct
        part.append(np.array([offset + distinct.index(label) for label in labels], dtype=np.int64))
    columns: dict[str, NDArray[np.generic]] = {
        "lead": np.clip(np.round(np.concatenate(lead) * 32), -127, 127).astype(np.int8),
        "part": np.concatenate(part).astype(np.uint16),
        "parts": np.array(parts),
    }
    known = _compress(np.concatenate([each[rows] for each, rows in zip(vectors, kept, strict=True)]), columns)
    seen = {prompt for source in every for prompt in source.prompts}
    sent = [prompt for prompt in data.votes(data_folder).prompts if prompt not in seen]
    everyday = _in_batches(lambda batch: knn.leads(known, batch), embeddings.of(sent, "arena prompts"))
    return _ship("knn", known, knn.leads, everyday, every, vectors, data_folder, out)


def train_sw_ranking(data_folder: Path, encoder: Path, out: Path = ARTIFACTS / "sw_ranking") -> Calibration:
    """Keep the arena's votes, and those of the judged and correctness sources between tiers 0 and 2, and calibrate."""
    every = data.sources(data_folder)
    embeddings = Embeddings(encoder)
    vectors = [embeddings.of(source.prompts, source.name) for source in every]
    votes = data.votes(data_folder)
    rows = [embeddings.of(votes.prompts, "arena votes")]
    first = [np.array([votes.tiers[name] for name in votes.first])]
    second = [np.array([votes.tiers[name] for name in votes.second])]
    outcome: list[NDArray[np.floating]] = [votes.outcome]
    for source, each in zip(every, vectors, strict=True):
        raw = 0.5 + (source.quality(source.strong) - source.quality(source.weak)) / 2
        usable = ~pairs.held_back(source.prompts) & ~np.isnan(raw)
        rows.append(each[usable])
        first.append(np.zeros(usable.sum(), dtype=np.int64))
        second.append(np.full(usable.sum(), 2))
        outcome.append(raw[usable])
    columns: dict[str, NDArray[np.generic]] = {
        "first": np.concatenate(first).astype(np.uint8),
        "second": np.concatenate(second).astype(np.uint8),
        "outcome": np.round(np.concatenate(outcome) * sw_ranking.WIN).astype(np.uint8),
    }
    known = _compress(np.concatenate(rows), columns)
    # A prompt's own vote is not there when somebody asks.
    part = np.array([int(data.key(prompt), 16) % PARTS for prompt in votes.prompts])
    everyday = np.concatenate([leads_by_others(known, rows[0], part == number) for number in range(PARTS)])
    return _ship("sw_ranking", known, sw_ranking.leads, everyday, every, vectors, data_folder, out)


def leads_by_others(known: References, votes: Rows, chosen: NDArray[np.bool_]) -> Rows:
    """Leads of the prompts of the `chosen` votes, which stand first in `known`, by all others."""
    others = np.ones(len(known.vectors), dtype=np.bool_)
    others[: len(votes)] = ~chosen
    columns = {name: column[others] for name, column in known.columns.items()}
    rest = replace(known, vectors=known.vectors[others], columns=columns)
    return _in_batches(lambda batch: sw_ranking.leads(rest, batch), votes[chosen])


def _in_batches(leads: Callable[[Rows], Rows], vectors: Rows) -> Rows:
    """`leads` of some dozen vectors at a time: each is compared with tens of thousands."""
    return np.concatenate([leads(batch) for batch in np.array_split(vectors, len(vectors) // 64 + 1)])


def _compress(vectors: Rows, columns: Mapping[str, NDArray[np.generic]]) -> References:
    mean = vectors.mean(axis=0)
    centred = vectors - mean
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :KEPT].astype(np.float16).astype(np.float32)
    projected = centred @ axes
    projected /= np.maximum(np.linalg.norm(projected, axis=1, keepdims=True), 1e-6)
    return References(mean, axes, np.round(projected * 127).astype(np.float32) / 127, dict(columns), "", 1.0, 0.0)


def _ship(
    name: str,
    known: References,
    leads: Callable[[References, Rows], Rows],
    everyday: Rows,
    every: Sequence[data.Source],
    vectors: Sequence[Rows],
    data_folder: Path,
    out: Path,
) -> Calibration:
    fitted = calibrate(
        name,
        [known.mean, known.axes, known.vectors, *known.columns.values()],
        every,
        lambda number, rows: _in_batches(lambda batch: leads(known, batch), vectors[number][rows]),
        data.fingerprint(data_folder, ["arena55k_subset", *(source.name for source in every)]),
        everyday,
    )
    out.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {
        **known.columns,
        "mean": known.mean,
        "axes": known.axes.astype(np.float16),
        "vectors": np.round(known.vectors * 127).astype(np.int8),
        "calibration": np.array([fitted.slope, fitted.intercept]),
        "version": np.array(fitted.calibration.version),
    }
    np.savez_compressed(out / f"{name}.npz", **arrays)
    fitted.calibration.save(out / "calibration.json")
    return fitted.calibration


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m routers.training.references", description="Train knn and sw_ranking."
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("UPCALL_DATA"), help="folder of the data files")
    parser.add_argument(
        "--encoder", type=Path, default=os.environ.get("UPCALL_ENCODER"), help="the encoder's ONNX file"
    )
    parser.add_argument("--out", type=Path, default=ARTIFACTS, help="folder of the artifacts")
    options = parser.parse_args()
    if options.data is None or options.encoder is None:
        parser.error("--data and --encoder are needed, or UPCALL_DATA and UPCALL_ENCODER")
    for name, train in {"knn": train_knn, "sw_ranking": train_sw_ranking}.items():
        calibration = train(options.data, options.encoder, options.out / name)
        error = calibration.expected_calibration_error
        Console().print(f"{name} {calibration.version} written to {options.out / name}; calibration error {error:.3f}")


if __name__ == "__main__":
    main()
