"""A loaded model, and a llama.cpp context over it: batches in, rows of logits out, sequences in between."""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.llama.errors import LoadError
from models.llama.native import AbortFlag, captured_log, lib
from models.llama.settings import LlamaSettings
from models.llama.vocabulary import Vocabulary


class Model:
    """The weights and the vocabulary of a GGUF file.

    `on_progress` hears the share loaded, 0 to 1, and stops the loading by answering False; that and an unusable file
    raise `LoadError`.
    """

    def __init__(self, path: str, *, repack: bool, on_progress: Callable[[float], bool]) -> None:
        parameters = lib.llama_model_default_params()
        parameters.use_extra_bufts = repack
        callback = lib.llama_progress_callback(lambda fraction, _data: on_progress(fraction))
        parameters.progress_callback = callback
        with captured_log() as log:
            self.pointer = lib.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.pointer:
            raise LoadError(f"{path} cannot be loaded: {_reason(log)}; pull the model again or choose another file")
        self.metadata = _metadata(self.pointer)
        self.size: int = lib.llama_model_size(self.pointer)
        self.vocabulary = Vocabulary(self.pointer)
        # Recurrent states and sliding windows cannot be cut back to an earlier position.
        self.rewinds = not (
            lib.llama_model_is_recurrent(self.pointer)
            or lib.llama_model_is_hybrid(self.pointer)
            or lib.llama_model_n_swa(self.pointer) > 0
        )
        if not lib.llama_model_has_decoder(self.pointer) or self.vocabulary.size == 0:
            self.close()
            raise LoadError(f"{path} is not a text generation model; choose a chat model")

    def close(self) -> None:
        lib.llama_model_free(self.pointer)
        self.pointer = None


