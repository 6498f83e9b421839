"""Many requests at once: nothing lost, nothing mixed, and no prompt computed twice without need."""

import asyncio
import dataclasses
import gc
import json
import random
import threading
from typing import Any

import psutil
import pytest

from models.interface import ChatRequest, Failure, Finish, TextDelta
from models.llama.model import LlamaModel
from models.llama.settings import LlamaSettings
from models.llama.slots import SlotPool
from tests.models.llama.conftest import Answer, ask, assert_same

pytestmark = pytest.mark.asyncio(loop_scope="session")

LIKELY = {"logprobs": True, "top_logprobs": 10}
NUMBER = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}


def long_text(number: int) -> str:
    return f"The quick brown fox jumps over the lazy dog near river number {number}. " * 12


def kinds() -> list[dict[str, Any]]:
    """Requests of every kind, all greedy, so that each has one right answer."""
    plain = [{"content": f"Write one sentence about the number {number}.", "max_tokens": 8} for number in range(10)]
    long = [{"content": long_text(number) + "What is this about?", "max_tokens": 6} for number in range(4)]
    stopped = [{"content": f"Count from {number} to 20.", "max_tokens": 12, "stop": [", "]} for number in range(3)]
    bound = [{"content": f"What is {number} + 1?", "max_tokens": 8, "response_format": NUMBER} for number in range(4)]
    several = [{"content": "Name a colour.", "max_tokens": 5, "n": 2}]
    return [{**LIKELY, **request} for request in [*plain, *long, *stopped, *bound, *several]]


async def test_each_of_200_mixed_requests_with_disconnects_gets_its_own_answer(settings: LlamaSettings) -> None:
    model = LlamaModel(dataclasses.replace(settings, slots=6, queue_limit=300, context_length=1024))
    requests = kinds()
    alone = [await ask(model, **request) for request in requests]
    order = random.Random(5)
    chosen = [order.randrange(len(requests)) for _ in range(200)]
    leaves_after = [order.choice([None, None, None, 0, 1, 3]) for _ in chosen]

    async def one(at: int) -> Answer:
        await asyncio.sleep(order.random())
        request = requests[chosen[at]]
        if leaves_after[at] is None:
            return await ask(model, **request)
        return await ask_and_leave(model, request, after=leaves_after[at])

    answers = await asyncio.gather(*map(one, range(200)))
    stayed = [at for at in range(200) if leaves_after[at] is None]
    assert len(stayed) > 80
    for at in stayed:
        answer, expected = answers[at], alone[chosen[at]]
        assert not answer.all(Failure)
        assert len(answer.all(Finish)) == len(expected.all(Finish))
        if requests[chosen[at]].get("response_format"):
            json.loads(answer.text())
        if len(expected.all(Finish)) == 1:
            assert_same(expected, answer)
    await model.close()


async def ask_and_leave(model: LlamaModel, request: dict[str, Any], *, after: int) -> Answer:
    """Close the stream after so many pieces of text."""
    fields = {key: value for key, value in request.items() if key != "content"}
    messages = [{"role": "user", "content": request["content"]}]
    answer, left = Answer(), after
    events = model.chat(ChatRequest(messages=messages, temperature=0.0, **fields))
    try:
        async with asyncio.timeout(0.05 if after == 0 else None):
            async for event in events:
                answer.events.append(event)
                left -= isinstance(event, TextDelta)
                if left <= 0 < after:
                    break
    except TimeoutError:
        pass
    await events.aclose()
    return answer


async def test_prompts_that_begin_alike_are_computed_once_even_at_the_same_time(settings: LlamaSettings) -> None:
    model = LlamaModel(dataclasses.replace(settings, slots=4))
    system = {"role": "system", "content": long_text(1)}
    chats = [[system, {"role": "user", "content": f"Question {number}?"}] for number in range(4)]
    shared = await model.count_tokens(ChatRequest(messages=[system])) - 10
    answers = await asyncio.gather(*(ask(model, chat, max_tokens=4) for chat in chats))
    cached = sorted(answer.usage.cached_tokens for answer in answers)
    assert cached[0] == 0
    assert cached[1] >= shared
    await model.close()


