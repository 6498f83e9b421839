"""llama.cpp's C library as ctypes functions (`lib`), loaded for a machine that other programs share."""

import ctypes
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Both are read once, when the libraries load. Without the first a crash forks a debugger; without the second idle
# OpenMP threads spin, and any other busy process cuts generation to a third.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from llama_cpp import __version__
from llama_cpp import llama_cpp as _bindings

lib: Any = _bindings
version: str = __version__


def brief(name: str) -> Any:
    """A function of `lib` for calls of microseconds: it keeps the interpreter lock.

    All others let go of it and then wait for it behind whatever thread took it meanwhile, which between two tokens is
    the event loop with all that it does about the last one.
    """
    function = ctypes.PyDLL(_bindings._lib._name, handle=_bindings._lib._handle)[name]
    function.argtypes, function.restype = getattr(lib, name).argtypes, getattr(lib, name).restype
    return function


_log = logging.getLogger(__name__)
_captures = threading.local()


@contextmanager
def captured_log() -> Iterator[list[str]]:
    """Collect what llama.cpp logs on this thread; nothing of it reaches the log.

    llama.cpp reports the reason of most failures nowhere else, and some of its messages quote their input.
    """
    previous, lines = getattr(_captures, "lines", None), list[str]()
    _captures.lines = lines
    try:
        yield lines
    finally:
        _captures.lines = previous


class AbortFlag:
    """Stops a running `llama_decode` from another thread; the decode then returns 2.

    llama.cpp calls the callback hundreds of times per step. libc's `strlen` on a byte that is 0 or 1 answers without
    the interpreter lock, for which a Python function would wait each time.
    """

    callback = ctypes.cast(ctypes.CDLL(None).strlen, lib.ggml_abort_callback)

    def __init__(self) -> None:
        self._cell = ctypes.create_string_buffer(2)

    @property
    def data(self) -> ctypes.c_void_p:
        """What the callback is to be given."""
        return ctypes.cast(self._cell, ctypes.c_void_p)

    def set(self) -> None:
        self._cell[0] = b"\x01"

    def clear(self) -> None:
        self._cell[0] = b"\x00"


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(_level: int, text: bytes, _data: ctypes.c_void_p) -> None:
    line = text.decode("utf-8", "replace").rstrip()
    lines = getattr(_captures, "lines", None)
    if lines is not None:
        lines.append(line)
    elif line:
        _log.debug("%s", line)


lib.llama_log_set(_on_log, None)
lib.llama_backend_init()
