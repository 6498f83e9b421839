"""Keys and values of conversations in files, so that a restarted engine need not compute them again.

A file has a head (magic, key, and how many tokens and bytes follow), the tokens, the state as llama.cpp gives it, and a
digest of all that; numbers are little-endian. It holds a conversation as surely as its text would.
"""

import contextlib
import hashlib
import json
import logging
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.llama.native import version
from models.llama.settings import LlamaSettings

Tokens = NDArray[np.int32]

_log = logging.getLogger(__name__)

_MAGIC = b"upcall kv 1\n"
_HEAD = struct.Struct("<12s16sQQ")
_SUFFIX, _PART = ".kv", ".kv-part"
_DIGEST_BYTES = 16
_LONGEST = 1 << 24
"""Tokens; no model's context has more."""


@dataclass(eq=False, frozen=True, slots=True)
class KeptState:
    """One file, as it was found or written."""

    path: Path
    tokens: Tokens
    size: int
    """Bytes of the file."""


@dataclass(eq=False, frozen=True, slots=True)
class HeldState:
    """A conversation in memory."""

    tokens: Tokens
    size: int
    """Bytes that `data` gives."""
    data: Callable[[], NDArray[np.uint8]]


class DiskStates:
    """The files of one model and engine in `folder`, up to `budget` bytes, least recently used first out.

    Those of any other are removed, as are damaged ones. For one thread at a time, but for `closed`.
    """

    def __init__(self, folder: Path, budget: int, key: bytes) -> None:
        self.closed = False
        """Nothing is read or written any more; may be set by any thread."""
        self._folder = folder
        self._budget = budget
        self._key = key
        self._kept: list[KeptState] = []
        unusable = 0
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in folder.glob(f"*{_PART}"):  # of a write that was cut short
                path.unlink()
            for path in sorted(folder.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime_ns):
                if state := self._opened(path):
                    self._kept.append(state)
                else:
                    unusable += 1
                    path.unlink()
        except OSError as error:
            self._give_up(error)
        if unusable:
            _log.warning("removed %d kept conversations: damaged, or of another model or version", unusable)

    def best(self, common: Callable[[Tokens], int]) -> KeptState | None:
        """The state of the greatest `common`, which counts tokens worth having."""
        return None if self.closed else max(self._kept, key=lambda state: common(state.tokens), default=None)

    def load(self, state: KeptState) -> NDArray[np.uint8] | None:
        """What llama.cpp is to be given; None where the file is gone or damaged, and then it is forgotten."""
        self._kept.remove(state)
        try:
            content = np.fromfile(state.path, np.uint8)
            os.utime(state.path)
        except OSError:
            return None
        body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if len(content) != state.size or _digest(body) != digest.tobytes():
            _log.warning("removed a kept conversation: its file is damaged")
            state.path.unlink(missing_ok=True)
            return None
        self._kept.append(state)
        return body[_HEAD.size + state.tokens.nbytes :]

    def add_next(self, states: Sequence[HeldState]) -> bool:
        """Write the first of `states`, the latest last, that is missing; False once all are there that can be.

        Only the latest that fit into the budget together are written. Any other would make place again for those
        after it, be missing then, and be written again: without an end.
        """
        return any(self.add(state.tokens, state.size, state.data) for state in self._lasting(states))

    def add(self, tokens: Tokens, size: int, data: Callable[[], NDArray[np.uint8]]) -> bool:
        """Write a state of about `size` bytes, unless one is there that begins so; whether it was written."""
        if self.closed or size > self._budget or any(_begins(state.tokens, tokens) for state in self._kept):
            return False
        content = data()
        head = np.frombuffer(_HEAD.pack(_MAGIC, self._key, len(tokens), content.nbytes), np.uint8)
        parts = [head, tokens.astype("<i4").view(np.uint8), content]
        name = hashlib.blake2b(tokens.tobytes(), key=self._key, digest_size=16).hexdigest()
        path = self._folder / (name + _SUFFIX)
        part = path.with_suffix(_PART)
        size = _file_size(len(tokens), content.nbytes)
        try:
            for old in [state for state in self._kept if _begins(tokens, state.tokens)]:
                self._drop(old)
            while self._kept and size + sum(state.size for state in self._kept) > self._budget:
                self._drop(self._kept[0])
            with open(part, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                for piece in (*parts, np.frombuffer(_digest(*parts), np.uint8)):
                    file.write(piece.data)
            if self.closed:  # meanwhile, by another thread
                part.unlink()
                return False
            part.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            self._give_up(error)
            return False
        self._kept.append(KeptState(path, tokens.copy(), size))
        return True

    def were_deleted(self) -> bool:
        """Whether somebody else has deleted files since the last time; they are forgotten here, too."""
        there = [state for state in self._kept if state.path.exists()]
        deleted, self._kept = len(there) < len(self._kept), there
        return deleted

    def _lasting(self, states: Sequence[HeldState]) -> list[HeldState]:
        """Those of `states` that would be left if all were written one after the other."""
        left, latest = self._budget, list[HeldState]()
        for state in reversed(states):
            size = _file_size(len(state.tokens), state.size)
            if size <= left and not any(_begins(later.tokens, state.tokens) for later in latest):
                left -= size
                latest.append(state)
        return latest[::-1]

    def _drop(self, state: KeptState) -> None:
        self._kept.remove(state)
        state.path.unlink(missing_ok=True)

    def _give_up(self, error: OSError) -> None:
        self.closed = True
        _log.warning("conversations are not kept on disk: %s", error.strerror)

    def _opened(self, path: Path) -> KeptState | None:
        with path.open("rb") as file:
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                return None
            magic, key, count, length = _HEAD.unpack(head)
            size = path.stat().st_size
            if (magic, key) != (_MAGIC, self._key) or count > _LONGEST:
                return None
            if size != _file_size(count, length):
                return None
            return KeptState(path, np.frombuffer(file.read(4 * count), "<i4").astype(np.int32), size)


def engine_key(settings: LlamaSettings) -> bytes:
    """What a state depends on: the model's file, how values are stored, and the library that wrote it."""
    status = os.stat(settings.path)
    facts = [settings.sha256, status.st_size, status.st_mtime_ns, settings.kv_type, version]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).digest()


def _file_size(tokens: int, state: int) -> int:
    return _HEAD.size + 4 * tokens + state + _DIGEST_BYTES


def _begins(longer: Tokens, tokens: Tokens) -> bool:
    return len(tokens) <= len(longer) and bool(np.array_equal(longer[: len(tokens)], tokens))


def _digest(*parts: NDArray[np.uint8]) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        digest.update(part.data)
    return digest.digest()
