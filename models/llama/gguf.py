"""The head of a GGUF file, read without llama.cpp: enough to know what a model needs before anything is loaded."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from models.llama.errors import LoadError

_STRING, _ARRAY = 8, 9
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TOKENS = "tokenizer.ggml.tokens"
_LONGEST_STRING = 1 << 20
_MOST_ENTRIES = 1 << 16

Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Head:
    """What the file says about its model."""

    size: int
    """Of the file, in bytes; near enough that of the weights."""
    metadata: Mapping[str, Scalar]

    def number(self, name: str, default: int = 0) -> int:
        """A number of the model's architecture, such as `block_count`."""
        value = self.metadata.get(f"{self.metadata.get('general.architecture')}.{name}", default)
        return int(value) if isinstance(value, int | float) else default

    @property
    def vocabulary(self) -> int:
        """Number of tokens; 0 where the file does not say."""
        return int(self.metadata.get(_TOKENS, 0))


def read_head(path: Path) -> Head:
    """Metadata up to the list of tokens, of which only the length is kept. Raises `LoadError`."""
    try:
        with path.open("rb") as file:
            return Head(path.stat().st_size, _metadata(file, path))
    except OSError as error:
        reason = error.strerror or str(error)
        raise LoadError(f"{path} cannot be read: {reason}; check the path or pull the model") from error
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise LoadError(f"{path} is a damaged GGUF file; pull the model again or choose another file") from error


def _metadata(file: BinaryIO, path: Path) -> dict[str, Scalar]:
    if file.read(4) != b"GGUF":
        raise LoadError(f"{path} is not a GGUF file; llama.cpp reads only GGUF models")
    _version, _tensors, entries = struct.unpack("<IQQ", file.read(20))
    found: dict[str, Scalar] = {}
    for _ in range(min(entries, _MOST_ENTRIES)):
        key, kind = _string(file), _number(file, "<I")
        if kind == _ARRAY:
            count = _skip_array(file, only_count=key == _TOKENS)
            if key == _TOKENS:
                found[key] = count
                break
        else:
            found[key] = _string(file) if kind == _STRING else _number(file, _format(kind))
    return found


def _skip_array(file: BinaryIO, *, only_count: bool) -> int:
    """The array's length; with `only_count`, the file is left in the middle of it."""
    kind, count = _number(file, "<I"), int(_number(file, "<Q"))
    if kind != _STRING:
        file.seek(struct.calcsize(_format(kind)) * count, 1)
    elif not only_count:
        for _ in range(count):
            file.seek(_number(file, "<Q"), 1)
    return count


def _string(file: BinaryIO) -> str:
    length = _number(file, "<Q")
    if length > _LONGEST_STRING:
        raise ValueError("a string of impossible length")
    return file.read(length).decode("utf-8", "replace")


def _number(file: BinaryIO, code: str) -> Any:
    return struct.unpack(code, file.read(struct.calcsize(code)))[0]


def _format(kind: int) -> str:
    if kind not in _FORMATS:
        raise ValueError("a value of unknown type")
    return _FORMATS[kind]
