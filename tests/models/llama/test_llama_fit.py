"""What a machine carries decides how a model runs, and a model that does not fit is refused with the numbers."""

import dataclasses
import struct
from pathlib import Path

import psutil
import pytest

from models.llama.errors import LoadError
from models.llama.fit import Machine, fit, this_machine
from models.llama.gguf import read_head
from models.llama.model import LlamaModel
from models.llama.settings import LlamaSettings
from tests.models.llama.conftest import ask

GIB = 2**30
ROOMY = Machine(cores=6, memory=32 * GIB)


@pytest.fixture(scope="module")
def llama3_8b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The head of Llama 3 8B's file and its size; no weights, which would take 4.9 GB (here they take no space)."""
    path = tmp_path_factory.mktemp("gguf") / "llama3.gguf"
    numbers = {"block_count": 32, "context_length": 8192, "embedding_length": 4096, "feed_forward_length": 14336}
    numbers |= {"attention.head_count": 32, "attention.head_count_kv": 8}
    entries = [_string("general.architecture") + struct.pack("<I", 8) + _string("llama")]
    entries += [_string(f"llama.{key}") + struct.pack("<II", 4, value) for key, value in numbers.items()]
    entries.append(_string("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 128256))
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(entries))
        file.truncate(4_920_734_016)
    return path


def settings(path: Path) -> LlamaSettings:
    return LlamaSettings(path=str(path), name="model")


def test_roomy_machine_gets_the_whole_context_and_a_thread_per_core(llama3_8b: Path) -> None:
    chosen = fit(settings(llama3_8b), ROOMY).settings
    assert (chosen.threads, chosen.threads_batch) == (6, 6)
    assert chosen.context_length == 8192
    assert chosen.cache_tokens == 2 * 8192
    assert chosen.kv_type == "f16"


def test_need_is_weights_and_128_kib_of_cache_per_token_of_llama3(llama3_8b: Path) -> None:
    one = fit(dataclasses.replace(settings(llama3_8b), cache_tokens=8192), ROOMY)
    two = fit(dataclasses.replace(settings(llama3_8b), cache_tokens=16384), ROOMY)
    assert two.needed - one.needed == 8192 * 128 * 1024
    assert 4_920_734_016 < one.needed - 8192 * 128 * 1024 < 5.2 * 10**9


def test_less_memory_first_stores_the_cache_in_8_bits_then_shortens_the_context(llama3_8b: Path) -> None:
    tight = fit(settings(llama3_8b), Machine(cores=4, memory=int(6.1 * GIB)))
    assert tight.settings.kv_type == "q8_0"
    assert tight.settings.context_length == 8192
    tighter = fit(settings(llama3_8b), Machine(cores=4, memory=int(5.7 * GIB)))
    assert 1024 <= tighter.settings.context_length < 8192
    assert any("fits in memory" in reason for reason in tighter.reasons)
    assert tighter.needed < 5.7 * GIB


def test_model_that_does_not_fit_is_refused_with_both_numbers(llama3_8b: Path) -> None:
    with pytest.raises(LoadError, match=r"needs 5\.\d GiB of memory, and 4\.0 GiB are free"):
        fit(settings(llama3_8b), Machine(cores=4, memory=4 * GIB))


def test_context_is_never_longer_than_the_model_was_trained_for(smollm2: Path) -> None:
    chosen = fit(dataclasses.replace(settings(smollm2), context_length=100_000), ROOMY)
    assert chosen.settings.context_length == 8192
    assert any("trained for" in reason for reason in chosen.reasons)


def test_rearranged_weights_count_twice_and_are_left_out_where_they_crash(llama3_8b: Path) -> None:
    wanted = dataclasses.replace(settings(llama3_8b), repack=True)
    assert fit(wanted, ROOMY).needed - fit(settings(llama3_8b), ROOMY).needed == 4_920_734_016
    crashing = fit(wanted, dataclasses.replace(ROOMY, repack_works=False))
    assert not crashing.settings.repack
    assert any("crash" in reason for reason in crashing.reasons)


def test_this_machine_has_what_the_kernel_says() -> None:
    machine = this_machine()
    assert 1 <= machine.cores <= (psutil.cpu_count() or 1)
    assert 0 < machine.memory <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    "tail",
    [b"", b"\xff" * 64, struct.pack("<IQQ", 3, 0, 2**60), struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**62)],
)
def test_damaged_head_is_one_clear_line(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(b"GGUF" + tail)
    with pytest.raises(LoadError, match=r"damaged GGUF file.*pull the model again"):
        read_head(path)


@pytest.mark.asyncio(loop_scope="session")
async def test_rearranged_weights_never_crash_the_engine(smollm2: Path) -> None:
    model = LlamaModel(dataclasses.replace(settings(smollm2), repack=True, context_length=512))
    assert (await ask(model, "Hi", max_tokens=2)).usage.completion_tokens == 2
    await model.close()


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()