async def test_conversation_that_lost_its_slot_comes_back_from_memory(settings: LlamaSettings) -> None:
    model = LlamaModel(dataclasses.replace(settings, slots=1))
    first = await ask(model, long_text(1), max_tokens=4)
    for number in range(2, 5):
        await ask(model, f"{number} " + long_text(number), max_tokens=4)
    turns = [
        {"role": "user", "content": long_text(1)},
        {"role": "assistant", "content": first.text()},
        {"role": "user", "content": "Go on."},
    ]
    back = await ask(model, turns, **LIKELY)
    assert back.usage.cached_tokens >= first.usage.prompt_tokens
    await model.close()
    forgetful = LlamaModel(dataclasses.replace(settings, slots=1, saved_bytes=0))
    assert_same(await ask(forgetful, turns, **LIKELY), back)
    await forgetful.close()


async def test_no_memory_is_kept_for_lost_conversations_where_none_is_allowed(settings: LlamaSettings) -> None:
    model = LlamaModel(dataclasses.replace(settings, slots=1, saved_bytes=0))
    await ask(model, long_text(1), max_tokens=4)
    await ask(model, "Something else. " + long_text(2), max_tokens=4)
    assert (await ask(model, long_text(1), max_tokens=4)).usage.cached_tokens < 60
    await model.close()


async def test_requests_larger_together_than_the_cache_wait_instead_of_failing(settings: LlamaSettings) -> None:
    model = LlamaModel(dataclasses.replace(settings, slots=3, context_length=384, cache_tokens=384))
    answers = await asyncio.gather(*(ask(model, long_text(number), max_tokens=100) for number in range(3)))
    assert all(answer.finish.reason in ("stop", "length") for answer in answers)
    assert not any(answer.all(Failure) for answer in answers)
    await model.close()


async def test_a_request_counts_as_waiting_while_a_slot_is_made_for_it_and_may_leave_meanwhile(
    settings: LlamaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    making, go_on, acquire = threading.Event(), threading.Event(), SlotPool.acquire

    def slowly(self: SlotPool, *arguments: Any) -> Any:
        making.set()
        go_on.wait(60)
        return acquire(self, *arguments)

    monkeypatch.setattr(SlotPool, "acquire", slowly)
    model = LlamaModel(dataclasses.replace(settings, slots=1))
    asking = asyncio.create_task(ask(model, "Hello", max_tokens=4))
    await asyncio.to_thread(making.wait, 60)
    status = await model.status()
    assert (status.running, status.waiting) == (0, 1)

    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    go_on.set()
    assert (await ask(model, "Hello", max_tokens=4)).finish  # the only slot is free again
    await model.close()


async def test_quantized_cache_answers_like_the_full_one(settings: LlamaSettings) -> None:
    full, quantized = [LlamaModel(dataclasses.replace(settings, kv_type=kind)) for kind in ("f16", "q8_0")]
    question = "What is the capital of Portugal?"
    first, second = [await ask(model, question, **LIKELY, max_tokens=4) for model in (full, quantized)]
    assert first.logprobs[0]["token"] in {top["token"] for top in second.logprobs[0]["top_logprobs"]}
    await full.close()
    await quantized.close()


async def test_memory_does_not_grow_with_requests(settings: LlamaSettings) -> None:
    model = LlamaModel(dataclasses.replace(settings, context_length=512, saved_bytes=0))

    async def burst(count: int) -> int:
        for start in range(0, count, 5):
            batch = range(start, start + 5)
            await asyncio.gather(
                *(ask(model, f"{number} is", max_tokens=2, response_format=NUMBER, **LIKELY) for number in batch)
            )
        gc.collect()
        return int(psutil.Process().memory_info().rss)

    before = await burst(40)
    assert await burst(120) - before < 8 * 2**20
    await model.close()
