"""Embeddings and features of many prompts, kept between runs: embedding is what takes the minutes."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from routers.encoder import Encoder
from routers.features import log_length
from routers.training.data import key

Rows = NDArray[np.float32]


class Embeddings:
    """Vectors by prompt, in a cache file that holds hashes of prompts and never the prompts."""

    def __init__(self, encoder: Path, cache: Path | None = None) -> None:
        identity = hashlib.sha256(encoder.read_bytes()).hexdigest()[:12]
        self._encoder = encoder
        self._file = (cache or platformdirs.user_cache_path("upcall")) / f"embeddings-{identity}.npz"
        self._vectors: dict[str, NDArray[np.float16]] = {}
        if self._file.exists():
            with np.load(self._file) as stored:
                self._vectors = dict(zip(stored["keys"].tolist(), stored["vectors"], strict=True))

    def of(self, prompts: Sequence[str], name: str) -> Rows:
        """Vectors of `prompts`, one row each; `name` says in the progress bar what they are."""
        missing = list(dict.fromkeys(prompt for prompt in prompts if key(prompt) not in self._vectors))
        if missing:
            encoder = Encoder(self._encoder)
            for prompt in track(missing, f"Embedding {name}", console=Console(stderr=True)):
                self._vectors[key(prompt)] = encoder.embed([prompt])[0].astype(np.float16)
            self._file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(self._file, keys=np.array(list(self._vectors)), vectors=np.stack(list(self._vectors.values())))
        return np.stack([self._vectors[key(prompt)] for prompt in prompts]).astype(np.float32)

    def inputs(self, prompts: Sequence[str], name: str) -> tuple[Rows, Rows]:
        """What the trained graphs take: vectors and logarithmic lengths of `prompts`."""
        return self.of(prompts, name), log_length(prompts)
