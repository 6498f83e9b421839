"""The vectors of the turns that were scored last: a conversation's earlier turns come again with every request."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from routers.encoder import Encoder

REMEMBERED = 256
"""Turns, half a megabyte; beyond, those not asked for the longest go first."""


class TurnVectors:
    """For one thread at a time. Vectors lie in memory alone, under hashes of what the encoder saw."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._encoder: Encoder | None = None

    def of(self, encoder: "Encoder", turns: Sequence[str]) -> "NDArray[np.float32]":
        """As `encoder.embed(turns)`, each turn computed once as long as it is remembered."""
        import numpy as np

        from routers.encoder import readable

        if encoder is not self._encoder:
            self._encoder = encoder
            self._known.clear()
        vectors = []
        for turn in turns:
            key = hashlib.blake2b(readable(turn).encode(), digest_size=16).digest()
            if key not in self._known:
                self._known[key] = encoder.embed([turn])[0]
            self._known.move_to_end(key)
            vectors.append(self._known[key])
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return np.stack(vectors)
