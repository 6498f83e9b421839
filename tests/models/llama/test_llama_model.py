"""What a client may rely on when it asks the local model; the engine and the model are the real ones."""

import asyncio
import dataclasses
import itertools
import logging
import math
import threading
from pathlib import Path
from typing import Any

import pytest

from models.interface import ChatRequest, Failure, FailureCode, Finish, Progress, TextDelta, Usage
from models.llama.model import LlamaModel
from models.llama.settings import LlamaSettings
from tests.models.llama.conftest import Answer, ask, assert_same

pytestmark = pytest.mark.asyncio(loop_scope="session")

STORY = "Tell me a story about a fox."
LIKELY = {"logprobs": True, "top_logprobs": 10, "max_tokens": 48}
LONG_PROMPT = "word " * 6000
PATIENCE = 60.0
"""Seconds that only a hang can reach."""


async def test_answer_streams_in_pieces_and_ends_with_finish_then_usage(model: LlamaModel) -> None:
    answer = await ask(model, STORY)
    assert len(answer.all(TextDelta)) > 5
    assert isinstance(answer.events[-2], Finish)
    assert isinstance(answer.events[-1], Usage)
    assert answer.finish.reason == "length"
    assert answer.usage.completion_tokens == 24
    assert answer.usage.prompt_tokens == await model.count_tokens(
        ChatRequest(messages=[{"role": "user", "content": STORY}])
    )


async def test_answer_that_the_model_ends_itself_finishes_with_stop(model: LlamaModel) -> None:
    answer = await ask(model, "Hi", max_tokens=200)
    assert answer.finish.reason == "stop"
    assert "<|im_end|>" not in answer.text()


async def test_same_seed_gives_the_same_answer_and_another_seed_another(model: LlamaModel) -> None:
    await ask(model, STORY, max_tokens=1)  # The prompt comes from the cache for all of them.
    first, same, other = [(await ask(model, STORY, temperature=1.2, seed=seed)).text() for seed in (7, 7, 8)]
    assert first == same
    assert first != other


async def test_stop_string_across_tokens_is_never_sent_not_even_in_part(model: LlamaModel) -> None:
    whole = (await ask(model, STORY, max_tokens=40)).text()
    start = len(whole) // 2
    stop = whole[start - 3 : start + 6]
    answer = await ask(model, STORY, max_tokens=40, stop=[stop, "never said"])
    assert answer.text() == whole[: whole.index(stop)]
    assert answer.finish.reason == "stop"


async def test_text_pieces_never_split_a_character(model: LlamaModel) -> None:
    said = "日本語 😀 🦊 🎉 żółć"  # most of these characters are several tokens each
    schema = {"type": "json_schema", "json_schema": {"name": "echo", "schema": {"const": said}}}
    answer = await ask(model, f"Repeat exactly: {said}", max_tokens=100, response_format=schema)
    pieces = [event.text for event in answer.all(TextDelta)]
    assert "".join(pieces) == f'"{said}"'
    assert len(pieces) > 5
    assert not any("\ufffd" in piece for piece in pieces)


async def test_logit_bias_forbids_a_token(model: LlamaModel) -> None:
    plain = await ask(model, STORY, logprobs=True, max_tokens=1)
    first = plain.text()
    token_ids = [str(token) for token in await _ids(model, first)]
    biased = await ask(model, STORY, logit_bias=dict.fromkeys(token_ids, -100.0), max_tokens=1)
    assert biased.text() != first


async def test_penalties_break_a_loop(model: LlamaModel) -> None:
    request = {"content": "Say yes.", "max_tokens": 150, "logit_bias": {"2": -100.0}}  # may not end
    plain, penalized = [
        (await ask(model, **request, frequency_penalty=penalty, presence_penalty=penalty)).text().split()
        for penalty in (0.0, 1.5)
    ]
    assert len(set(penalized)) / len(penalized) > len(set(plain)) / len(plain)


async def test_logprobs_are_those_of_the_unconstrained_distribution(model: LlamaModel) -> None:
    answer = await ask(model, STORY, logprobs=True, top_logprobs=3, max_tokens=10)
    assert len(answer.logprobs) == 10
    assert b"".join(bytes(entry["bytes"]) for entry in answer.logprobs).decode() == answer.text()
    for entry in answer.logprobs:
        best = entry["top_logprobs"]
        assert len(best) == 3
        assert best[0]["token"] == entry["token"]  # greedy takes the likeliest
        assert math.isclose(best[0]["logprob"], entry["logprob"])
        assert 0 >= best[0]["logprob"] >= best[1]["logprob"] >= best[2]["logprob"]


