"""The OpenAI wire against a real daemon with a real local model, through the official client."""

import asyncio
import json
from typing import Any

import openai
import pytest

from daemon.api.completion import collected
from models.interface import Finish, TextDelta, ToolCallDelta
from tests.daemon.conftest import Escalating, StartDaemon
from tests.daemon.harness import Daemon
from tests.emulators.upstream import Call, Upstream, chunk

HELLO = [{"role": "user", "content": "Say hello."}]


@pytest.fixture
def client(upcall: Daemon) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{upcall.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("model", ["auto", "local", "cloud", "router-mf-0.9", "router-random-0.5"])
def test_the_openai_sdk_gets_an_answer_from_every_model_name(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=8, temperature=0)

    assert answer.model == "smollm2-135m"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


def test_a_stream_carries_the_same_text_as_the_whole_answer(client: openai.OpenAI) -> None:
    settings = {"model": "local", "messages": HELLO, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**settings).choices[0].message.content
    chunks = list(client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("stop", "length")
    assert chunks[-1].usage.completion_tokens > 0


async def test_the_async_sdk_streams(upcall: Daemon) -> None:
    client = openai.AsyncOpenAI(base_url=f"{upcall.url}/v1", api_key="none", max_retries=0)
    stream = await client.chat.completions.create(model="auto", messages=HELLO, max_tokens=8, stream=True)

    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def test_every_choice_of_a_stream_says_whose_words_they_are(client: openai.OpenAI) -> None:
    ask: Any = {"model": "local", "messages": HELLO, "max_tokens": 3, "n": 2, "stream": True}
    chunks = [chunk for chunk in client.chat.completions.create(**ask) if chunk.choices]
    first = {chunk.choices[0].index: chunk.choices[0].delta.role for chunk in reversed(chunks)}
    assert first == {0: "assistant", 1: "assistant"}


def test_a_refusal_is_no_content_and_has_its_own_field() -> None:
    [(_, choice)] = collected(
        [TextDelta("", beside={"refusal": "N"}), TextDelta("", beside={"refusal": "o."}), Finish("stop")]
    )
    message = choice.rendered(0)["message"]
    assert (message["content"], message["refusal"]) == (None, "No.")


CUSTOM = [
    ToolCallDelta(0, id="a", beside={"custom": {"name": "shell", "input": ""}}),
    ToolCallDelta(0, beside={"custom": {"input": "ls "}}),
    ToolCallDelta(0, beside={"custom": {"input": "-l"}}),
    ToolCallDelta(1, '{"x": 1}', "b", "f", beside={"extra_content": {}}),
]


def test_a_call_of_a_custom_tool_is_whole_and_no_functions() -> None:
    [(_, choice)] = collected([*CUSTOM, Finish("tool_calls")])
    assert choice.rendered(0)["message"]["tool_calls"] == [
        {"id": "a", "type": "custom", "custom": {"name": "shell", "input": "ls -l"}},
        {"id": "b", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}, "extra_content": {}},
    ]


async def test_a_call_of_a_custom_tool_is_streamed_as_it_came(escalating: Escalating, upstream: Upstream) -> None:
    first = {"index": 0, "id": "a", "type": "custom", "custom": {"name": "shell", "input": ""}}
    rest = {"index": 0, "custom": {"input": "ls -l"}}

    async def script(call: Call) -> None:
        calls = [chunk({"tool_calls": [each]}) for each in (first, rest)]
        await call.send(*call.begin, *calls, chunk({}, finish_reason="tool_calls"), *call.end[1:])

    upstream.script = script
    daemon = await asyncio.to_thread(escalating, upstream.base_url("openai"))
    client = openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0)
    tools: Any = [{"type": "custom", "custom": {"name": "shell"}}]
    stream = await client.chat.completions.create(model="cloud", messages=HELLO, tools=tools, stream=True)
    deltas = [chunk.choices[0].delta.to_dict() async for chunk in stream if chunk.choices]
    assert [call for delta in deltas for call in delta.get("tool_calls", ())] == [first, rest]


