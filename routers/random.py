"""A router that knows nothing: the baseline every other must beat."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class RandomRouter:
    """Uniform scores, the same for the same prompt in every process."""

    name = "random"
    version = "1"

    def score(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """The first bytes of a hash of each prompt, as a number in [0, 1)."""
        return np.array([_uniform(prompt) for prompt in prompts], dtype=np.float32)


def _uniform(prompt: str) -> float:
    digest = hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=3).digest()
    return int.from_bytes(digest) / 2**24  # 24 bits: all that float32 holds exactly, so never rounded up to 1
