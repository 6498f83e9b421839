"""The frozen part of the `bert` router: all-MiniLM-L6-v2 as the model store has it, fp32, read at an inner layer.

The store's file is used as it is; what lies behind the layer asked for is cut off when it is loaded.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from routers.encoder import readable, session_options
from routers.interface import RouterError
from routers.onnx_cut import cut
from routers.wordpiece import WordPiece

FILE = "all-MiniLM-L6-v2.onnx"
VOCABULARY = "all-MiniLM-L6-v2.vocab.txt"
SHA256 = "6fd5d72fe4589f189f8ebc006442dbb529bb7ce38f8082112682524616046452"
"""Of the model file: what was trained over other weights would give scores that mean nothing."""
WIDTH = 384
HEAD, TAIL = 94, 32
"""Tokens of a long prompt that are read: its first and its last; with the two marks 128, which training saw at most."""
LAST = "last_hidden_state"


def after_layer(number: int) -> str:
    """The file's own name for what its encoder layer `number` (0 to 5) gives; -1 is the token embeddings."""
    return (
        "/embeddings/LayerNorm/Add_1_output_0"
        if number < 0
        else f"/encoder/layer.{number}/output/LayerNorm/Add_1_output_0"
    )


class MiniLM:
    """The encoder in the file at `path`, read at `output`: `after_layer(…)` or `LAST`; its vocabulary lies beside it.

    Raises:
        RouterError: a file is missing or is another one, or ONNX Runtime cannot load it.
    """

    def __init__(self, path: Path, output: str = LAST, threads: int = 1) -> None:
        if not path.is_file():
            raise RouterError(f"The bert router's encoder is not at {path}: run `upcall pull minilm-l6`.")
        self.tokenizer = WordPiece(path.with_name(VOCABULARY))
        model = path.read_bytes()
        if hashlib.sha256(model).hexdigest() != SHA256:
            raise RouterError(
                f"{path} is not the encoder that the bert router was trained over: fetch it again with "
                "`upcall rm minilm-l6` and `upcall pull minilm-l6`."
            )
        try:
            beginning = cut(model, output)
            del model  # not in memory beside what is made of it
            self._session = ort.InferenceSession(
                beginning, session_options(threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises many unrelated types, some private
            reason = str(error).splitlines()[0][:120]
            raise RouterError(f"ONNX Runtime cannot load {path} ({reason}): install upcall again.") from error

    def tokens(self, prompt: str) -> list[int]:
        """Token numbers of what is read of `prompt`, at least the two marks."""
        return self.tokenizer.tokens(readable(prompt), HEAD, TAIL)

    def states(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """What the output holds for prompts of one length in tokens, shape `(len(rows), tokens, WIDTH)`."""
        ids = np.array(rows, dtype=np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        states: NDArray[np.float32] = self._session.run(None, feeds)[0]
        return states
