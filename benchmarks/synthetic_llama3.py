"""Write a GGUF of Llama 3's shape with random weights and its real tokenizer, to measure speed and memory at true size.

    python benchmarks/synthetic_llama3.py OUT.gguf --vocab llama.cpp/models/ggml-vocab-llama-bpe.gguf
    python benchmarks/synthetic_llama3.py OUT.gguf --vocab … --layers 2 --width 256 --hidden 512 --heads 4 --kv-heads 2

The defaults are those of the 8B model with the tensor types of Q4_K_M: 4.9 GB. The vocabulary file comes with the
sources of llama.cpp and is under the licence of Llama 3: neither it nor what is made with it belongs into a repository.
Needs numpy only; the format is described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import argparse
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

UINT32, FLOAT32, STRING, ARRAY = 4, 6, 8, 9
F32, Q4_K, Q6_K = 0, 12, 14
BLOCK = 256
ALIGNMENT = 32
BLOCK_BYTES = {Q4_K: 144, Q6_K: 210}
Q4_K_M = 15
END_OF_TURN = 128009
POOL = 1 << 14
"""Distinct blocks of weights; tensors draw from them, as neither speed nor memory depends on the values."""


@dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    context: int
    vocabulary: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...], int]]:
        """Name, dimensions (the innermost first, as in the file) and type of each tensor."""
        kv_width = self.width // self.heads * self.kv_heads
        yield "token_embd.weight", (self.width, self.vocabulary), Q4_K
        for layer in range(self.layers):
            finer = Q6_K if self._is_sensitive(layer) else Q4_K
            for name, size, kind in (
                ("attn_norm", (self.width,), F32),
                ("attn_q", (self.width, self.width), Q4_K),
                ("attn_k", (self.width, kv_width), Q4_K),
                ("attn_v", (self.width, kv_width), finer),
                ("attn_output", (self.width, self.width), Q4_K),
                ("ffn_norm", (self.width,), F32),
                ("ffn_gate", (self.width, self.hidden), Q4_K),
                ("ffn_up", (self.width, self.hidden), Q4_K),
                ("ffn_down", (self.hidden, self.width), finer),
            ):
                yield f"blk.{layer}.{name}.weight", size, kind
        yield "output_norm.weight", (self.width,), F32
        yield "output.weight", (self.width, self.vocabulary), Q6_K

    def _is_sensitive(self, layer: int) -> bool:
        """Whether Q4_K_M gives the layer's values more bits: the first and last eighths, and each third in between."""
        eighth = self.layers // 8
        return layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocab", type=Path, required=True)
    for name, default in {
        "layers": 32,
        "width": 4096,
        "hidden": 14336,
        "heads": 32,
        "kv-heads": 8,
        "context": 8192,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    tokenizer, tokens = tokenizer_metadata(options.vocab.read_bytes())
    shape = Shape(
        options.layers, options.width, options.hidden, options.heads, options.kv_heads, options.context, tokens
    )
    with options.out.open("wb") as file:
        write(file, shape, tokenizer)


def write(file: BinaryIO, shape: Shape, tokenizer: list[bytes]) -> None:
    own = [
        entry("general.architecture", STRING, string("llama")),
        entry("general.name", STRING, string("Llama 3 shape, random weights")),
        entry("general.file_type", UINT32, struct.pack("<I", Q4_K_M)),
        entry("llama.rope.freq_base", FLOAT32, struct.pack("<f", 500_000.0)),
        entry("llama.attention.layer_norm_rms_epsilon", FLOAT32, struct.pack("<f", 1e-5)),
    ]
    numbers = {
        "block_count": shape.layers,
        "context_length": shape.context,
        "embedding_length": shape.width,
        "feed_forward_length": shape.hidden,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "rope.dimension_count": shape.width // shape.heads,
        "vocab_size": shape.vocabulary,
    }
    own += [entry(f"llama.{key}", UINT32, struct.pack("<I", value)) for key, value in numbers.items()]
    metadata, tensors = own + tokenizer, list(shape.tensors())
    file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + b"".join(metadata))
    offset = 0
    for name, size, kind in tensors:
        file.write(string(name) + struct.pack(f"<I{len(size)}QIQ", len(size), *size, kind, offset))
        offset += aligned(tensor_bytes(size, kind))
    pad(file)
    random = np.random.default_rng(0)
    pools = {Q4_K: q4_k_blocks(random), Q6_K: q6_k_blocks(random)}
    for _, size, kind in tensors:
        if kind == F32:
            file.write(np.ones(size, np.float32).tobytes())
        else:
            blocks = int(np.prod(size)) // BLOCK
            for start in range(0, blocks, POOL):
                file.write(pools[kind][random.integers(0, POOL, min(POOL, blocks - start))].tobytes())
        pad(file)


