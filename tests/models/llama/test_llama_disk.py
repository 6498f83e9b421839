"""Conversations that outlive the engine: found again, bounded, and never trusted blindly."""

import asyncio
import dataclasses
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from models.llama.disk import DiskStates, Tokens
from models.llama.model import LlamaModel
from models.llama.settings import LlamaSettings
from tests.daemon.harness import wait_until
from tests.models.llama.conftest import ask, assert_same

QUESTION = "The quick brown fox jumps over the lazy dog near the river. " * 5 + "Which animal is it?"
LIKELY = {"logprobs": True, "top_logprobs": 10, "max_tokens": 8}


@pytest.fixture
def kept(settings: LlamaSettings, tmp_path: Path) -> LlamaSettings:
    return dataclasses.replace(settings, disk_folder=str(tmp_path / "kv"))


def files(kept: LlamaSettings) -> list[Path]:
    return sorted(Path(kept.disk_folder).glob("*"))


@pytest.mark.asyncio(loop_scope="session")
async def test_restarted_engine_goes_on_with_a_conversation_as_if_it_had_never_stopped(kept: LlamaSettings) -> None:
    model = LlamaModel(kept)
    before = await ask(model, QUESTION, **LIKELY)
    await model.close()
    assert [oct(path.stat().st_mode & 0o777) for path in (Path(kept.disk_folder), *files(kept))] == ["0o700", "0o600"]

    model = LlamaModel(kept)
    after = await ask(model, QUESTION, **LIKELY)
    await model.close()
    assert before.usage.cached_tokens == 0
    assert after.usage.cached_tokens == after.usage.prompt_tokens - 1
    assert_same(before, after)


@pytest.mark.asyncio(loop_scope="session")
async def test_file_that_was_damaged_is_removed_and_costs_only_the_time_it_saved(
    kept: LlamaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    model = LlamaModel(kept)
    before = await ask(model, QUESTION, **LIKELY)
    await model.close()
    [path] = files(kept)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0xFF]))

    model = LlamaModel(kept)
    after = await ask(model, QUESTION, **LIKELY)
    assert after.usage.cached_tokens == 0
    assert files(kept) == []
    assert [record.message for record in caplog.records if record.levelno > logging.INFO] == [
        "removed a kept conversation: its file is damaged"
    ]
    await model.close()
    assert_same(before, after)


@pytest.mark.asyncio(loop_scope="session")
async def test_nothing_more_is_kept_once_the_model_is_told_so(kept: LlamaSettings) -> None:
    model = LlamaModel(kept)
    await ask(model, QUESTION, max_tokens=2)
    model.keep_nothing()
    await model.close()
    assert files(kept) == []


@pytest.mark.asyncio(loop_scope="session")
async def test_what_somebody_deletes_is_forgotten_in_memory_too(
    kept: LlamaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.llama.engine._REST", 0.05)
    model = LlamaModel(kept)

    await ask(model, QUESTION, max_tokens=2)
    await asyncio.to_thread(wait_until, lambda: any(path.suffix == ".kv" for path in files(kept)))
    assert (await ask(model, QUESTION, max_tokens=2)).usage.cached_tokens > 80
    for path in files(kept):
        path.unlink()
    assert (await ask(model, QUESTION, max_tokens=2)).usage.cached_tokens == 0
    await model.close()


@pytest.mark.asyncio(loop_scope="session")
async def test_conversations_beyond_the_budget_do_not_keep_the_model_from_closing(kept: LlamaSettings) -> None:
    model = LlamaModel(dataclasses.replace(kept, disk_bytes=3 << 20))
    for animal in ("fox", "cat"):
        assert (await ask(model, QUESTION.replace("fox", animal), max_tokens=2)).usage.prompt_tokens > 80
    async with asyncio.timeout(60):
        await model.close()
    assert len(files(kept)) == 1


KEY = b"k" * 16


def state(number: int, length: int = 100, size: int = 10_000) -> tuple[Tokens, np.ndarray]:
    random = np.random.default_rng(number)
    return random.integers(0, 1000, length, np.int32), random.integers(0, 255, size, np.uint8)


def add(disk: DiskStates, tokens: Tokens, data: np.ndarray) -> bool:
    return disk.add(tokens, data.nbytes, lambda: data)


def held(disk: DiskStates, tokens: Tokens) -> np.ndarray | None:
    found = disk.best(lambda other: int(np.array_equal(other, tokens)))
    return disk.load(found) if found is not None and np.array_equal(found.tokens, tokens) else None


def test_files_stay_within_their_budget_and_those_unused_for_longest_go_first(tmp_path: Path) -> None:
    disk, states = DiskStates(tmp_path, 35_000, KEY), [state(number) for number in range(4)]
    for tokens, data in states[:3]:
        assert add(disk, tokens, data)
    assert held(disk, states[0][0]) is not None
    assert add(disk, *states[3])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 35_000
    assert [held(disk, tokens) is not None for tokens, _ in states] == [True, False, True, True]
    assert not add(disk, *state(9, size=40_000))
    assert len(list(tmp_path.iterdir())) == 3


def test_order_of_use_survives_a_restart(tmp_path: Path) -> None:
    disk, states = DiskStates(tmp_path, 35_000, KEY), [state(number) for number in range(4)]
    for tokens, data in states[:3]:
        add(disk, tokens, data)
    for age, (tokens, _) in enumerate(states[:3]):
        path = next(each.path for each in disk._kept if np.array_equal(each.tokens, tokens))
        os.utime(path, (1000 - age, 1000 - age))
    again = DiskStates(tmp_path, 35_000, KEY)
    add(again, *states[3])
    assert [held(again, tokens) is not None for tokens, _ in states] == [True, True, False, True]


def test_conversation_that_went_on_takes_the_place_of_its_beginning(tmp_path: Path) -> None:
    disk, (tokens, data) = DiskStates(tmp_path, 100_000, KEY), state(1)
    assert add(disk, tokens[:60], data)
    assert add(disk, tokens, data)
    assert not add(disk, tokens[:80], data)
    assert len(list(tmp_path.iterdir())) == 1


def test_foreign_and_damaged_files_are_removed_with_one_line_without_their_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, other = state(1), state(2)
    add(DiskStates(tmp_path, 100_000, KEY), *good)
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    add(DiskStates(tmp_path / "other", 100_000, b"o" * 16), *other)
    next((tmp_path / "other").iterdir()).rename(tmp_path / "other-model.kv")
    (tmp_path / "other").rmdir()
    (tmp_path / "empty.kv").touch()
    (tmp_path / "short.kv").write_bytes(whole[:-1])
    (tmp_path / "no-kv.kv").write_bytes(b"GGUF" + whole[4:])
    (tmp_path / "half.kv-part").write_bytes(whole[:500])
    (tmp_path / "note.txt").write_text("mine")

    disk = DiskStates(tmp_path, 100_000, KEY)
    assert {each.name for each in tmp_path.iterdir()} == {path.name, "note.txt"}
    assert len(caplog.records) == 1
    assert ".kv" not in caplog.text
    found = held(disk, good[0])
    assert found is not None
    assert np.array_equal(found, good[1])


def test_folder_that_cannot_be_written_to_is_one_line_and_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    disk = DiskStates(tmp_path / "file" / "kv", 100_000, KEY)
    assert not add(disk, *state(1))
    assert disk.best(len) is None
    assert len(caplog.records) == 1
