"""A model's tokens: text to ids and back."""

import ctypes
import functools
import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from models.llama.native import lib


class Vocabulary:
    """The tokenizer inside a loaded model; its methods may be called from any thread while the model lives."""

    def __init__(self, model: int) -> None:
        self.pointer = lib.llama_model_get_vocab(model)
        self.size: int = lib.llama_vocab_n_tokens(self.pointer)
        self.adds_bos: bool = lib.llama_vocab_get_add_bos(self.pointer)
        self.bos_text = self._text(lib.llama_vocab_bos(self.pointer))
        self.eos_text = self._text(lib.llama_vocab_eos(self.pointer))
        self.control_texts = frozenset(
            self._text(token)
            for token in range(self.size)
            if lib.llama_vocab_get_attr(self.pointer, token) & lib.LLAMA_TOKEN_ATTR_CONTROL
        ) - {""}
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}

    def tokenize(self, parts: Iterable[tuple[str, bool]], *, add_bos: bool) -> NDArray[np.int32]:
        """Ids of the parts' texts, shape `(n,)`; only in parts marked `True` are texts of control tokens these."""
        plain = functools.cache(lambda text: self._tokenize(text, control=False))  # the same few, again and again
        ids = [self._tokenize(text, control=True) if control else plain(text) for text, control in parts if text]
        if add_bos and self.adds_bos:
            ids.insert(0, np.array([lib.llama_vocab_bos(self.pointer)], np.int32))
        return np.concatenate(ids) if ids else np.empty(0, np.int32)

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for, maybe part of a character; none for control tokens."""
        piece = self._pieces.get(token)
        if piece is None:
            buffer = ctypes.create_string_buffer(64)
            length = lib.llama_token_to_piece(self.pointer, token, buffer, len(buffer), 0, False)
            if length < 0:
                buffer = ctypes.create_string_buffer(-length)
                length = lib.llama_token_to_piece(self.pointer, token, buffer, len(buffer), 0, False)
            piece = self._pieces[token] = buffer.raw[:length]
        return piece

    def ends_answer(self, token: int) -> bool:
        """Whether the model says with this token that it has finished."""
        ends = self._ends.get(token)
        if ends is None:
            ends = self._ends[token] = bool(lib.llama_vocab_is_eog(self.pointer, token))
        return ends

    def _tokenize(self, string: str, *, control: bool) -> NDArray[np.int32]:
        text = string.encode("utf-8", "replace")
        ids = np.empty(len(text) + 8, np.int32)  # no tokenizer makes more tokens than bytes, but for a few at the ends
        buffer = ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        count = lib.llama_tokenize(self.pointer, text, len(text), buffer, len(ids), False, control)
        if count < 0:
            ids = np.empty(-count, np.int32)
            buffer = ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            count = lib.llama_tokenize(self.pointer, text, len(text), buffer, len(ids), False, control)
        return ids[:count]

    def _text(self, token: int) -> str:
        return lib.llama_vocab_get_text(self.pointer, token).decode("utf-8", "replace") if token >= 0 else ""


def control_pattern(vocabulary: Vocabulary, *more: str) -> re.Pattern[str]:
    """Matches the text of any control token, the longest first, and the strings in `more`."""
    texts = sorted(vocabulary.control_texts.union(more), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts)))