async def test_confidence_comes_with_each_token_and_is_a_distributions(model: LlamaModel) -> None:
    answer = await ask(model, STORY, logprobs=True, top_logprobs=2, max_tokens=12)
    assert len(answer.confidences) == len(answer.logprobs)
    for confidence, entry in zip(answer.confidences, answer.logprobs, strict=True):
        first, second = (math.exp(best["logprob"]) for best in entry["top_logprobs"])
        assert math.isclose(confidence.margin, first - second, abs_tol=1e-4)
        assert 0 <= confidence.entropy <= math.log(49152)
        assert confidence.entropy >= -math.log(first) - 1e-4  # never below the surprise of the likeliest token


async def test_n_choices_come_from_one_prompt_and_differ(model: LlamaModel) -> None:
    answer = await ask(model, STORY, n=3, temperature=1.0, seed=3)
    assert {event.choice for event in answer.all(Finish)} == {0, 1, 2}
    assert len({answer.text(choice) for choice in range(3)}) == 3
    assert answer.usage.completion_tokens == 3 * 24


async def test_second_turn_takes_the_first_from_the_cache(model: LlamaModel) -> None:
    first = await ask(model, "Name three rivers of Europe, please.")
    turns = [
        {"role": "user", "content": "Name three rivers of Europe, please."},
        {"role": "assistant", "content": first.text()},
        {"role": "user", "content": "And three of Asia."},
    ]
    second = await ask(model, turns)
    assert second.usage.cached_tokens >= first.usage.prompt_tokens


async def test_simultaneous_requests_all_get_their_own_answer(model: LlamaModel) -> None:
    prompts = [f"Write one sentence about the number {number}." for number in range(8)]
    alone = [await ask(model, prompt, **LIKELY) for prompt in prompts]
    together = await asyncio.gather(*(ask(model, prompt, **LIKELY) for prompt in prompts))
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)


class Steps:
    """The engine's steps from now on; the one with the number `held` waits until it is let go."""

    def __init__(self, model: LlamaModel, monkeypatch: pytest.MonkeyPatch, held: int) -> None:
        self.results: list[int] = []
        """What llama.cpp answered to each."""
        self.let_go = threading.Event()
        self._held = held
        self._reached = threading.Event()
        context = model._ready().engine._context
        self._decode = context.decode
        monkeypatch.setattr(context, "decode", self._step)

    async def reached(self) -> bool:
        """Whether the engine has come to the step that is held, and so to no further one."""
        return await asyncio.to_thread(self._reached.wait, PATIENCE)

    def _step(self, *, hidden: bool = False) -> int:
        if len(self.results) == self._held:
            self._reached.set()
            self.let_go.wait(PATIENCE)
        self.results.append(self._decode(hidden=hidden))
        return self.results[-1]


