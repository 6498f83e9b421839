"""Whether a model fits this machine."""

from pathlib import Path

import psutil

from models.llama.context import LoadError


def check_memory(path: str) -> None:
    """Raise `LoadError`, with the numbers, for a file that the free memory cannot hold."""
    size, free = Path(path).stat().st_size, psutil.virtual_memory().available
    if size > free:
        raise LoadError(
            f"{path} needs {size / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free; "
            "close other programs or choose a smaller model"
        )