def test_every_answer_says_who_answered_and_why(client: openai.OpenAI) -> None:
    answer = client.chat.completions.with_raw_response.create(model="auto", messages=HELLO, max_tokens=2)

    assert answer.headers["x-upcall-route"] == "local"
    assert answer.headers["x-upcall-model"] == "smollm2-135m"
    assert answer.headers["x-upcall-reason"] in ("below_threshold", "no_key")
    assert 0 <= float(answer.headers["x-upcall-score"]) <= 1
    assert answer.headers["x-upcall-router"].startswith("mf@")


def test_a_hard_prompt_without_a_key_is_answered_locally_and_says_which_command_helps(client: openai.OpenAI) -> None:
    answer = client.chat.completions.with_raw_response.create(
        model="router-mf-0", messages=HELLO, max_tokens=2, extra_headers={"x-upcall-explain": "1"}
    )
    explanation = json.loads(answer.text)["x_upcall"]

    assert answer.headers["x-upcall-reason"] == explanation["reason"] == "no_key"
    assert answer.headers["x-upcall-degraded"] == "true"
    assert "upcall key set" in explanation["explanation"]


def test_an_unknown_model_name_is_routed_as_auto_with_a_warning(client: openai.OpenAI) -> None:
    answer = client.chat.completions.with_raw_response.create(model="gpt-9\u00e9", messages=HELLO, max_tokens=2)

    assert "auto" in answer.headers["x-upcall-warning"]


def test_an_unknown_model_name_is_refused_where_the_settings_say_so(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ROUTING__UNKNOWN_MODELS="refuse")
    client = openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0)

    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.chat.completions.create(model="gpt-9", messages=HELLO)


def test_models_lists_what_a_client_may_ask_for(client: openai.OpenAI) -> None:
    assert {"auto", "local", "cloud"} <= {model.id for model in client.models.list()}


def test_a_dry_run_decides_as_a_request_would_and_answers_nothing(upcall: Daemon, client: openai.OpenAI) -> None:
    decision = upcall.call("POST", "/v1/route", {"model": "router-mf-0.9", "messages": HELLO})
    answer = client.chat.completions.with_raw_response.create(model="router-mf-0.9", messages=HELLO, max_tokens=2)

    assert decision["route"] == answer.headers["x-upcall-route"]
    assert f"{decision['score']:.4f}" == answer.headers["x-upcall-score"]
    assert "choices" not in decision


def test_a_follow_up_without_content_keeps_the_score_of_a_hard_turn(upcall: Daemon) -> None:
    hard = {"role": "user", "content": "Prove that every group of order p squared is abelian, for a prime p."}
    turns = [hard, {"role": "assistant", "content": "..."}, {"role": "user", "content": "ok"}]
    follow_up = upcall.call("POST", "/v1/route", {"messages": turns})["score"]

    assert follow_up >= 0.7 * upcall.call("POST", "/v1/route", {"messages": [hard]})["score"]


def test_stop_strings_and_seed_reach_the_model(client: openai.OpenAI) -> None:
    settings = {"model": "local", "messages": [{"role": "user", "content": "Count: one, two,"}], "max_tokens": 40}
    client.chat.completions.create(**{**settings, "max_tokens": 1})  # Both take the prompt from the cache.
    first, second = (client.chat.completions.create(**settings, seed=7, temperature=1) for _ in range(2))
    stopped = client.chat.completions.create(**settings, stop=[","], temperature=0)

    assert first.choices[0].message.content == second.choices[0].message.content
    assert "," not in stopped.choices[0].message.content


async def test_a_client_that_hangs_up_frees_the_model(upcall: Daemon) -> None:
    client = openai.AsyncOpenAI(base_url=f"{upcall.url}/v1", api_key="none", max_retries=0)
    stream = await client.chat.completions.create(
        model="local", messages=[{"role": "user", "content": "Tell a very long story."}], max_tokens=4000, stream=True
    )
    await anext(aiter(stream))
    await stream.close()
    answer = await client.chat.completions.create(model="local", messages=HELLO, max_tokens=2)

    assert answer.choices[0].finish_reason in ("stop", "length")
