"""What becomes of conversations that nobody is having: out of the way of those that are had, and never lost."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from models.llama.context import Context, Model
from models.llama.native import lib
from models.llama.settings import LlamaSettings
from models.llama.slots import Slot, SlotPool, Tokens

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


def serve(pool: SlotPool, context: Context, tokens: Tokens) -> tuple[Slot, int]:
    """Have a request computed; its slot, and how many tokens were there already."""
    slot = pool.acquire(tokens, LENGTH + 4)
    assert slot is not None
    cached, rest = slot.length, tokens[slot.length :]
    context.clear_batch()
    context.add(rest, slot.length, slot.index, output=True)
    assert context.decode() == 0
    slot.extend(rest)
    return slot, cached


def last_position(context: Context, slot: Slot) -> int:
    return int(lib.llama_memory_seq_pos_max(context._memory, slot.index))


def pool_of(context: Context, *, saved_bytes: int, idle_bytes: int) -> SlotPool:
    context.forget()
    return SlotPool(context, 3, 256, saved_bytes=saved_bytes, idle_bytes=idle_bytes, rewinds=True)


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
    leader = pool.acquire(prompt(1), LENGTH + 4)
    assert leader is not None
    follower = pool.acquire(prompt(1), LENGTH + 4)
    assert follower is not None
    assert not pool.follow(follower)
    context.clear_batch()
    context.add(prompt(1), 0, leader.index, output=True)
    assert context.decode() == 0
    leader.extend(prompt(1))
    pool.release(leader)
    assert pool.acquire(prompt(2), LENGTH + 4) is not None
    assert leader.length == LENGTH
    assert pool.follow(follower)
    assert follower.length == LENGTH - 1