def q4_k_blocks(random: np.random.Generator) -> NDArray[np.uint8]:
    """Blocks of 256 weights: two half-precision scales, twelve bytes of 6-bit scales, 128 bytes of 4-bit weights.

    A weight is `d * scale * quant - dmin * minimum`; equal scales of 32 and minimums of 30 put the mean near zero.
    """
    blocks = random.integers(0, 256, (POOL, BLOCK_BYTES[Q4_K]), np.uint8)
    blocks[:, 0:4] = np.array([5e-5, 4e-4], np.float16).view(np.uint8)
    # Bytes 0 to 3 hold scales and 4 to 7 minimums of the first four groups; the last four bytes and the top two bits
    # of the others hold those of the rest.
    blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16] = 32 | 0x80, 30 | 0x40, 0xE0
    return blocks


def q6_k_blocks(random: np.random.Generator) -> NDArray[np.uint8]:
    """Blocks of 256 weights: 128 bytes of low and 64 of high bits, sixteen 8-bit scales, a half-precision scale."""
    blocks = random.integers(0, 256, (POOL, BLOCK_BYTES[Q6_K]), np.uint8)
    blocks[:, 192:208] = 32
    blocks[:, 208:210] = np.array([4e-5], np.float16).view(np.uint8)
    return blocks


def tokenizer_metadata(data: bytes) -> tuple[list[bytes], int]:
    """The `tokenizer.*` entries of a GGUF file as they stand, but ending at the end of a turn; and the token count."""
    (count,) = struct.unpack_from("<Q", data, 16)
    found, tokens, at = [], 0, 24
    for _ in range(count):
        start = at
        (length,) = struct.unpack_from("<Q", data, at)
        key = data[at + 8 : at + 8 + length].decode()
        (kind,) = struct.unpack_from("<I", data, at + 8 + length)
        at = skip(data, at + 12 + length, kind)
        if key == "tokenizer.ggml.tokens":
            (tokens,) = struct.unpack_from("<Q", data, start + 16 + length)
        if key == "tokenizer.ggml.eos_token_id":
            found.append(entry(key, UINT32, struct.pack("<I", END_OF_TURN)))
        elif key.startswith("tokenizer.") and key != "tokenizer.chat_template":
            found.append(data[start:at])
    return found, tokens


def skip(data: bytes, at: int, kind: int) -> int:
    """Where the value of type `kind` at `at` ends."""
    widths = {0: 1, 1: 1, 2: 2, 3: 2, UINT32: 4, 5: 4, FLOAT32: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    if kind == STRING:
        (length,) = struct.unpack_from("<Q", data, at)
        return at + 8 + int(length)
    if kind == ARRAY:
        element, count = struct.unpack_from("<IQ", data, at)
        at += 12
        if element in widths:
            return at + widths[element] * int(count)
        for _ in range(count):
            at = skip(data, at, element)
        return at
    return at + widths[kind]


def entry(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def tensor_bytes(size: tuple[int, ...], kind: int) -> int:
    count = int(np.prod(size))
    return count * 4 if kind == F32 else count // BLOCK * BLOCK_BYTES[kind]


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def pad(file: BinaryIO) -> None:
    file.write(bytes(aligned(file.tell()) - file.tell()))


if __name__ == "__main__":
    main()
