"""The encoders that are compared, each as prompts in, unit vectors out, on one thread."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import platformdirs
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic

from routers.encoder import Encoder, readable, session_options
from routers.minilm import HEAD, TAIL, VOCABULARY
from routers.wordpiece import WordPiece

Rows = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Rows]


def use_multilingual(encoder: Path) -> Embed:
    """Multilingual USE, int8, as it is served."""
    return Encoder(encoder).embed


def minilm(encoder: Path, quantized: bool) -> Embed:
    """MiniLM-L6 (fp32 file), its matrices and token vectors rounded to int8 if so wanted; mean over tokens."""
    tokenizer = WordPiece(encoder.with_name(VOCABULARY))
    with tempfile.TemporaryDirectory() as folder:
        if quantized:
            small = Path(folder, "int8.onnx")
            quantize_dynamic(encoder, small, per_channel=True, weight_type=QuantType.QInt8)
            encoder = small
        session = ort.InferenceSession(encoder, session_options(), providers=["CPUExecutionProvider"])

    def one(prompt: str) -> Rows:
        ids = np.array([tokenizer.tokens(readable(prompt), HEAD, TAIL)])
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        mean: Rows = session.run(None, feeds)[0][0].mean(axis=0)
        return mean / np.linalg.norm(mean)

    return lambda prompts: np.stack([one(prompt) for prompt in prompts])


def wordllama(folder: Path) -> Embed:
    """WordLlama's static vectors: the mean over tokens. `folder` is its unpacked wheel; needs `tokenizers`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(next(folder.rglob("l2_supercat_tokenizer_config.json"))))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    vectors = _safetensors(next(folder.rglob("l2_supercat_256.safetensors")))

    def one(prompt: str) -> Rows:
        ids = tokenizer.encode(readable(prompt), add_special_tokens=False).ids
        mean = vectors[ids].mean(axis=0) if ids else np.zeros(vectors.shape[1], dtype=np.float32)
        return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-6), dtype=np.float32)

    return lambda prompts: np.stack([one(prompt) for prompt in prompts])


def _safetensors(path: Path) -> Rows:
    """The only tensor of the file: a length, a description in JSON, the numbers."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    (tensor,) = (value for key, value in json.loads(content[8 : 8 + size]).items() if key != "__metadata__")
    kind = {"F16": np.float16, "F32": np.float32}[tensor["dtype"]]
    start, end = tensor["data_offsets"]
    numbers = np.frombuffer(content[8 + size + start : 8 + size + end], dtype=kind)
    return numbers.reshape(tensor["shape"]).astype(np.float32)


def kept(name: str, embed: Embed, prompts: Sequence[str]) -> Rows:
    """Vectors of `prompts`, from the cache where they were computed before; the cache has no text."""
    digest = hashlib.sha256("\0".join(prompts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    file = platformdirs.user_cache_path("upcall") / "encoders" / f"{name}-{digest}.npy"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, embed(prompts).astype(np.float16))
    return np.asarray(np.load(file), dtype=np.float32)
