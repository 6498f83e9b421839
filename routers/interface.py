"""What a router is: prompt in, probability out, on this machine."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class RouterError(Exception):
    """An artifact or encoder is missing, damaged or does not fit; the message says in one line what to do."""


class Router(Protocol):
    """Scores prompts by how likely the strong model's answer is to be preferred over the weak model's.

    Implementations load in their constructor, hold no state between calls, open no socket and may be called from any
    one thread at a time.
    """

    name: str
    """As in `router-<name>-<threshold>`."""
    version: str
    """Of the trained artifact; changes whenever scores change."""

    def score(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """P(strong preferred) of each prompt, shape `(len(prompts),)`, in [0, 1] and never NaN.

        Any string has a score: an empty one, binary noise, 100,000 characters.
        """
        ...
