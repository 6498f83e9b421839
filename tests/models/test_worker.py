"""The boundary between gateway and workers: many requests over one socket, and no request that hangs."""

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

import pytest

from models.client import WorkerClient, WorkerGoneError
from models.frames import MAX_FRAME
from models.interface import (
    ChatRequest,
    Confidence,
    Event,
    Failure,
    FailureCode,
    Finish,
    Labelled,
    ModelStatus,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from models.llama.errors import RefusedError
from models.worker import serve


class Scripted:
    """A model that does what the prompt says."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.closed = False
        self.begun, self.ended = asyncio.Event(), asyncio.Event()

    async def chat(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        prompt = request.messages[0]["content"]
        try:
            match prompt.split():
                case ["wait", *_]:
                    yield TextDelta("waiting")
                    await asyncio.Event().wait()
                case ["raise", *_]:
                    raise RuntimeError(prompt)
                case ["begin", "and", "raise"]:
                    yield TextDelta("begun")
                    raise RuntimeError(prompt)
                case ["stop", *_]:
                    yield TextDelta("and")
                case words:
                    for word in words:
                        await asyncio.sleep(0)
                        yield TextDelta(word, logprobs=[{"token": word, "logprob": -0.5}])
                    yield ToolCallDelta(0, "{}", id="call_1", name="f")
                    yield Usage(len(words), len(words))
                    yield Finish("stop")
        finally:
            self.cancelled.append(prompt)
            self.ended.set()

    async def count_tokens(self, request: ChatRequest) -> int:
        if not request.messages[0]["content"]:
            raise ValueError("an empty prompt has no tokens")
        if request.messages[0]["content"] == "no model":
            raise RefusedError(FailureCode.UNAVAILABLE, "the model cannot be loaded")
        if request.messages[0]["content"].startswith("raise"):
            raise RuntimeError(request.messages[0]["content"])
        return len(request.messages[0]["content"].split())

    async def label_logprobs(self, text: str, labels: Sequence[str]) -> Labelled:
        if text == "wait":
            self.begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.ended.set()
        if not text:
            raise ValueError("there is nothing to judge")
        return Labelled([-float(len(label)) for label in labels], text)

    async def status(self) -> ModelStatus:
        return ModelStatus(name="scripted", state="ready", context_length=7, tools=True)

    async def close(self) -> None:
        self.closed = True


def asking(prompt: str) -> ChatRequest:
    return ChatRequest(messages=[{"role": "user", "content": prompt}])


@asynccontextmanager
async def connected(model: Scripted) -> AsyncIterator[tuple[WorkerClient, "asyncio.Task[None]"]]:
    near, far = socket.socketpair()
    serving = asyncio.create_task(serve(far, model))
    client = await WorkerClient.over("local", near)
    yield client, serving
    await client.close()
    await asyncio.wait([serving], timeout=60)
    assert model.closed


async def answer(client: WorkerClient, prompt: str) -> list[Event]:
    return [event async for event in client.chat(asking(prompt))]


async def test_every_kind_of_event_survives_the_way() -> None:
    async with connected(Scripted()) as (client, _):
        assert await answer(client, "Olá \U0001f44b") == [
            TextDelta("Olá", logprobs=[{"token": "Olá", "logprob": -0.5}]),
            TextDelta("\U0001f44b", logprobs=[{"token": "\U0001f44b", "logprob": -0.5}]),
            ToolCallDelta(0, "{}", id="call_1", name="f"),
            Usage(2, 2),
            Finish("stop"),
        ]


async def test_answers_given_at_once_do_not_mix() -> None:
    async with connected(Scripted()) as (client, _):
        prompts = [f"{number} " * 50 for number in range(20)]
        answers = await asyncio.gather(*(answer(client, prompt) for prompt in prompts))

    for prompt, events in zip(prompts, answers, strict=True):
        assert [event.text for event in events if isinstance(event, TextDelta)] == prompt.split()


async def test_closing_an_answer_cancels_it_in_the_worker_and_no_other() -> None:
    model = Scripted()
    async with connected(model) as (client, _):
        async with aclosing(client.chat(asking("wait here"))) as events:
            await anext(events)
            assert model.cancelled == []
        await asyncio.wait_for(model.ended.wait(), 60)
        assert model.cancelled == ["wait here"]
        assert await answer(client, "still here")


async def test_label_probabilities_and_refusals_survive_the_way() -> None:
    async with connected(Scripted()) as (client, _):
        assert await client.label_logprobs("text", ["a", "bc"]) == Labelled([-1.0, -2.0], "text")
        with pytest.raises(ValueError, match="nothing to judge"):
            await client.label_logprobs("", ["a"])


async def test_giving_up_on_label_probabilities_stops_the_work_on_them() -> None:
    model = Scripted()
    async with connected(model) as (client, _):
        asking = asyncio.create_task(client.label_logprobs("wait", ["a"]))
        async with asyncio.timeout(60):
            await model.begun.wait()
            asking.cancel()
            await model.ended.wait()


async def test_a_model_without_label_probabilities_says_so() -> None:
    class Wordless(Scripted):
        label_logprobs = None  # type: ignore[assignment]

    async with connected(Wordless()) as (client, _):
        with pytest.raises(ValueError, match="does not tell"):
            await client.label_logprobs("text", ["a"])


async def test_a_worker_that_dies_ends_every_open_request_with_a_failure() -> None:
    async with connected(Scripted()) as (client, serving):
        open_requests = [asyncio.create_task(answer(client, f"wait {number}")) for number in range(5)]
        await asyncio.sleep(0.05)
        serving.cancel()
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*open_requests)

        for events in answers:
            assert isinstance(events[-1], Failure)
            assert events[-1].code is FailureCode.UNAVAILABLE
        with pytest.raises(WorkerGoneError):
            await client.status()
        assert [type(event) for event in await answer(client, "too late")] == [Failure]


async def test_a_model_that_raises_costs_its_request_and_quotes_no_prompt(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with connected(Scripted()) as (client, _):
            (failure,) = await answer(client, "raise my secret")
            assert await answer(client, "next one")

    assert isinstance(failure, Failure)
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text + failure.message


@pytest.mark.parametrize("prompt", ["raise at once", "begin and raise"])
async def test_a_request_whose_model_raises_counts_as_one_that_a_provider_may_charge_for(prompt: str) -> None:
    async with connected(Scripted()) as (client, _):
        failure = (await answer(client, prompt))[-1]

    assert isinstance(failure, Failure)
    assert failure.lost == 1


async def test_a_model_that_stops_without_finishing_is_no_whole_answer() -> None:
    async with connected(Scripted()) as (client, _):
        assert isinstance((await answer(client, "stop here"))[-1], Failure)


async def test_counts_and_status_come_back_and_a_count_can_be_refused_or_not_be_had_now() -> None:
    async with connected(Scripted()) as (client, _):
        assert await client.count_tokens(asking("three words here")) == 3
        assert (await client.status()).context_length == 7
        with pytest.raises(ValueError, match="empty prompt"):
            await client.count_tokens(asking(""))
        for prompt, why in (("no model", "cannot be loaded"), ("raise my secret", "see the log")):
            with pytest.raises(WorkerGoneError, match=why):
                await client.count_tokens(asking(prompt))


async def test_a_request_too_large_for_a_frame_is_refused_and_the_connection_lives() -> None:
    async with connected(Scripted()) as (client, _):
        (failure,) = await answer(client, "x" * (MAX_FRAME + 1))
        assert isinstance(failure, Failure)
        assert failure.code is FailureCode.BAD_REQUEST
        assert await answer(client, "small")


async def test_a_worker_that_sends_what_cannot_be_read_is_hung_up_on_so_that_it_ends() -> None:
    class Immeasurable(Scripted):
        async def chat(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
            yield Confidence(float("nan"), 0.0)
            await asyncio.Event().wait()

    async with connected(Immeasurable()) as (client, serving), asyncio.timeout(60):
        open_request = asyncio.create_task(client.label_logprobs("wait", ["a"]))
        (failure,) = await answer(client, "hello")
        assert isinstance(failure, Failure)
        with pytest.raises(WorkerGoneError):
            await open_request
        await serving
        assert not client.alive
        assert [type(event) for event in await answer(client, "too late")] == [Failure]


async def test_bytes_that_are_no_frame_end_the_connection_and_not_the_test_run() -> None:
    near, far = socket.socketpair()
    client = await WorkerClient.over("local", near)
    far.sendall((5).to_bytes(4, "big") + b"hello")
    (failure,) = await answer(client, "hello")

    assert isinstance(failure, Failure)
    assert not client.alive
    await client.close()
    far.close()