async def test_closing_the_answer_stops_a_running_prefill(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    await ask(model, "Hi", max_tokens=1)  # loads the model
    steps = Steps(model, monkeypatch, held=2)
    # A beginning of its own, so that no test before has left a part of it in the cache.
    messages = [{"role": "user", "content": f"How many words are these? {LONG_PROMPT}"}]
    events = model.chat(ChatRequest(messages=messages, max_tokens=4))

    async def first_word() -> None:
        async for event in events:
            if isinstance(event, TextDelta):
                return

    waiting = asyncio.create_task(first_word())
    assert await steps.reached()
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait([waiting])
    await events.aclose()
    steps.let_go.set()
    await _until(model, running=0)
    assert steps.results == [0, 0, 2]  # The step under way was broken off, of the nine or more that were left.
    assert (await ask(model, "Hi", max_tokens=1)).finish.reason == "length"


async def test_cancelling_one_prompt_does_not_change_an_answer_beside_it(model: LlamaModel) -> None:
    alone = await ask(model, STORY, **LIKELY)
    beside = asyncio.create_task(ask(model, STORY, **LIKELY))
    for _ in range(3):
        events = model.chat(ChatRequest(messages=[{"role": "user", "content": LONG_PROMPT}], max_tokens=4))
        waiting = asyncio.create_task(anext(events))
        await asyncio.sleep(0.15)
        waiting.cancel()
        await asyncio.wait([waiting])
        await events.aclose()
    assert_same(alone, await beside)


async def test_prompt_that_does_not_fit_is_refused_with_the_numbers(settings: LlamaSettings) -> None:
    model = LlamaModel(settings)
    too_long = await ask(model, LONG_PROMPT)
    assert too_long.failure.code is FailureCode.CONTEXT_LENGTH
    assert "2048" in too_long.failure.message
    assert "603" in too_long.failure.message  # the prompt's tokens: its words and the template's frame
    with_answer = await ask(model, "Hi", max_tokens=2040)
    assert with_answer.failure.code is FailureCode.CONTEXT_LENGTH
    assert "2040" in with_answer.failure.message
    await model.close()


@pytest.mark.parametrize("flood", ["a" * 10_000_000, "<|im_end|>" * 90_000])
async def test_flood_is_refused_before_an_answer_beside_it_is_done(model: LlamaModel, flood: str) -> None:
    beside = asyncio.create_task(ask(model, STORY, max_tokens=100))
    flooded = await ask(model, flood)
    assert flooded.failure.code is FailureCode.CONTEXT_LENGTH
    assert not beside.done()
    assert (await beside).usage.completion_tokens == 100


async def test_answer_without_max_tokens_may_fill_the_rest_of_the_context(settings: LlamaSettings) -> None:
    model = LlamaModel(dataclasses.replace(settings, context_length=256))
    answer = await ask(model, "Tell me a very long story.", max_tokens=None, logit_bias={"2": -100.0})
    assert answer.finish.reason == "length"
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == 256
    await model.close()


async def test_full_queue_says_busy_and_when_to_come_back(
    settings: LlamaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LlamaModel(dataclasses.replace(settings, slots=1, queue_limit=2))
    await ask(model, "Hi", max_tokens=1)
    steps = Steps(model, monkeypatch, held=0)
    asked = [asyncio.create_task(ask(model, f"{STORY} 0"))]
    assert await steps.reached()  # The slot is taken, and stays so while the others come.
    asked += [asyncio.create_task(ask(model, f"{STORY} {number}")) for number in range(1, 6)]
    for answered in itertools.islice(asyncio.as_completed(asked), 3):
        await answered
    steps.let_go.set()
    answers = await asyncio.gather(*asked)
    refused = [answer for answer in answers if answer.all(Failure)]
    assert len(refused) == 3
    assert all(answer.failure.code is FailureCode.BUSY and answer.failure.retry_after >= 1 for answer in refused)
    served = [answer for answer in answers if not answer.all(Failure)]
    assert all(answer.finish.reason == "length" for answer in served)
    assert any(event.stage == "queued" for answer in served for event in answer.all(Progress))
    await model.close()


async def test_deadline_ends_an_answer_with_a_timeout_and_frees_the_engine(settings: LlamaSettings) -> None:
    model = LlamaModel(settings)
    await ask(model, "Hi", max_tokens=1)  # loads the model, for which the deadline would be too short
    model._settings = dataclasses.replace(settings, timeout=1.0)
    late = await ask(model, STORY, max_tokens=1500, logit_bias={"2": -100.0})
    assert late.events[-1] == late.failure
    assert late.failure.code is FailureCode.TIMEOUT
    model._settings = settings
    assert (await ask(model, "Hi", max_tokens=2)).finish.reason == "length"
    await model.close()


async def test_request_while_the_model_loads_hears_of_it_and_is_then_answered(
    settings: LlamaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, load = threading.Event(), LlamaModel._load
    monkeypatch.setattr(LlamaModel, "_load", lambda self: heard.wait(PATIENCE) and load(self))
    model = LlamaModel(settings)
    assert (await model.status()).state == "loading"
    answer = Answer()
    async for event in model.chat(ChatRequest(messages=[{"role": "user", "content": "Hi"}], max_tokens=24)):
        heard.set()
        answer.events.append(event)
    assert isinstance(answer.events[0], Progress)
    assert answer.events[0].stage == "loading"
    assert answer.usage.completion_tokens > 0
    assert (await model.status()).state == "ready"
    assert (await model.status()).context_length == 2048
    await model.close()


async def test_idle_model_is_freed_and_comes_back_with_the_next_request(settings: LlamaSettings) -> None:
    model = LlamaModel(dataclasses.replace(settings, idle_unload=2))
    before = (await ask(model, STORY)).text()
    await _until(model, state="unloaded")
    assert (await ask(model, STORY)).text() == before
    await model.close()


async def test_closing_the_model_ends_running_answers_with_a_reason(settings: LlamaSettings) -> None:
    model = LlamaModel(settings)
    await ask(model, "Hi", max_tokens=1)
    running = asyncio.create_task(ask(model, LONG_PROMPT[:9000], max_tokens=64, logit_bias={"2": -100.0}))
    await _until(model, running=1)
    await model.close()
    assert (await running).failure.code is FailureCode.UNAVAILABLE
    assert (await ask(model, "Hi")).failure.code is FailureCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "not a GGUF"), (b"PK\x03\x04 something else", "not a GGUF"), (None, "cannot be read")],
)
async def test_file_that_is_no_model_is_one_clear_line(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    await _assert_unusable(path, reason)


@pytest.mark.parametrize("length", [24, 5_000, 3_000_000, 50_000_000])
async def test_truncated_file_is_one_clear_line(smollm2: Path, tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.gguf"
    with smollm2.open("rb") as whole, path.open("wb") as part:
        part.write(whole.read(length))
    await _assert_unusable(path, "pull the model again")


async def test_unknown_architecture_is_one_clear_line(smollm2: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    key = b"general.architecture\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00"
    with smollm2.open("rb") as known, path.open("wb") as unknown:
        unknown.write(known.read().replace(key + b"llama", key + b"lemur", 1))
    await _assert_unusable(path, "lemur")


async def test_model_that_arrives_later_is_loaded_by_a_later_request(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.llama.model._TRY_AGAIN_AFTER", 0.3)
    path = tmp_path / "model.gguf"
    model = LlamaModel(LlamaSettings(path=str(path), name="late", context_length=512))
    assert (await ask(model, "Hi")).failure.code is FailureCode.UNAVAILABLE
    path.symlink_to(smollm2)
    await asyncio.sleep(0.4)
    assert (await ask(model, "Hi", max_tokens=2)).usage.completion_tokens == 2
    assert (await model.status()).detail == ""
    await model.close()


async def test_file_larger_than_memory_is_refused_with_numbers_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF")
        file.truncate(1 << 42)  # sparse: 4 TiB that take no space
    await _assert_unusable(path, "GiB")


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_p": 1.5},
        {"n": 0},
        {"n": 1000},
        {"max_tokens": 0},
        {"top_logprobs": 100},
        {"logit_bias": {"not a number": 1.0}},
        {"logit_bias": {"999999999": 1.0}},
        {"logit_bias": {"5": math.nan}},
    ],
)
async def test_parameter_out_of_range_is_a_bad_request_that_says_what_is_allowed(
    model: LlamaModel, fields: dict[str, Any]
) -> None:
    failure = (await ask(model, "Hi", **fields)).failure
    assert failure.code is FailureCode.BAD_REQUEST
    assert next(iter(fields)) in failure.message


async def test_images_are_a_bad_request_not_ignored(model: LlamaModel) -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    failure = (await ask(model, [{"role": "user", "content": parts}])).failure
    assert failure.code is FailureCode.BAD_REQUEST
    assert "image_url" in failure.message


async def test_prompts_never_reach_the_log(model: LlamaModel, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await ask(model, "the secret word is xylophone")
    await ask(model, "xylophone " * 9000)
    assert "xylophone" not in caplog.text


async def _assert_unusable(path: Path, reason: str) -> None:
    model = LlamaModel(LlamaSettings(path=str(path), name="broken"))
    failure = (await ask(model, "Hi")).failure
    assert failure.code is FailureCode.UNAVAILABLE
    assert reason in failure.message
    assert "\n" not in failure.message
    status = await model.status()
    assert status.state == "failed"
    assert reason in status.detail
    await model.close()


async def _until(model: LlamaModel, **wanted: object) -> None:
    """Wait until the model's status has these values."""
    async with asyncio.timeout(PATIENCE):
        while not wanted.items() <= dataclasses.asdict(await model.status()).items():  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.02)


async def _ids(model: LlamaModel, text: str) -> list[int]:
    loaded = model._ready()
    return [int(token) for token in loaded.model.vocabulary.tokenize([(text, False)], add_bos=False)]
