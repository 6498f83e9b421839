"""What a provider's answer becomes, against a public emulator of both APIs."""

import asyncio
import json

import pytest

from models.cloud.settings import CloudSettings, presets
from models.interface import ChatRequest, FailureCode, Finish, Native, TextDelta, ToolCallDelta, Usage
from tests.emulators.servers import KEY, Emulator
from tests.emulators.upstream import Call, Upstream, chunk
from tests.models.cloud.asking import ask, events, failure, text
from tests.models.cloud.conftest import Cloud

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


async def test_a_chat_streams_text_then_ends_then_says_what_was_used(
    cloud: Cloud, provider: str, aimock: Emulator
) -> None:
    answer = await events(cloud(provider, aimock.base_url(provider)), ask("hello"))
    assert text(answer) == "Hello from the emulator."
    assert answer[-2:] == [Finish("stop"), Usage(11, 5)]
    assert len([event for event in answer if isinstance(event, TextDelta)]) > 1


async def test_text_is_the_same_whatever_the_pieces_cut_through(cloud: Cloud, provider: str, aimock: Emulator) -> None:
    answer = await events(cloud(provider, aimock.base_url(provider)), ask("say it in unicode"))
    assert text(answer) == "Olá! Ação, coração: 你好, 👩‍👩‍👧‍👦 e café."