class Context:
    """The state of `slots` sequences over `cells` shared cells of keys and values. For one thread at a time.

    Tokens are added to a batch, one `decode` computes it. Only `abort` may be used from another thread.
    """

    def __init__(self, model: Model, settings: LlamaSettings) -> None:
        self.abort = AbortFlag()
        self.n_vocab = model.vocabulary.size
        self.n_embd: int = lib.llama_model_n_embd(model.pointer)
        size = settings.batch + settings.slots
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = settings.cache_tokens
        parameters.n_batch = size
        parameters.n_ubatch = min(settings.ubatch, size)
        parameters.n_seq_max = settings.slots
        parameters.n_outputs_max = settings.slots  # else the buffers hold logits of whole batches
        parameters.n_threads = settings.threads
        parameters.n_threads_batch = settings.threads_batch
        parameters.type_k = parameters.type_v = {"f16": lib.GGML_TYPE_F16, "q8_0": lib.GGML_TYPE_Q8_0}[settings.kv_type]
        parameters.kv_unified = True
        parameters.no_perf = True
        parameters.abort_callback = AbortFlag.callback
        parameters.abort_callback_data = self.abort.data
        with captured_log() as log:
            self._pointer = lib.llama_init_from_model(model.pointer, parameters)
        if not self._pointer:
            raise LoadError(
                f"{settings.path} loads, but not with a context of {settings.cache_tokens:,} tokens: {_reason(log)}"
            )
        self._memory = lib.llama_get_memory(self._pointer)
        self.cells: int = lib.llama_n_ctx(self._pointer)
        self._rows: dict[int, NDArray[np.float32]] = {}
        self._batch = lib.llama_batch()
        self._tokens = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._sequences = np.zeros(size, np.int32)
        self._outputs = np.zeros(size, np.int8)
        self._ones = np.ones(size, np.int32)
        int32 = ctypes.POINTER(ctypes.c_int32)
        step, start = self._sequences.itemsize, self._sequences.ctypes.data
        self._sequence_pointers = (int32 * size)(*(ctypes.cast(start + i * step, int32) for i in range(size)))
        self._batch.token = self._tokens.ctypes.data_as(int32)
        self._batch.pos = self._positions.ctypes.data_as(int32)
        self._batch.n_seq_id = self._ones.ctypes.data_as(int32)
        self._batch.seq_id = self._sequence_pointers
        self._batch.logits = self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))

    def clear_batch(self) -> None:
        self._batch.n_tokens = 0

    def add(self, tokens: Sequence[int] | NDArray[np.int32], position: int, sequence: int, *, output: bool) -> int:
        """Append `tokens` of `sequence`, which holds `position` so far; with `output` the last gets a row of logits.

        The index of that last token in the batch.
        """
        start: int = self._batch.n_tokens
        end = start + len(tokens)
        if end == start + 1:  # one after the other, this is what a running answer consists of: slices cost much more
            self._tokens[start], self._positions[start] = tokens[0], position
            self._sequences[start], self._outputs[start] = sequence, output
            self._batch.n_tokens = end
            return start
        self._tokens[start:end] = tokens
        self._positions[start:end] = range(position, position + len(tokens))
        self._sequences[start:end] = sequence
        self._outputs[start:end] = 0
        self._outputs[end - 1] = output
        self._batch.n_tokens = end
        return end - 1

    def decode(self, *, hidden: bool = False) -> int:
        """Compute the batch. llama.cpp's answer: 0, 1 for no room, 2 after an abort, negative for an error.

        After 2 and errors, part of the batch may have been computed: cut the sequences back.

        `hidden` keeps hidden states, too. llama.cpp then makes every token an output, and ends the process where there
        are more than slots: such a batch must hold one token of each sequence.
        """
        if not hidden:
            return int(lib.llama_decode(self._pointer, self._batch))
        lib.llama_set_embeddings(self._pointer, True)
        result = int(lib.llama_decode(self._pointer, self._batch))
        lib.llama_set_embeddings(self._pointer, False)
        return result

    def row(self, index: int) -> NDArray[np.float32]:
        """The logits at a batch index, shape `(n_vocab,)`: a view until the next decode."""
        pointer = lib.llama_get_logits_ith(self._pointer, index)
        address = ctypes.addressof(pointer.contents)
        if address not in self._rows:  # few addresses ever come up, and a view costs more than the lookup
            self._rows[address] = np.ctypeslib.as_array(pointer, (self.n_vocab,))
        return self._rows[address]

    def hidden(self, index: int) -> NDArray[np.float32]:
        """The last hidden state at a batch index, shape `(n_embd,)`, after `decode(hidden=True)`: a view like `row`."""
        state: NDArray[np.float32] = np.ctypeslib.as_array(
            lib.llama_get_embeddings_ith(self._pointer, index), (self.n_embd,)
        )
        return state

    def cut(self, sequence: int, length: int) -> bool:
        """Forget all of a sequence but its first `length` tokens; False where the model cannot keep a part."""
        return bool(lib.llama_memory_seq_rm(self._memory, sequence, length, -1))

    def share(self, source: int, target: int, length: int) -> None:
        """Let the empty sequence `target` begin with the first `length` tokens of `source`, at no cost in cells."""
        lib.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def state_size(self, sequence: int) -> int:
        """Bytes that `save` would return."""
        return int(lib.llama_state_seq_get_size(self._pointer, sequence))

    def save(self, sequence: int) -> NDArray[np.uint8]:
        """The keys and values of a sequence."""
        data = np.empty(self.state_size(sequence), np.uint8)
        written = lib.llama_state_seq_get_data(self._pointer, _bytes(data), data.nbytes, sequence)
        return data[:written]

    def restore(self, sequence: int, data: NDArray[np.uint8]) -> bool:
        """Put saved keys and values into an empty sequence; False where they do not fit."""
        with captured_log():
            return bool(lib.llama_state_seq_set_data(self._pointer, _bytes(data), data.nbytes, sequence))

    def forget(self) -> None:
        """Empty every sequence."""
        lib.llama_memory_clear(self._memory, False)

    def close(self) -> None:
        lib.llama_free(self._pointer)
        self._pointer = None


def _reason(log: Sequence[str]) -> str:
    """The most telling line of llama.cpp's log of a failure, without the names of its functions."""
    telling = [line for line in log if "error" in line.lower() or "failed" in line.lower()]
    line = (telling or ["llama.cpp gives no reason"])[0]
    return line.removeprefix("llama_model_load: error loading model: ").split(": ", 1)[-1].strip()


def _metadata(model: int) -> dict[str, str]:
    """The file's scalar metadata by key."""
    found = {}
    for index in range(lib.llama_model_meta_count(model)):
        key = _string(lib.llama_model_meta_key_by_index, model, index)
        found[key] = _string(lib.llama_model_meta_val_str_by_index, model, index)
    return found


def _string(function: Any, model: int, index: int) -> str:
    buffer = ctypes.create_string_buffer(512)
    length = function(model, index, buffer, len(buffer))
    if length >= len(buffer):
        buffer = ctypes.create_string_buffer(length + 1)
        function(model, index, buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace")


def _bytes(data: NDArray[np.uint8]) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
