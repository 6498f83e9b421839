"""Prompt text to a unit vector: the multilingual Universal Sentence Encoder, int8, through ONNX Runtime.

The graph takes raw strings: SentencePiece runs inside it, as a custom operator of onnxruntime-extensions.
"""

import contextlib
import ctypes
import importlib.machinery
import importlib.util
import os
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from routers.interface import RouterError

DIMENSION = 512
HEAD, TAIL = 2000, 1000
"""Characters of a long prompt that are embedded: its first and its last. Attention is quadratic in length, and what is
asked stands at either end. This is the router's view only; models are sent the whole prompt."""


def shared(path: Path) -> "Encoder":
    """The encoder at `path`, one for all in this process that ask for it. Raises as `Encoder`."""
    status = path.stat() if path.is_file() else None
    return _shared(path, status and (status.st_size, status.st_mtime_ns))


class Encoder:
    """Embeds prompts with the encoder file at `path`, on `threads` threads.

    Beside the file it writes, once, a directory with the same graph whose weights lie outside it, to be mapped rather
    than copied: a third of the memory and a faster start. Where that cannot be written, the file itself is loaded.

    Raises:
        RouterError: the file is missing, is not this encoder, or ONNX Runtime cannot load it.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        if not path.is_file():
            raise RouterError(f"The router's encoder is not at {path}: run `upcall pull use-multilingual`.")
        try:
            self._session = _open(path, threads)
            shape = self._session.get_outputs()[0].shape
        except Exception as error:  # ONNX Runtime raises many unrelated types, some private
            raise RouterError(
                f"ONNX Runtime cannot load the encoder {path} ({str(error).splitlines()[0][:120]}): "
                "fetch it again with `upcall rm use-multilingual` and `upcall pull use-multilingual`."
            ) from error
        if shape[-1] != DIMENSION:
            raise RouterError(f"{path} gives vectors of size {shape[-1]}, not {DIMENSION}: it is another encoder.")
        self._input = self._session.get_inputs()[0].name
        _return_free_memory()

    def embed(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of shape `(len(prompts), DIMENSION)`; zeros for a prompt with nothing in it to read.

        One prompt at a time: activations are quantized with one scale per batch, so that in a batch a prompt's vector
        would depend on its neighbours.
        """
        vectors = np.zeros((len(prompts), DIMENSION), dtype=np.float32)
        for row, prompt in enumerate(prompts):
            if text := readable(prompt):
                vectors[row] = self._session.run(None, {self._input: np.array([text], dtype=object)})[0][0]
        return np.nan_to_num(vectors, copy=False, posinf=0.0, neginf=0.0)


@lru_cache(maxsize=1)
def _shared(path: Path, _: object) -> Encoder:
    """The second argument changes with the file."""
    return Encoder(path)


def readable(prompt: str) -> str:
    """What of `prompt` the encoder sees: the window, with what UTF-8 or a C string cannot carry turned into spaces."""
    window = prompt if len(prompt) <= HEAD + TAIL else f"{prompt[:HEAD]}\n{prompt[-TAIL:]}"
    return _UNREADABLE.sub(" ", window).strip()


_UNREADABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffd]+")


def session_options(threads: int = 1) -> ort.SessionOptions:
    """Options for a small graph beside a busy model: few threads, and none that spins while it waits for work."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _open(path: Path, threads: int) -> ort.InferenceSession:
    options = session_options(threads)
    options.register_custom_ops_library(_custom_operators())
    if (mapped := _mapped_copy(path)) is not None:
        level = options.graph_optimization_level
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # done when it was written
        try:
            return ort.InferenceSession(mapped, options, providers=["CPUExecutionProvider"])
        except Exception:  # of many unrelated types: cut short by a full disk, or by whoever cleans up
            shutil.rmtree(mapped.parent, ignore_errors=True)
            options.graph_optimization_level = level
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _mapped_copy(path: Path) -> Path | None:
    """The graph file of the mapped copy of `path`, written now if need be; None where it cannot be written."""
    status = path.stat()
    directory = path.with_name(f"{path.name}.mapped-{ort.__version__}-{status.st_size:x}-{status.st_mtime_ns:x}")
    graph = directory / "graph.onnx"
    if graph.is_file() and (directory / "weights.bin").is_file():
        return graph
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError:
        return None
    try:
        options = session_options()
        options.register_custom_ops_library(_custom_operators())
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(scratch / graph.name)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        try:
            ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception:  # of many unrelated types: for a full disk, and for a damaged file, which fails by itself
            return None
        with contextlib.suppress(OSError):  # another process was first
            os.rename(scratch, directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _remove_outdated(path, directory)
    return graph if graph.is_file() else None


def _remove_outdated(path: Path, kept: Path) -> None:
    """Copies of another encoder or for another ONNX Runtime, and what a killed process left half written."""
    for other in path.parent.glob(f"{path.name}.mapped-*"):
        if other != kept:
            shutil.rmtree(other, ignore_errors=True)
    for scratch in path.parent.glob(f".{path.name}.*"):
        if scratch.stat().st_mtime < time.time() - _SCRATCH_SECONDS:
            shutil.rmtree(scratch, ignore_errors=True)


_SCRATCH_SECONDS = 3600.0
"""Nobody takes so long to write a copy."""


def _custom_operators() -> str:
    """The library of onnxruntime-extensions, found without importing the package: that would also import `onnx`."""
    spec = importlib.util.find_spec("onnxruntime_extensions")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            if (library := Path(folder, f"_extensions_pydll{suffix}")).is_file():
                return str(library)
    raise RouterError("onnxruntime-extensions is not installed: install upcall again.")


def _return_free_memory() -> None:
    """Give back what building the tokenizer has freed: glibc alone would keep some 30 MB for good."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