async def test_a_tool_call_and_its_result_make_the_round_trip(cloud: Cloud, provider: str, aimock: Emulator) -> None:
    model = cloud(provider, aimock.base_url(provider))
    question = {"role": "user", "content": "what is the weather in Oslo?"}
    first = await events(model, ChatRequest(messages=[question], tools=[WEATHER]))
    calls = [event for event in first if isinstance(event, ToolCallDelta)]
    assert {call.index for call in calls} == {0}
    assert calls[0].name == "get_weather"
    arguments = "".join(call.arguments for call in calls)
    assert json.loads(arguments) == {"city": "Oslo"}
    assert Finish("tool_calls") in first
    turn = {
        "role": "assistant",
        "content": text(first),
        "tool_calls": [
            {"id": calls[0].id, "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
        ],
    }
    result = {"role": "tool", "tool_call_id": calls[0].id, "content": '{"degrees": 4}'}
    second = await events(model, ChatRequest(messages=[question, turn, result], tools=[WEATHER]))
    assert text(second) == "It is 4 degrees in Oslo."


async def test_parallel_tool_calls_are_numbered_from_zero(cloud: Cloud, provider: str, aimock: Emulator) -> None:
    answer = await events(
        cloud(provider, aimock.base_url(provider)), ask("the weather in two cities, please", tools=[WEATHER])
    )
    calls = [event for event in answer if isinstance(event, ToolCallDelta)]
    joined = {index: "".join(call.arguments for call in calls if call.index == index) for index in (0, 1)}
    assert [json.loads(joined[index])["city"] for index in (0, 1)] == ["Oslo", "Bergen"]
    assert len({call.id for call in calls if call.id}) == 2


async def test_a_schema_reaches_the_provider_and_its_json_comes_back(cloud: Cloud, aimock: Emulator) -> None:
    schema = {"type": "object", "properties": {"capital": {"type": "string"}}, "required": ["capital"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    model = cloud("openai", aimock.base_url("openai"))
    assert json.loads(text(await events(model, ask("the capital of Peru", response_format=wanted)))) == {
        "capital": "Lima"
    }


async def test_an_image_is_passed_on(cloud: Cloud, provider: str, aimock: Emulator) -> None:
    parts = [
        {"type": "text", "text": "what is in the picture?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
    ]
    request = ChatRequest(messages=[{"role": "user", "content": parts}])
    assert text(await events(cloud(provider, aimock.base_url(provider)), request)) == "A red square."


async def test_slow_tokens_arrive_as_they_come_not_at_the_end(cloud: Cloud, provider: str, upstream: Upstream) -> None:
    words, arrived = ["one ", "two ", "three ", "four"], asyncio.Event()

    async def one_after_the_other(call: Call) -> None:
        await call.send(*call.begin)
        for word in words:
            arrived.clear()
            await call.send(call.text(word))
            await arrived.wait()
        await call.send(*call.end)

    upstream.script = one_after_the_other
    got = []
    async with asyncio.timeout(60):
        async for event in cloud(provider, upstream.base_url(provider)).chat(ask("hello")):
            if isinstance(event, TextDelta):
                got.append(event.text)
                arrived.set()
    assert got == words


async def test_a_wrong_key_is_an_authentication_failure_that_names_the_remedy_and_not_the_key(
    cloud: Cloud, provider: str, aimock: Emulator
) -> None:
    model = cloud(provider, aimock.base_url(provider), key="sk-wrong-secret")
    refused = failure(await events(model, ask("hello")))
    assert refused.code is FailureCode.AUTHENTICATION
    assert "upcall key set provider" in refused.message
    assert "wrong-secret" not in refused.message


async def test_a_refused_key_is_asked_for_again_so_that_a_new_one_needs_no_restart(
    cloud: Cloud, provider: str, aimock: Emulator
) -> None:
    keys = iter(["sk-old", KEY])
    model = cloud(provider, aimock.base_url(provider), key=lambda _: next(keys))
    assert failure(await events(model, ask("hello"))).code is FailureCode.AUTHENTICATION
    assert text(await events(model, ask("hello"))) == "Hello from the emulator."


async def test_the_key_is_asked_for_once_and_again_only_after_close(
    cloud: Cloud, provider: str, upstream: Upstream
) -> None:
    asked = []

    def key(name: str) -> str:
        asked.append(name)
        return f"sk-{len(asked)}"

    model = cloud(provider, upstream.base_url(provider), key=key)
    await model.status()
    assert asked == []
    for _ in range(2):
        await events(model, ask("hello"))
    assert asked == ["provider"]
    await model.close()
    await events(model, ask("hello"))
    assert asked == ["provider"] * 2
    used = [call.headers.get("x-api-key") or call.headers["authorization"].split()[1] for call in upstream.calls]
    assert used == ["sk-1", "sk-1", "sk-2"]


async def test_a_key_that_cannot_be_had_is_a_failure_with_the_keyrings_own_words(
    cloud: Cloud, provider: str, upstream: Upstream
) -> None:
    def key(name: str) -> str:
        raise LookupError("The keyring is locked: unlock it.")

    missing = failure(await events(cloud(provider, upstream.base_url(provider), key=key), ask("hello")))
    assert (missing.code, missing.message) == (FailureCode.NO_KEY, "The keyring is locked: unlock it.")
    assert upstream.calls == []


async def test_nothing_is_taken_from_the_environment(
    cloud: Cloud, provider: str, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "OPENAI_API_KEY": "sk-from-environment",
        "ANTHROPIC_API_KEY": "sk-from-environment",
        "ANTHROPIC_AUTH_TOKEN": "sk-from-environment",
        "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
        "OPENAI_ORG_ID": "org-from-environment",
        "OPENAI_CUSTOM_HEADERS": "x-leak: from-environment",
        "ANTHROPIC_CUSTOM_HEADERS": "x-leak: from-environment",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "ALL_PROXY": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, value)
    answer = await events(cloud(provider, upstream.base_url(provider), key="sk-given"), ask("hello"))
    assert text(answer) == "Hello"
    headers = json.dumps(upstream.calls[0].headers)
    assert "sk-given" in headers
    assert "from-environment" not in headers


async def test_a_server_without_keys_needs_none(cloud: Cloud, upstream: Upstream) -> None:
    def key(name: str) -> str:
        raise AssertionError("asked for a key that nobody needs")

    model = cloud("openai", upstream.base_url("openai"), key=key, key_name=None)
    assert text(await events(model, ask("hello"))) == "Hello"


async def test_connections_are_reused(
    cloud: Cloud, provider: str, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The end of the body comes at once, but on a loaded machine it may be read later.
    monkeypatch.setattr("models.cloud.completions._LINGER_SECONDS", 60.0)
    model = cloud(provider, upstream.base_url(provider))
    for _ in range(3):
        assert text(await events(model, ask("hello"))) == "Hello"
    assert len({call.connection for call in upstream.calls}) == 1


async def test_connections_of_before_the_machine_slept_are_left_alone(
    cloud: Cloud, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.cloud.completions._LINGER_SECONDS", 60.0)
    asleep = [0.0]
    monkeypatch.setattr("models.cloud.http._slept", lambda: asleep[0])
    model = cloud("openai", upstream.base_url("openai"))
    for asleep[0] in (0.0, 0.0, 3600.0, 3600.0, 9000.0):
        assert text(await events(model, ask("hello"))) == "Hello"
    connections = [call.connection for call in upstream.calls]
    assert connections[0] == connections[1] != connections[2] == connections[3] != connections[4]


async def test_many_requests_at_once_each_get_their_own_answer(cloud: Cloud, provider: str, upstream: Upstream) -> None:
    async def echo(call: Call) -> None:
        await call.send(*call.begin, call.text(call.body["messages"][0]["content"]), *call.end)

    upstream.script = echo
    model = cloud(provider, upstream.base_url(provider))
    answers = await asyncio.gather(*(events(model, ask(f"number {i}")) for i in range(30)))
    assert [text(answer) for answer in answers] == [f"number {i}" for i in range(30)]


async def test_every_choice_is_told_apart_and_ends_on_its_own(cloud: Cloud, upstream: Upstream) -> None:
    async def two(call: Call) -> None:
        await call.send(
            chunk({"content": "a"}), chunk({"content": "b"}, index=1), chunk({}, index=1, finish_reason="length"),
            chunk({"content": "A"}), chunk({}, finish_reason="stop"), "[DONE]",
        )  # fmt: skip

    upstream.script = two
    answer = await events(cloud("openai", upstream.base_url("openai")), ask("hello", n=2))
    assert (text(answer, 0), text(answer, 1)) == ("aA", "b")
    assert [event for event in answer if isinstance(event, Finish)] == [Finish("length", 1), Finish("stop", 0)]


async def test_log_probabilities_come_with_their_text(cloud: Cloud, upstream: Upstream) -> None:
    entry = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": []}

    async def script(call: Call) -> None:
        await call.send(
            chunk({"content": "Hi"}, logprobs={"content": [entry]}), chunk({}, finish_reason="stop"), "[DONE]"
        )

    upstream.script = script
    answer = await events(cloud("openai", upstream.base_url("openai")), ask("hello", logprobs=True))
    assert isinstance(answer[0], TextDelta)
    assert answer[0].logprobs == [entry]


async def test_what_dialects_of_the_format_say_beside_the_words_comes_along(cloud: Cloud, upstream: Upstream) -> None:
    signed = {"google": {"thought_signature": "c2ln"}}
    call_ = {"index": 0, "id": "c1", "function": {"name": "now", "arguments": "{}"}, "extra_content": signed}

    async def script(call: Call) -> None:
        await call.send(
            chunk({"content": None, "reasoning_content": "Hm."}), chunk({"content": "Four."}),
            chunk({"tool_calls": [call_]}), chunk({}, finish_reason="tool_calls"), "[DONE]",
        )  # fmt: skip

    upstream.script = script
    thought, words, called, *_ = await events(cloud("openai", upstream.base_url("openai")), ask("hello", beside=True))

    assert thought == TextDelta("", beside={"reasoning_content": "Hm."})
    assert words == TextDelta("Four.")
    assert called == ToolCallDelta(0, "{}", "c1", "now", beside={"extra_content": signed})


@pytest.mark.parametrize("provider", ["deepseek", "meta", "zai", "llama"])
async def test_what_a_provider_reasons_comes_along_whichever_of_any_llms_it_is(
    cloud: Cloud, upstream: Upstream, provider: str
) -> None:
    async def script(call: Call) -> None:
        usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11, "prompt_cache_hit_tokens": 4}
        await call.send(
            chunk({"content": None, "reasoning_content": "Hm."}), chunk({"content": "Four."}),
            chunk({}, finish_reason="model_context_window_exceeded"), {**chunk(), "choices": [], "usage": usage},
        )  # fmt: skip

    upstream.script = script
    tools = [{**WEATHER, "function": {**WEATHER["function"], "strict": None}}]
    answer = await events(cloud(provider, upstream.base_url("openai")), ask("hello", beside=True, tools=tools))

    thought = TextDelta("", beside={"reasoning_content": "Hm."})
    assert answer == [thought, TextDelta("Four."), Finish("length"), Usage(9, 2, cached_tokens=4)]
    assert upstream.calls[0].body["tools"] == tools


async def test_thoughts_between_tags_are_no_part_of_the_answer(cloud: Cloud, upstream: Upstream) -> None:
    async def script(call: Call) -> None:
        await call.send(call.text("<think>Hm.</think>"), call.text("Four."), chunk({}, finish_reason="stop"), "[DONE]")

    upstream.script = script
    assert text(await events(cloud("minimax", upstream.base_url("openai")), ask("hello"))) == "Four."


async def test_nothing_beside_the_words_makes_an_answer_unreadable(cloud: Cloud, upstream: Upstream) -> None:
    odd: dict[str, object] = {"reasoning": {"steps": [1]}, "annotations": "none", "audio": 5, "function_call": [None]}

    async def script(call: Call) -> None:
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": None}
        await call.send(
            chunk({"content": "x", **odd}), chunk({}, finish_reason="stop"), {**chunk(), "choices": [], "usage": usage}
        )

    upstream.script = script
    said, *_, counted = await events(cloud("openai", upstream.base_url("openai")), ask("hello", beside=True))
    assert (said, counted) == (TextDelta("x", beside=odd), Usage(1, 2))


async def test_a_refusal_has_a_place_of_its_own_where_the_format_has_one(cloud: Cloud, upstream: Upstream) -> None:
    async def script(call: Call) -> None:
        await call.send(chunk({"refusal": "No."}), chunk({}, finish_reason="stop"), "[DONE]")

    upstream.script = script
    model = cloud("openai", upstream.base_url("openai"))
    assert (await events(model, ask("hello", beside=True)))[0] == TextDelta("", beside={"refusal": "No."})
    assert (await events(model, ask("hello")))[0] == TextDelta("No.")


async def test_an_error_in_the_middle_is_no_end_although_it_comes_as_one(cloud: Cloud, upstream: Upstream) -> None:
    error = {"code": "server_error", "message": "Provider disconnected"}

    async def script(call: Call) -> None:
        # OpenRouter's (https://openrouter.ai/docs/api-reference/errors): a chunk like any other.
        await call.send(call.text("Hel"), {**chunk({"content": ""}, finish_reason="error"), "error": error}, "[DONE]")

    upstream.script = script
    answer = await events(cloud("openrouter", upstream.base_url("openai")), ask("hello"))
    assert text(answer) == "Hel"
    assert failure(answer).code is FailureCode.UPSTREAM


async def test_tokens_that_only_the_total_counts_are_paid_for(cloud: Cloud, upstream: Upstream) -> None:
    async def script(call: Call) -> None:
        usage = {"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135}
        await call.send(call.text("x"), chunk({}, finish_reason="stop"), {**chunk(), "choices": [], "usage": usage})

    upstream.script = script
    answer = await events(cloud("openai", upstream.base_url("openai")), ask("hello"))
    assert answer[-1] == Usage(32, 103)


async def test_anthropics_thoughts_stay_out_of_formats_that_have_no_place_for_them(
    cloud: Cloud, upstream: Upstream
) -> None:
    called = {"type": "tool_use", "id": "toolu_1", "name": "now", "input": {}, "caller": {"type": "direct"}}

    async def script(call: Call) -> None:
        await call.send(
            call.begin[0],
            {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm."}},
            {"type": "content_block_stop", "index": 0},
            {"type": "content_block_start", "index": 1, "content_block": called},
            {"type": "content_block_stop", "index": 1},
            *call.end[1:],
        )  # fmt: skip

    upstream.script = script
    _, *answer = await events(cloud("anthropic", upstream.base_url("anthropic")), ask("hello", beside=True))
    assert answer == [ToolCallDelta(0, "", "toolu_1", "now"), ToolCallDelta(0, "{}"), Finish("stop"), Usage(7, 3)]
    assert not any(isinstance(event, Native) for event in answer)


async def test_anthropics_choices_come_one_after_the_other_and_are_counted_together(
    cloud: Cloud, upstream: Upstream
) -> None:
    async def script(call: Call) -> None:
        await call.send(*call.begin, call.text(f"number {len(upstream.calls)}"), *call.end)

    upstream.script = script
    answer = await events(cloud("anthropic", upstream.base_url("anthropic")), ask("hello", n=3))
    assert [text(answer, choice) for choice in range(4)] == ["number 1", "number 2", "number 3", ""]
    assert [event for event in answer if isinstance(event, Finish)] == [Finish("stop", choice) for choice in range(3)]
    assert answer[-1] == Usage(21, 9)
    assert [call.body for call in upstream.calls] == [upstream.calls[0].body] * 3


async def test_choices_of_which_one_was_not_counted_are_not_counted(cloud: Cloud, upstream: Upstream) -> None:
    async def script(call: Call) -> None:
        begin, *_ = call.begin if len(upstream.calls) == 1 else [{"type": "message_start", "message": {}}]
        delta = {"stop_reason": "end_turn", "stop_sequence": None}
        await call.send(begin, {"type": "message_delta", "delta": delta})

    upstream.script = script
    answer = await events(cloud("anthropic", upstream.base_url("anthropic")), ask("hello", n=2))
    assert answer[1:] == [Finish("stop"), Finish("stop", 1)]


async def test_a_call_without_parameters_still_has_arguments_that_are_json(cloud: Cloud, upstream: Upstream) -> None:
    async def script(call: Call) -> None:
        await call.send(
            *call.begin[:1],
            {"type": "content_block_start", "index": 0,
             "content_block": {"type": "tool_use", "id": "toolu_1", "name": "now", "input": {}}},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None},
             "usage": {"output_tokens": 3}},
            {"type": "message_stop"},
        )  # fmt: skip

    upstream.script = script
    answer = await events(cloud("anthropic", upstream.base_url("anthropic")), ask("what time is it?"))
    calls = [event for event in answer if isinstance(event, ToolCallDelta)]
    assert "".join(call.arguments for call in calls) == "{}"


async def test_cached_prompt_tokens_are_counted_inside_the_prompt(cloud: Cloud, upstream: Upstream) -> None:
    async def script(call: Call) -> None:
        usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102,
                 "prompt_tokens_details": {"cached_tokens": 64}}  # fmt: skip
        await call.send(call.text("x"), chunk({}, finish_reason="stop"), {**chunk(), "choices": [], "usage": usage})

    upstream.script = script
    answer = await events(cloud("openai", upstream.base_url("openai")), ask("hello"))
    assert answer[-1] == Usage(100, 2, cached_tokens=64)


async def test_the_status_says_what_the_model_is_without_asking_the_provider(cloud: Cloud, upstream: Upstream) -> None:
    model = cloud("openai", upstream.base_url("openai"), context_length=8192, images=True)
    status = await model.status()
    assert (status.name, status.state, status.context_length, status.images) == ("gpt-4", "ready", 8192, True)
    assert upstream.calls == []


async def test_the_token_count_is_never_below_what_the_prompt_can_cost(cloud: Cloud) -> None:
    model = cloud("openai", "http://127.0.0.1:9/v1")
    # One token per byte is the worst that a byte-level tokenizer does.
    assert await model.count_tokens(ask("ã" * 100)) >= 200
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    request = ChatRequest(messages=[{"role": "user", "content": [picture]}])
    assert 1600 <= await model.count_tokens(request) < 20_000
    assert await model.count_tokens(ask("hi", tools=[WEATHER])) > await model.count_tokens(ask("hi")) + 100


def test_the_presets_are_there_by_name_and_travel_as_json() -> None:
    known = presets()
    assert {"gpt-4", "claude-3-opus"} <= known.keys()
    for name, settings in known.items():
        fields = {field: getattr(settings, field) for field in settings.__dataclass_fields__}
        assert CloudSettings(**json.loads(json.dumps(fields))) == settings
        assert settings.name == name


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"base_url": "api.openai.com"}, "base_url"),
        ({"proxy": "socks5://localhost:1"}, "proxy"),
        ({"chunk_timeout": 0}, "chunk_timeout"),
        ({"max_retries": -1}, "max_retries"),
        ({"model": " "}, "model"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CloudSettings(**{"name": "strong", "provider": "openai", "model": "gpt-4", **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("provider", ["nobody", "bedrock", "cohere", "fireworks"])
async def test_a_provider_that_cannot_be_used_is_a_failure_that_names_it(cloud: Cloud, provider: str) -> None:
    refused = failure(await events(cloud(provider, "http://127.0.0.1:9"), ask("hello")))
    assert refused.code is FailureCode.UNAVAILABLE
    assert provider in refused.message
