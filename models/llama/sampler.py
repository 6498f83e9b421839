"""Picks the next token: llama.cpp's sampler chains over one candidate buffer, no Python over the vocabulary."""

import ctypes
import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.llama.native import brief, captured_log, lib
from models.llama.vocabulary import Vocabulary

_apply, _accept = brief("llama_sampler_apply"), brief("llama_sampler_accept")

_REACHES = (6.0, 9.0, 12.0)
"""Nats below the likeliest token: the nearest within which enough others lie spares the sampler all the rest."""
_MOST_AT_ONCE = 8192
_LONGEST_OPENING = 256
"""Bytes of an answer within which it has to show that it is one for the grammar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to pick tokens; temperature 0 takes the likeliest."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    logit_bias: Sequence[tuple[int, float]] = ()
    grammar: str | None = None
    """GBNF that the answer must follow."""
    grammar_trigger: str | None = None
    """Text after which the grammar holds."""
    grammar_opening: str | None = None
    """Regular expression: an answer that begins so is held to the grammar as a whole, and any other not at all."""

    @property
    def enough(self) -> int:
        """How many of the likeliest tokens decide; 0: it takes all of them."""
        raises = any(bias > 0 for _, bias in self.logit_bias) or self.presence_penalty or self.frequency_penalty
        best = 1 if self.temperature <= 0 else max(self.top_k, 0)
        return 0 if raises or not best else best + len(self.logit_bias)


class NoTokenLeftError(Exception):
    """The grammar allows none of the model's tokens here."""


class Candidates:
    """The array of `llama_token_data` that samplers narrow down; one serves any number of samplers in turn."""

    def __init__(self, size: int) -> None:
        # A `llama_token_data` is an int32 and two floats: three words, of which numpy moves whole rows fastest.
        self._fresh = np.zeros((size, 3), np.int32)
        self._fresh[:, 0] = np.arange(size)
        self._words = self._fresh.copy()
        self.logits: NDArray[np.float32] = self._words.view(np.float32)[:, 1]
        self._near = np.empty(size, np.bool_)
        self._address = self._words.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
        self.array = lib.llama_token_data_array()

    def fill(self, row: NDArray[np.float32]) -> None:
        """All tokens with their logits."""
        np.copyto(self._words, self._fresh)
        self.logits[:] = row
        self._reset(len(self._words))

    def fill_best(self, row: NDArray[np.float32], greatest: float, count: int) -> None:
        """The likeliest tokens with their logits: at least `count`, the greatest of which is `greatest`."""
        for reach in _REACHES:
            np.greater(row, np.float32(greatest - reach), out=self._near)
            size = int(np.count_nonzero(self._near))
            if count <= size <= _MOST_AT_ONCE:
                ids = self._near.nonzero()[0]
                self._words[:size, 0], self.logits[:size] = ids, row[ids]
                return self._reset(size)
        return self.fill(row)

    def only(self, token: int) -> None:
        """One token, with a logit that a grammar turns into -inf where it forbids it."""
        self._words[0, 0], self.logits[0] = token, 0.0
        self._reset(1)

    def _reset(self, size: int) -> None:
        self.array.data, self.array.size, self.array.selected, self.array.sorted = self._address, size, -1, False


