"""Public files on this machine, for evaluating and training where no data folder is at hand."""

from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from models.fetch import Progress, StoreError, discard, fetch_urls, matches

if TYPE_CHECKING:
    from routers.pins import File


def benchmark_files(
    files: "list[File]",
    progress: Progress,
    folder: Path | None = None,
    *,
    may_fetch: bool = True,
    what: str = "RouteLLM's result files",
) -> Path:
    """The folder that holds `files`, each with its SHA-256; what is missing or differs is fetched.

    A transfer that broke off is continued by the next call. `progress` hears the bytes that are here and those of all.
    `what` names the files to people.
    Raises `StoreError` where a file cannot be fetched, or is missing in privacy mode, when it must not be.
    """
    folder = folder or platformdirs.user_cache_path("upcall") / "routellm"
    total = sum(file.size for file in files)
    ends = accumulate(file.size for file in files)
    for file, end in zip(files, ends, strict=True):
        path = folder / file.path
        if not (path.exists() and matches(path, file.sha256)):
            if not may_fetch:
                raise StoreError(
                    f"privacy mode is on, so {what} are not fetched; `upcall privacy off` allows it, "
                    "or name a folder that has the data files with --data"
                )
            _fetch(file, path, what, partial(_within, progress, end, total))
        progress(end, total)
    return folder


def _within(progress: Progress, end: int, total: int, done: int, size: int) -> None:
    """`done` of the `size` bytes of a file that ends at `end` are here."""
    progress(end - size + done, total)


def _fetch(file: "File", path: Path, what: str, progress: Progress) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        fetch_urls(file.urls, part, file.size, file.sha256, progress)
    except StoreError as error:
        raise StoreError(
            f"{what}: {file.path} was not fetched: {error}; or name a folder that has the data files with --data"
        ) from error
    part.replace(path)
    discard(part)
