"""What a local model made of public questions, kept between runs: hashes and numbers, no text."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routers.interface import RouterError

WATCHED = 16
"""First tokens of an answer that are kept; NaN after its end."""
CHOICES = 10


@dataclass(frozen=True, slots=True)
class Attempts:
    """One row for each question."""

    key: NDArray[np.str_]
    """`Question.key`."""
    right: NDArray[np.bool_]
    at_prompt: NDArray[np.float16]
    """Last hidden state at the end of the prompt, shape `(n, n_embd)`."""
    at_first: NDArray[np.float16]
    """The same at the first token of the answer."""
    entropies: NDArray[np.float32]
    """Of the first tokens, shape `(n, WATCHED)`."""
    margins: NDArray[np.float32]
    label_logprobs: NDArray[np.float32]
    """Shape `(n, CHOICES)`; NaN where there were fewer choices, or none."""

    def __len__(self) -> int:
        return len(self.key)

    def rows(self, chosen: NDArray[np.intp]) -> "Attempts":
        return Attempts(*(getattr(self, each.name)[chosen] for each in fields(self)))


def padded(rows: Sequence[Sequence[float]], width: int) -> NDArray[np.float32]:
    """Rows of different lengths as one array, NaN where they end."""
    array = np.full((len(rows), width), np.nan, np.float32)
    for row, values in zip(array, rows, strict=True):
        row[: len(values)] = values[:width]
    return array


def append(folder: Path, attempts: Attempts) -> None:
    """Add a shard to `folder`; it is there whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    shard = folder / f"{len(list(folder.glob('*.npz'))):06d}.npz"
    while shard.exists():
        shard = folder / f"{int(shard.stem) + 1:06d}.npz"
    scratch = shard.with_suffix(".part")
    with scratch.open("wb") as file:
        np.savez_compressed(file, **{each.name: getattr(attempts, each.name) for each in fields(attempts)})
    os.replace(scratch, shard)


def read(folder: Path) -> Attempts | None:
    """Every attempt in `folder`, one for each question; `None` without any. Raises `RouterError` for a damaged one."""
    shards: list[dict[str, NDArray[Any]]] = []
    for shard in sorted(folder.glob("*.npz")):
        try:
            with np.load(shard, allow_pickle=False) as stored:
                shards.append({each.name: stored[each.name] for each in fields(Attempts)})
        except Exception as error:  # a damaged archive raises zlib, zip, key and value errors
            raise RouterError(f"{shard} is damaged ({error}): delete it, and its questions are asked again.") from error
    if not shards:
        return None
    every = Attempts(*(np.concatenate([shard[each.name] for shard in shards]) for each in fields(Attempts)))
    _, first = np.unique(every.key, return_index=True)
    return every.rows(np.sort(first))