class Sampler:
    """The sampling of one answer. Raises `ValueError` for a grammar that llama.cpp does not take."""

    def __init__(self, sampling: Sampling, vocabulary: Vocabulary) -> None:
        self._grammar: Any = None
        if sampling.grammar is not None:
            self._grammar = _grammar(sampling.grammar, vocabulary)
            weakref.finalize(self, lib.llama_sampler_free, self._grammar)
        self._trigger = sampling.grammar_trigger.encode() if sampling.grammar_trigger else None
        self._opening = re.compile(sampling.grammar_opening) if sampling.grammar_opening else None
        self._begun: list[int] = []
        self._tail = b""
        self._vocabulary = vocabulary
        self._chain: Any = None
        self._enough = sampling.enough
        changed = sampling.logit_bias or sampling.presence_penalty or sampling.frequency_penalty
        if sampling.temperature > 0 or changed or self._grammar:
            self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
            weakref.finalize(self, lib.llama_sampler_free, self._chain)
            for sampler in _samplers(sampling, vocabulary.size):
                lib.llama_sampler_chain_add(self._chain, sampler)

    def sample(self, row: NDArray[np.float32], argmax: int, candidates: Candidates) -> int:
        """The next token, of logits `row` whose greatest is at `argmax`; from then on it counts as said.

        Raises `NoTokenLeftError`. `candidates` is scratch space.
        """
        if self._chain is None:
            return argmax
        if self._enough:
            candidates.fill_best(row, float(row[argmax]), self._enough)
        else:
            candidates.fill(row)
        token = self._pick(candidates)
        if self._opening is not None:
            self._watch_opening(token, self._opening, candidates)
        if self._trigger is not None:
            self._watch(token, self._trigger)
        elif self._grammar is not None and self._opening is None:
            if not self._allows(token, candidates):
                candidates.fill(row)
                lib.llama_sampler_apply(self._grammar, ctypes.byref(candidates.array))
                if not np.isfinite(candidates.logits.max()):  # llama.cpp aborts the process on an empty choice
                    raise NoTokenLeftError
                token = self._pick(candidates)
            _accept(self._grammar, token)
        _accept(self._chain, token)
        return token

    def _watch(self, token: int, trigger: bytes) -> None:
        """Look for the text that puts the grammar in force."""
        self._tail += self._vocabulary.piece(token)
        before, found, after = self._tail.partition(trigger)
        if not found:
            self._tail = before[1 - len(trigger) :]
        elif after.strip():
            self._tail = after  # the grammar cannot be told of half a token, so this occurrence stays without it
        else:
            self._trigger = None

    def _watch_opening(self, token: int, opening: re.Pattern[str], candidates: Candidates) -> None:
        """Put the grammar in force, before `token`, where the answer has begun as `opening` says."""
        self._tail += self._vocabulary.piece(token)
        text = self._tail.decode("utf-8", "ignore")
        if opening.match(text):
            self._opening = None
            for earlier in self._begun:
                if not self._allows(earlier, candidates):
                    self._grammar = None  # its blanks, say: llama.cpp would end the process if told of such a token
                    return
                _accept(self._grammar, earlier)
        elif text.lstrip()[:1] not in ("", "{") or len(text) > _LONGEST_OPENING:
            self._opening = self._grammar = None
        elif text.strip():  # neither blanks before it nor a control token, Llama 3.1's <|python_tag|>, are part of it
            self._begun.append(token)

    def _allows(self, token: int, candidates: Candidates) -> bool:
        """Asking the grammar about one token takes microseconds, about all of them tens of milliseconds."""
        candidates.only(token)
        _apply(self._grammar, ctypes.byref(candidates.array))
        return bool(candidates.logits[0] >= 0)

    def _pick(self, candidates: Candidates) -> int:
        _apply(self._chain, ctypes.byref(candidates.array))
        return int(candidates.array.data[candidates.array.selected].id)


def _samplers(sampling: Sampling, n_vocab: int) -> list[Any]:
    samplers = []
    if sampling.logit_bias:
        biases = (lib.llama_logit_bias * len(sampling.logit_bias))(*sampling.logit_bias)
        samplers.append(lib.llama_sampler_init_logit_bias(n_vocab, len(biases), biases))
    if sampling.presence_penalty or sampling.frequency_penalty:
        everything = 1 << 16
        frequency, presence = sampling.frequency_penalty, sampling.presence_penalty
        samplers.append(lib.llama_sampler_init_penalties(n_vocab, everything, 1.0, frequency, presence))
    if sampling.temperature <= 0:
        return [*samplers, lib.llama_sampler_init_greedy()]
    if sampling.top_k > 0:
        samplers.append(lib.llama_sampler_init_top_k(sampling.top_k))
    if sampling.top_p < 1:
        samplers.append(lib.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        samplers.append(lib.llama_sampler_init_min_p(sampling.min_p, 1))
    samplers.append(lib.llama_sampler_init_temp(sampling.temperature))
    return [*samplers, lib.llama_sampler_init_dist(sampling.seed)]


def _grammar(text: str, vocabulary: Vocabulary) -> Any:
    with captured_log():  # the parser's complaints quote the grammar, which may be a client's schema
        grammar = lib.llama_sampler_init_grammar(vocabulary.pointer, text.encode(), b"root")
    if not grammar:
        raise ValueError("llama.cpp does not take the grammar")
    return grammar
