"""What becomes of conversations that nobody is having: out of the way of those that are had, and never lost."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from models.llama.context import Context, Model
from models.llama.disk import DiskStates, Tokens
from models.llama.native import lib
from models.llama.settings import LlamaSettings
from models.llama.slots import Slot, SlotPool

LENGTH = 50


@pytest.fixture(scope="module")
def context(smollm2: Path) -> Iterator[Context]:
    model = Model(str(smollm2), repack=False, on_progress=lambda _: True)
    settings = LlamaSettings(
        path=str(smollm2), name="m", slots=3, cache_tokens=512, batch=64, ubatch=64, threads=1, threads_batch=1
    )
    context = Context(model, settings)
    yield context
    context.close()
    model.close()


def prompt(number: int) -> Tokens:
    return np.random.default_rng(number).integers(1000, 2000, LENGTH, np.int32)


def acquired(pool: SlotPool, tokens: Tokens) -> Slot:
    slot = pool.acquire(tokens, len(tokens) + 4)
    assert slot is not None
    return slot


def compute(context: Context, slot: Slot, tokens: Tokens) -> None:
    """The rest of `tokens`, a batch after the other."""
    while len(rest := tokens[slot.length :][:64]):
        context.clear_batch()
        context.add(rest, slot.length, slot.index, output=True)
        assert context.decode() == 0
        slot.extend(rest)


def serve(pool: SlotPool, context: Context, tokens: Tokens) -> tuple[Slot, int]:
    """Have a request computed; its slot, and how many tokens were there already."""
    slot = acquired(pool, tokens)
    cached = slot.length
    compute(context, slot, tokens)
    return slot, cached


def last_position(context: Context, slot: Slot) -> int:
    return int(lib.llama_memory_seq_pos_max(context._memory, slot.index))


def pool_of(context: Context, *, saved_bytes: int, idle_bytes: int, disk: DiskStates | None = None) -> SlotPool:
    context.forget()
    return SlotPool(context, 3, 256, saved_bytes=saved_bytes, idle_bytes=idle_bytes, rewinds=True, disk=disk)


def test_idle_conversations_beyond_their_share_leave_the_context_and_come_back_whole(context: Context) -> None:
    pool = pool_of(context, saved_bytes=1 << 30, idle_bytes=0)
    first, _ = serve(pool, context, prompt(1))
    one = context.state_size(first.index)
    pool.release(first)
    second, _ = serve(pool, context, prompt(2))
    assert first.length == 0
    assert last_position(context, first) == -1  # a step reads every cell up to the highest in use: it is free again
    assert last_position(context, second) == LENGTH - 1
    pool.release(second)
    back, cached = serve(pool, context, prompt(1))
    assert cached == LENGTH - 1
    assert np.array_equal(back.held, prompt(1))

    pool = pool_of(context, saved_bytes=1 << 30, idle_bytes=one)
    slots = []
    for number in (1, 2, 3):
        slots.append(serve(pool, context, prompt(number))[0])
        pool.release(slots[-1])
    assert [slot.length for slot in slots] == [0, LENGTH, LENGTH]  # the oldest left, another may stay


def test_idle_conversations_stay_where_memory_for_them_is_spent(context: Context) -> None:
    pool = pool_of(context, saved_bytes=1000, idle_bytes=0)
    first, _ = serve(pool, context, prompt(1))
    pool.release(first)
    serve(pool, context, prompt(2))
    assert first.length == LENGTH
    assert last_position(context, first) == LENGTH - 1
    assert serve(pool, context, prompt(1))[1] == LENGTH - 1


def test_conversation_that_another_waits_for_is_not_put_aside(context: Context) -> None:
    pool = pool_of(context, saved_bytes=1 << 30, idle_bytes=0)
    leader = acquired(pool, prompt(1))
    follower = acquired(pool, prompt(1))
    assert not pool.follow(follower)
    compute(context, leader, prompt(1))
    pool.release(leader)
    acquired(pool, prompt(2))
    assert leader.length == LENGTH
    assert pool.follow(follower)
    assert follower.length == LENGTH - 1


def test_requests_never_wait_for_each_other_when_a_third_takes_the_slot_that_one_of_them_waited_for(
    context: Context,
) -> None:
    pool = pool_of(context, saved_bytes=1 << 30, idle_bytes=1 << 30)
    alike = np.concatenate([prompt(1), prompt(2)])  # of which the first request shares the beginning alone
    first_prompt = np.concatenate([prompt(1), prompt(3)[:10]])
    waiting_prompt, third_prompt = np.concatenate([alike, prompt(4)]), np.concatenate([alike, prompt(5)])

    first, waiting = acquired(pool, first_prompt), acquired(pool, waiting_prompt)
    assert not pool.follow(waiting)
    compute(context, first, first_prompt)
    pool.release(first)
    third = acquired(pool, third_prompt)
    assert third is first

    assert pool.follow(waiting)
    assert np.array_equal(waiting.held, prompt(1))  # what it had waited for, though the slot serves another by now
    assert last_position(context, waiting) == LENGTH - 1
    assert not pool.follow(third)
    compute(context, waiting, waiting_prompt)
    assert pool.follow(third)
    assert np.array_equal(third.held, alike)


def test_a_rest_writes_the_latest_conversations_that_the_disk_has_room_for_and_each_once(
    context: Context, tmp_path: Path
) -> None:
    pool = pool_of(context, saved_bytes=1 << 30, idle_bytes=1 << 30)
    slot, _ = serve(pool, context, prompt(1))
    room = 2 * (context.state_size(slot.index) + 1000)
    disk = DiskStates(tmp_path, room, b"k" * 16)
    pool = pool_of(context, saved_bytes=1 << 30, idle_bytes=0, disk=disk)

    for number in range(1, 6):
        pool.release(serve(pool, context, prompt(number))[0])
    assert writes_in_a_rest(pool) == 2
    assert on_disk(tmp_path, room, [prompt(number) for number in range(1, 6)]) == [False, False, False, True, True]

    pool.release(serve(pool, context, prompt(6))[0])
    assert writes_in_a_rest(pool) == 1
    assert on_disk(tmp_path, room, [prompt(number) for number in range(4, 7)]) == [False, True, True]

    # One that was used again, though unchanged, is as late as any.
    pool.release(serve(pool, context, prompt(5))[0])
    pool.release(serve(pool, context, prompt(7))[0])
    assert writes_in_a_rest(pool) <= 2
    assert on_disk(tmp_path, room, [prompt(number) for number in range(5, 8)]) == [True, False, True]


def writes_in_a_rest(pool: SlotPool) -> int:
    for writes in range(20):
        if not pool.keep_next():
            return writes
    raise AssertionError("it writes for ever")


def on_disk(folder: Path, room: int, prompts: list[Tokens]) -> list[bool]:
    found = [state.tokens for state in DiskStates(folder, room, b"k" * 16)._kept]
    return [any(np.array_equal(tokens, other) for other in found) for tokens in prompts]
