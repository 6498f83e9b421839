"""Public files that are known by their hash, and may be fetched."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class File:
    """One of them."""

    path: str
    """Relative, with slashes: where readers expect it in their folder."""
    urls: tuple[str, ...]
    size: int
    """Bytes."""
    sha256: str


def files(repository: Mapping[str, Any], folder: str = "") -> list[File]:
    """The files of one pinned repository, to lie in `folder`.

    `repository` has its `commit`, `urls` with places for `{commit}` and `{path}`, and in `files` each one's pin.
    """
    return [
        File(
            f"{folder}{path}",
            tuple(url.format(commit=repository["commit"], path=quote(path)) for url in repository["urls"]),
            **pin,
        )
        for path, pin in repository["files"].items()
    ]
