"""Prompts that go up: to emulators of the providers' own APIs, and back to this machine where the cloud fails."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conftest import Require
from tests.daemon.conftest import Escalating
from tests.daemon.harness import Daemon, client, wait_until
from tests.emulators.servers import KEY, Emulator
from tests.emulators.upstream import Call, Upstream, chunk

HELLO: Any = [{"role": "user", "content": "hello"}]
STORY: Any = [{"role": "user", "content": "Tell a very long story about a ship."}]


def test_an_easy_prompt_stays_and_starts_no_cloud_process(shared: Escalating, aimock: Emulator) -> None:
    # The first of those that share this daemon: the next ones have one started.
    daemon = shared(aimock.base_url("openai"))
    answer = client(daemon).chat.completions.create(model="router-mf-1", messages=HELLO, max_tokens=4)

    assert answer.model == "smollm2-135m"
    assert daemon.children("cloud") == []


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_hard_prompt_is_answered_by_the_provider(shared: Escalating, aimock: Emulator, provider: str) -> None:
    daemon = shared(aimock.base_url(provider), provider)
    answer = client(daemon).chat.completions.with_raw_response.create(model="router-mf-0", messages=HELLO)
    completion = answer.parse()

    assert completion.choices[0].message.content == "Hello from the emulator."
    assert completion.model == ("claude-3-opus" if provider == "anthropic" else "gpt-4")
    assert answer.headers["x-upcall-route"] == "cloud"
    assert answer.headers["x-upcall-reason"] == "above_threshold"
    assert "x-upcall-degraded" not in answer.headers


def test_a_cloud_answer_streams(shared: Escalating, aimock: Emulator) -> None:
    daemon = shared(aimock.base_url("openai"))
    stream = client(daemon).chat.completions.create(
        model="cloud", messages=[{"role": "user", "content": "count slowly"}], stream=True
    )
    chunks = [chunk for chunk in stream if chunk.choices]

    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two three four five six seven eight"
    )
    assert len(chunks) > 3
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_tool_calls_come_back_from_the_cloud(shared: Escalating, aimock: Emulator) -> None:
    daemon = shared(aimock.base_url("openai"))
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    answer = client(daemon).chat.completions.with_raw_response.create(
        model="cloud",
        messages=[{"role": "user", "content": "the weather in two cities"}],
        tools=[{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}],
        parallel_tool_calls=True,
    )
    calls = answer.parse().choices[0].message.tool_calls

    assert calls
    assert [call.function.arguments for call in calls] == ['{"city":"Oslo"}', '{"city":"Bergen"}']
    assert answer.parse().choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    "tools",
    [
        {"tools": [{"type": "custom", "custom": {"name": "f"}}]},
        {"tools": [{"type": "web_search"}]},
        {"functions": [{"name": "f", "parameters": {}}]},
    ],
)
async def test_tools_that_no_local_model_can_be_shown_go_up_as_they_are(
    shared: Escalating, upstream: Upstream, tools: dict[str, Any]
) -> None:
    daemon = shared(upstream.base_url("openai"))
    asked = client(daemon).chat.completions.with_raw_response.create
    answered = await asyncio.to_thread(asked, model="auto", messages=HELLO, extra_body=tools)

    assert answered.headers["x-upcall-reason"] == "tools"
    assert upstream.calls[0].body.items() >= tools.items()


async def test_what_a_dialect_says_beside_the_words_reaches_its_client_whole_and_streamed(
    shared: Escalating, upstream: Upstream
) -> None:
    signed = {"google": {"thought_signature": "c2ln"}}
    called = {"index": 0, "id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}

    async def think(call: Call) -> None:
        thoughts = chunk({"reasoning_content": "H"}), chunk({"reasoning_content": "m."})
        calls = chunk({"tool_calls": [{**called, "extra_content": signed}]})
        await call.send(*thoughts, chunk({"content": "Four."}), calls, chunk({}, finish_reason="tool_calls"), "[DONE]")

    upstream.script = think
    asking = openai.AsyncOpenAI(base_url=f"{shared(upstream.base_url('openai')).url}/v1", api_key="none")
    asked: Any = {"model": "cloud", "messages": HELLO}
    whole = (await asking.chat.completions.create(**asked)).choices[0].message
    deltas = [part.choices[0].delta async for part in await asking.chat.completions.create(**asked, stream=True)]

    assert (whole.content, whole.reasoning_content) == ("Four.", "Hm.")
    assert [call.extra_content for call in whole.tool_calls or ()] == [signed]
    assert "".join(getattr(delta, "reasoning_content", "") for delta in deltas) == "Hm."
    assert [call.extra_content for delta in deltas for call in delta.tool_calls or ()] == [signed]


async def test_a_function_of_the_time_before_tools_is_called_in_that_times_words(
    shared: Escalating, upstream: Upstream
) -> None:
    async def called(call: Call) -> None:
        begin = chunk({"function_call": {"name": "now", "arguments": "{"}})
        await call.send(
            begin, chunk({"function_call": {"arguments": "}"}}), chunk({}, finish_reason="function_call"), "[DONE]"
        )

    upstream.script = called
    asking = openai.AsyncOpenAI(base_url=f"{shared(upstream.base_url('openai')).url}/v1", api_key="none")
    asked: Any = {"model": "cloud", "messages": HELLO, "functions": [{"name": "now", "parameters": {}}]}
    [whole] = (await asking.chat.completions.create(**asked)).choices
    parts = [part.choices[0] async for part in await asking.chat.completions.create(**asked, stream=True)]

    assert (whole.finish_reason, whole.message.content) == ("function_call", None)
    assert whole.message.function_call.to_dict() == {"name": "now", "arguments": "{}"}
    assert parts[-1].finish_reason == "function_call"
    assert "".join(part.delta.function_call.arguments for part in parts if part.delta.function_call) == "{}"


async def test_a_thought_that_its_wire_has_no_place_for_ends_no_turning_to_the_local_model(
    shared: Escalating, upstream: Upstream
) -> None:
    async def think_and_break(call: Call) -> None:
        await call.send(chunk({"reasoning_content": "Hm."}))
        call.cut()

    upstream.script = think_and_break
    daemon = shared(upstream.base_url("openai"))
    asking = openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0)
    answered = await asking.responses.create(model="cloud", input="hello", max_output_tokens=16)

    assert answered.model == "smollm2-135m"
    with pytest.raises(openai.APIError):
        await asking.chat.completions.create(model="cloud", messages=HELLO)


def test_a_cloud_that_is_down_is_answered_for_by_the_local_model(shared: Escalating) -> None:
    daemon = shared("http://127.0.0.1:9/v1")
    answer = client(daemon).chat.completions.with_raw_response.create(model="cloud", messages=HELLO, max_tokens=4)

    assert answer.parse().model == "smollm2-135m"
    assert answer.headers["x-upcall-reason"] == "cloud_failed"
    assert answer.headers["x-upcall-degraded"] == "true"


def test_a_refused_key_is_answered_for_by_the_local_model(
    escalating: Escalating, aimock: Emulator, tmp_path: Path
) -> None:
    daemon = escalating(aimock.base_url("openai"))
    (tmp_path / "credentials" / "openai").write_text("sk-wrong")
    answer = client(daemon).chat.completions.with_raw_response.create(model="cloud", messages=HELLO, max_tokens=4)

    assert answer.headers["x-upcall-reason"] == "cloud_failed"


def test_a_key_that_is_stored_later_is_found_without_a_restart(
    escalating: Escalating, aimock: Emulator, tmp_path: Path
) -> None:
    daemon = escalating(aimock.base_url("openai"))
    stored = tmp_path / "credentials" / "openai"
    stored.rename(stored.with_name("elsewhere"))
    daemon.process.send_signal(signal.SIGCONT)
    wait_until(lambda: _reason(daemon) in ("no_key", "cloud_failed"))
    stored.with_name("elsewhere").rename(stored)
    wait_until(lambda: _reason(daemon) == "forced_cloud")


def _reason(daemon: Daemon) -> str:
    answer = client(daemon).chat.completions.with_raw_response.create(model="cloud", messages=HELLO, max_tokens=1)
    return str(answer.headers["x-upcall-reason"])


def test_the_key_is_in_no_environment_or_command_line_but_its_file(
    escalating: Escalating, aimock: Emulator, require: Require
) -> None:
    require(os.geteuid() == 0, "needs root, who may read any environment")
    daemon = escalating(aimock.base_url("openai"))
    client(daemon).chat.completions.create(model="cloud", messages=HELLO)

    processes = [*daemon.children("daemon"), *daemon.children("cloud")]
    assert len(processes) >= 3
    for process in processes:
        assert KEY not in " ".join(process.cmdline())
        assert KEY not in "".join(process.environ().values())


def test_the_cloud_process_ends_when_idle_and_comes_back(escalating: Escalating, aimock: Emulator) -> None:
    daemon = escalating(aimock.base_url("openai"), CLOUD__IDLE_SECONDS="0.5")
    for _ in range(2):
        assert client(daemon).chat.completions.create(model="cloud", messages=HELLO).model == "gpt-4"
        old = daemon.children("cloud")
        wait_until(lambda: not any(process.is_running() for process in old))  # noqa: B023 - called in this round only


@pytest.mark.parametrize("after", ["error", "cloud"])
def test_killing_the_local_worker_costs_one_answer(escalating: Escalating, aimock: Emulator, after: str) -> None:
    daemon = escalating(aimock.base_url("openai"), ROUTING__ON_LOCAL_FAILURE=after)
    stream = client(daemon).chat.completions.create(
        model="local", messages=STORY, max_tokens=2000, stream=True, logit_bias={"2": -100}
    )
    received = iter(stream)
    while not next(received).choices[0].delta.content:
        pass
    for process in daemon.children("local"):
        process.kill()

    with pytest.raises(openai.APIError, match="stopped while answering"):
        for _ in received:
            pass
    assert client(daemon).chat.completions.create(model="local", messages=HELLO, max_tokens=2).model == "smollm2-135m"


def test_a_local_worker_that_keeps_dying_is_an_error_or_an_escalation_by_policy(
    escalating: Escalating, aimock: Emulator, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(64))
    daemon = escalating(aimock.base_url("openai"), LOCAL__MODEL=str(broken), ready=False)

    with pytest.raises(openai.InternalServerError):
        client(daemon).chat.completions.create(model="router-mf-1", messages=HELLO, max_tokens=2)
    assert daemon.call("GET", "/healthz")["status"] == "degraded"

    settings = {"LOCAL__MODEL": str(broken), "ROUTING__ON_LOCAL_FAILURE": "cloud"}
    allowed = escalating(aimock.base_url("openai"), ready=False, **settings)
    answer = client(allowed).chat.completions.with_raw_response.create(model="router-mf-1", messages=HELLO)
    assert answer.headers["x-upcall-reason"] == "local_failed"
    assert answer.parse().choices[0].message.content == "Hello from the emulator."
