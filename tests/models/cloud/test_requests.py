"""What goes out is what the client meant: field by field for OpenAI's format, in Anthropic's words for Anthropic."""

import json
from typing import Any

import pytest

from models.interface import ChatRequest, FailureCode, Usage
from tests.emulators.upstream import Upstream
from tests.models.cloud.asking import ask, events, failure, text
from tests.models.cloud.conftest import Cloud

PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
PDF = {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Cidade, e.g. São Paulo"},
        "unit": {"type": "string", "enum": ["C", "F"]},
    },
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS, "strict": True}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "out", "strict": True, "schema": PARAMETERS}}


def said(content: object) -> dict[str, Any]:
    return {"role": "user", "content": content}


HELLO = said("hello")
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}

# Bodies in the shapes that clients send; upcall may add only `model` and what makes it a counted stream.
BODIES: dict[str, dict[str, Any]] = {
    "bare": {"messages": [HELLO]},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, HELLO]},
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, HELLO]},
    "named": {"messages": [{**HELLO, "name": "ana"}]},
    "unicode": {"messages": [said("São 3 maçãs, 你好 👩‍👩‍👧‍👦 \u0000 \u2028 \ud7ff")]},
    "control characters and quotes": {"messages": [said('a\t"b"\\n\r\n\x1b[0m')]},
    "empty string": {"messages": [said("")]},
    "text parts": {"messages": [said([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])]},
    "image": {"messages": [said([{"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}])]},
    "image by address": {
        "messages": [said([{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}])]
    },
    "audio": {
        "messages": [said([{"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}])]
    },
    "file": {"messages": [said([{"type": "file", "file": PDF}])]},
    "history": {"messages": [HELLO, {"role": "assistant", "content": "Hi!"}, said("more")]},
    "refusal in history": {"messages": [HELLO, {"role": "assistant", "content": None, "refusal": "No."}, HELLO]},
    "tools": {"messages": [HELLO], "tools": [TOOL]},
    "tool choice": {
        "messages": [HELLO], "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "parallel_tool_calls": False,
    },
    "tool result": {
        "messages": [
            HELLO,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "4 degrees"},
        ],
        "tools": [TOOL], "tool_choice": "auto",
    },
    "tool result in parts": {
        "messages": [
            HELLO,
            {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "4 degrees"}]},
        ],
        "tools": [TOOL], "tool_choice": "required",
    },
    "custom tool": {
        "messages": [HELLO], "tools": [{"type": "custom", "custom": {"name": "shell", "format": {"type": "text"}}}]
    },
    "schema": {"messages": [HELLO], "response_format": SCHEMA},
    "json object": {"messages": [HELLO], "response_format": {"type": "json_object"}},
    "plain text": {"messages": [HELLO], "response_format": {"type": "text"}},
    "sampling": {
        "messages": [HELLO], "temperature": 0.0, "top_p": 0.5, "presence_penalty": -0.5, "frequency_penalty": 2,
        "seed": 0,
    },
    "floats": {"messages": [HELLO], "temperature": 0.1, "top_p": 0.9999999},
    "stop": {"messages": [HELLO], "stop": ["\n\n", "END"]},
    "limit": {"messages": [HELLO], "max_tokens": 1},
    "limit by its new name": {"messages": [HELLO], "max_completion_tokens": 10},
    "log probabilities": {"messages": [HELLO], "logprobs": True, "top_logprobs": 5, "logit_bias": {"50256": -100}},
    "choices": {"messages": [HELLO], "n": 2},
    "sampling of local servers": {"messages": [HELLO], "min_p": 0.05, "top_k": 40},
    "account fields": {
        "messages": [HELLO], "user": "u-1", "store": False, "metadata": {"k": "v"}, "service_tier": "flex",
        "prompt_cache_key": "k", "safety_identifier": "s",
    },
    "reasoning": {"messages": [HELLO], "reasoning_effort": "high", "verbosity": "low"},
    "prediction": {"messages": [HELLO], "prediction": {"type": "content", "content": "x"}},
    "web search": {"messages": [HELLO], "web_search_options": {"search_context_size": "low"}},
    "stream options": {"messages": [HELLO], "stream_options": {"include_obfuscation": False}},
    "unknown fields": {
        "messages": [{**HELLO, "cache_control": {"type": "ephemeral"}}], "x_new": {"deep": [1, None, {"a": 1.5}]}
    },
    "reasoning in history": {
        "messages": [HELLO, {"role": "assistant", "content": "x", "reasoning_content": "hm"}, HELLO]
    },
    "side channel in history": {
        "messages": [HELLO, {"role": "assistant", "content": "x", "extra_content": {"a": {"b": 1}}}, HELLO]
    },
    "nested null": {"messages": [HELLO], "x_new": None, "y_new": {"a": None}},
    "large number": {"messages": [HELLO], "seed": 2**53 + 1},
    "long": {"messages": [said("word " * 50_000)]},
}  # fmt: skip
NO_SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer"}}
KNOWN = {
    "messages", "max_tokens", "temperature", "top_p", "min_p", "top_k", "presence_penalty", "frequency_penalty", "seed",
    "stop", "n", "logit_bias", "logprobs", "top_logprobs", "tools", "tool_choice", "response_format",
}  # fmt: skip


def request(body: dict[str, Any]) -> ChatRequest:
    return ChatRequest(
        **{name: value for name, value in body.items() if name in KNOWN},
        extra={name: value for name, value in body.items() if name not in KNOWN},
    )


@pytest.mark.parametrize("name", BODIES)
async def test_openai_receives_every_field_as_the_client_sent_it(cloud: Cloud, upstream: Upstream, name: str) -> None:
    body = BODIES[name]
    answer = await events(cloud("openai", upstream.base_url("openai")), request(body))
    if "n" not in body:
        assert text(answer) == "Hello"
    sent = upstream.calls[0]
    assert sent.path == "/v1/chat/completions"
    options = {**body.get("stream_options", {}), "include_usage": True}
    assert sent.body == {**body, "model": "gpt-4", "stream": True, "stream_options": options}
    # Equality alone would take 0 for 0.0 and for False.
    assert json.dumps({name: sent.body[name] for name in body if name != "stream_options"}) == json.dumps(
        {name: body[name] for name in body if name != "stream_options"}
    )


async def test_a_retry_sends_the_same_bytes(cloud: Cloud, provider: str, upstream: Upstream) -> None:
    async def fail_once(call: Any) -> None:
        if len(upstream.calls) == 1:
            await call.refuse(500, {"error": {"message": "x"}})
        else:
            await call.send(*call.begin, *call.end)

    upstream.script = fail_once
    await events(cloud(provider, upstream.base_url(provider), max_retries=1), request(BODIES["tool result"]))
    assert upstream.calls[0].raw == upstream.calls[1].raw


async def test_the_settings_fill_in_what_the_client_left_out_and_leave_out_what_the_model_refuses(
    cloud: Cloud, upstream: Upstream
) -> None:
    model = cloud(
        "openai", upstream.base_url("openai"), max_tokens_field="max_completion_tokens",
        defaults={"reasoning_effort": "none", "verbosity": "low"}, unsupported=["top_k", "min_p"],
    )  # fmt: skip
    extra = {"reasoning_effort": "high", "verbosity": None}
    await events(model, ask("hello", max_tokens=9, top_k=3, min_p=0.1, extra=extra))
    body = upstream.calls[0].body
    assert body["max_completion_tokens"] == 9
    assert (body["reasoning_effort"], body["verbosity"]) == ("high", "low")
    assert not {"max_tokens", "top_k", "min_p"} & body.keys()


async def test_a_server_that_refuses_stream_options_is_sent_none(cloud: Cloud, upstream: Upstream) -> None:
    model = cloud("openai", upstream.base_url("openai"), unsupported=["stream_options"])
    assert text(await events(model, request(BODIES["stream options"]))) == "Hello"
    assert "stream_options" not in upstream.calls[0].body


@pytest.mark.parametrize(
    ("address", "fields", "effort"),
    [
        ("http://api.openai.com/v1", {"tools": [TOOL]}, "none"),
        ("http://api.openai.com/v1", {}, "high"),
        # This is what OpenAI's own client would say to this very API.
        ("http://api.openai.com/v1", {"tools": [TOOL], "beside": True}, "high"),
        ("http://llm.example.org/v1", {"tools": [TOOL]}, "high"),
    ],
)
async def test_functions_with_an_effort_in_the_format_of_responses_reach_openais_chat_without_it(
    cloud: Cloud, upstream: Upstream, address: str, fields: dict[str, Any], effort: str
) -> None:
    model = cloud("openai", address, proxy=upstream.url, defaults={"reasoning_effort": "none"})
    assert text(await events(model, ask("hello", **fields, extra={"reasoning_effort": "high"}))) == "Hello"
    assert upstream.calls[0].body["reasoning_effort"] == effort


@pytest.mark.parametrize(
    ("host", "model", "signed"),
    [
        ("generativelanguage.googleapis.com", "gemini-3-pro-preview", True),
        ("generativelanguage.googleapis.com", "gemini-2.5-pro", False),
        ("llm.example.org", "gemini-3-pro-preview", False),
    ],
)
async def test_gemini_sees_a_signature_at_calls_that_others_made(
    cloud: Cloud, upstream: Upstream, host: str, model: str, signed: bool
) -> None:
    own = {**CALL, "extra_content": {"google": {"thought_signature": "c2ln"}}}
    turns = [{"role": "assistant", "content": None, "tool_calls": calls} for calls in ([CALL, CALL], [own, CALL])]
    history = [HELLO, turns[0], HELLO, turns[1], HELLO]
    asked = cloud("openai", f"http://{host}/v1beta/openai", proxy=upstream.url, model=model)
    assert text(await events(asked, request({"messages": history, "tools": [TOOL]}))) == "Hello"

    sent = upstream.calls[0].body["messages"]
    unsigned = {"google": {"thought_signature": "skip_thought_signature_validator"}}
    assert sent[1]["tool_calls"] == [{**CALL, "extra_content": unsigned} if signed else CALL, CALL]
    assert sent == [HELLO, sent[1], *history[2:]]
    assert "extra_content" not in CALL


async def test_no_field_that_passes_unread_can_lift_a_limit(cloud: Cloud, upstream: Upstream) -> None:
    lifted = {"n": 16, "max_tokens": 90_000, "max_completion_tokens": 90_000}
    await events(cloud("openai", upstream.base_url("openai")), ask("hello", max_tokens=9, extra=lifted))
    body = upstream.calls[0].body

    assert body["max_tokens"] == 9
    assert not {"n", "max_completion_tokens"} & body.keys()


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "max_tokens"),
        ({"max_tokens_field": "max_completion_tokens"}, "max_completion_tokens"),
        ({"base_url": "http://api.openai.com/v1"}, "max_completion_tokens"),
        ({"base_url": "http://api.openai.com/v1", "provider": "vllm"}, "max_tokens"),
    ],
)
async def test_the_limit_has_the_name_that_the_address_knows(
    cloud: Cloud, upstream: Upstream, settings: dict[str, Any], name: str
) -> None:
    values = {"provider": "openai", "base_url": upstream.base_url("openai"), "proxy": upstream.url, **settings}
    assert text(await events(cloud(**values), ask("hello", max_tokens=9))) == "Hello"
    assert upstream.calls[0].body.keys() & {"max_tokens", "max_completion_tokens"} == {name}


# --- Anthropic: the same meaning in its own words -----------------------------------------------------------------


async def to_anthropic(cloud: Cloud, upstream: Upstream, body: dict[str, Any], **settings: Any) -> dict[str, Any]:
    answer = await events(cloud("anthropic", upstream.base_url("anthropic"), **settings), request(body))
    assert text(answer) == "Hello", answer
    assert upstream.calls[0].path == "/v1/messages"
    return upstream.calls[0].body  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", sorted(BODIES.keys() - {"choices", "json object", "custom tool", "empty string"}))
async def test_anthropic_receives_nothing_that_its_format_does_not_know(
    cloud: Cloud, upstream: Upstream, name: str
) -> None:
    sent = await to_anthropic(cloud, upstream, BODIES[name])
    known = {
        "model", "messages", "max_tokens", "stream", "system", "temperature", "top_p", "top_k", "stop_sequences",
        "tools", "tool_choice", "metadata", "thinking", "output_config",
    }  # fmt: skip
    assert sent.keys() <= known
    assert all(message.keys() == {"role", "content"} for message in sent["messages"])
    assert {message["role"] for message in sent["messages"]} <= {"user", "assistant"}


async def test_anthropic_gets_nothing_that_it_refuses_for_being_blank(cloud: Cloud, upstream: Upstream) -> None:
    blank, word = {"type": "text", "text": " \n"}, {"type": "text", "text": "So?"}
    body = {
        "messages": [
            {"role": "system", "content": ""},
            {"role": "system", "content": [blank, {**word, "text": "Be brief."}]},
            HELLO,
            {"role": "assistant", "content": ""},
            said("\n"),
            {"role": "assistant", "content": "\n\n", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": [blank]},
            {"role": "assistant", "content": None, "refusal": "No."},
            said([blank, word]),
        ],
        "stop": ["\n", "END", ""],
        "tools": [TOOL],
    }
    sent = await to_anthropic(cloud, upstream, body)
    used = {"type": "tool_use", "id": "call_1", "name": "get_weather", "input": {"city": "Oslo"}}
    assert sent["system"] == "Be brief."
    assert sent["messages"] == [
        HELLO,
        {"role": "assistant", "content": [used]},
        said([{"type": "tool_result", "tool_use_id": "call_1", "content": ""}]),
        {"role": "assistant", "content": "No."},
        said([word]),
    ]
    assert sent["stop_sequences"] == ["END"]
    upstream.calls.clear()
    assert "stop_sequences" not in await to_anthropic(cloud, upstream, {"messages": [HELLO], "stop": "\n"})


async def test_a_turn_of_thought_alone_goes_back_to_anthropic(cloud: Cloud, upstream: Upstream) -> None:
    signed = {"reasoning_content": "Hm.", "extra_content": {"anthropic": {"signature": "c2ln"}}}
    sent = await to_anthropic(
        cloud, upstream, {"messages": [HELLO, {"role": "assistant", "content": "", **signed}, HELLO]}
    )
    assert sent["messages"][1]["content"] == [{"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}]


async def test_a_temperature_above_anthropics_highest_is_that(cloud: Cloud, upstream: Upstream) -> None:
    for said_, sent in ((1.7, 1), (0.3, 0.3)):
        upstream.calls.clear()
        body = {"messages": [HELLO], "temperature": said_}
        assert (await to_anthropic(cloud, upstream, body))["temperature"] == sent


async def test_fields_of_other_dialects_stay_away_from_anthropic_but_for_what_the_settings_say(
    cloud: Cloud, upstream: Upstream
) -> None:
    other = {
        "reasoning": {"effort": "high"}, "enable_thinking": True, "chat_template_kwargs": {}, "max_tool_calls": 1,
        "repetition_penalty": 1.1, "system": "Obey.", "top_k": 5, "speed": "standard",
    }  # fmt: skip
    sent = await to_anthropic(cloud, upstream, {"messages": [HELLO], **other}, defaults={"a_field_of_tomorrow": 1})
    bare = {"model", "messages", "max_tokens", "stream"}
    assert sent.keys() == bare | {"top_k", "speed", "a_field_of_tomorrow"}


async def test_anthropic_gets_a_limit_where_the_client_named_none(cloud: Cloud, upstream: Upstream) -> None:
    assert (await to_anthropic(cloud, upstream, BODIES["bare"], max_tokens=77))["max_tokens"] == 77


@pytest.mark.parametrize("name", ["limit", "limit by its new name"])
async def test_anthropic_gets_the_clients_limit_by_either_name(cloud: Cloud, upstream: Upstream, name: str) -> None:
    assert (await to_anthropic(cloud, upstream, BODIES[name]))["max_tokens"] == max(
        BODIES[name].get("max_tokens", 0), BODIES[name].get("max_completion_tokens", 0)
    )


@pytest.mark.parametrize("role", ["system", "developer"])
async def test_anthropic_gets_instructions_of_either_role_as_its_system(
    cloud: Cloud, upstream: Upstream, role: str
) -> None:
    sent = await to_anthropic(cloud, upstream, {"messages": [{"role": role, "content": "Be brief."}, HELLO]})
    assert (sent["system"], sent["messages"]) == ("Be brief.", [HELLO])


async def test_anthropic_gets_all_instructions_in_order_with_their_cache_marks(
    cloud: Cloud, upstream: Upstream
) -> None:
    marked = {"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}
    sent = await to_anthropic(
        cloud,
        upstream,
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "developer", "content": [marked]}, HELLO]},
    )
    assert sent["system"] == [{"type": "text", "text": "Be brief."}, marked]


async def test_anthropic_gets_images_in_its_own_shape(cloud: Cloud, upstream: Upstream) -> None:
    sent = await to_anthropic(cloud, upstream, BODIES["image"])
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL.split(",")[1]}
    assert sent["messages"] == [{"role": "user", "content": [{"type": "image", "source": source}]}]


async def test_anthropic_gets_tool_calls_with_the_text_that_came_before_them(cloud: Cloud, upstream: Upstream) -> None:
    parts = [{"type": "text", "text": "Let me "}, {"type": "text", "text": "look."}]
    for content, said in ((None, []), ("", []), ("Look.", ["Look."]), (parts, ["Let me look."])):
        upstream.calls.clear()
        turn = {"role": "assistant", "content": content, "tool_calls": [CALL]}
        result = {"role": "tool", "tool_call_id": "call_1", "content": "4 degrees"}
        sent = await to_anthropic(cloud, upstream, {"messages": [HELLO, turn, result], "tools": [TOOL]})
        used = {"type": "tool_use", "id": "call_1", "name": "get_weather", "input": {"city": "Oslo"}}
        assert sent["messages"][1:] == [
            {"role": "assistant", "content": [*({"type": "text", "text": text} for text in said), used]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": "4 degrees"}]},
        ]
        assert sent["tools"][0]["name"] == "get_weather"
        assert sent["tools"][0]["input_schema"]["properties"] == PARAMETERS["properties"]


async def test_anthropic_gets_stop_strings_sampling_and_the_users_id(cloud: Cloud, upstream: Upstream) -> None:
    sent = await to_anthropic(
        cloud,
        upstream,
        {"messages": [HELLO], "stop": ["END"], "temperature": 0.0, "top_k": 5, "seed": 1, "user": "u-1", "store": True},
    )
    assert (sent["stop_sequences"], sent["temperature"], sent["top_k"]) == (["END"], 0.0, 5)
    assert sent["metadata"] == {"user_id": "u-1"}


async def test_anthropics_own_fields_pass_through(cloud: Cloud, upstream: Upstream) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    sent = await to_anthropic(cloud, upstream, {"messages": [HELLO], "thinking": thinking, "max_tokens": 2000})
    assert sent["thinking"] == thinking


async def test_anthropic_gets_a_schema_as_its_output_format(cloud: Cloud, upstream: Upstream) -> None:
    sent = await to_anthropic(cloud, upstream, BODIES["schema"])
    assert sent["output_config"]["format"]["type"] == "json_schema"
    assert sent["output_config"]["format"]["schema"]["required"] == ["city"]


@pytest.mark.parametrize("body", [BODIES["json object"], {"messages": [HELLO], "response_format": NO_SCHEMA}])
async def test_anthropic_is_asked_in_words_for_json_of_any_shape(
    cloud: Cloud, upstream: Upstream, body: dict[str, Any]
) -> None:
    sent = await to_anthropic(cloud, upstream, body)
    assert "JSON" in str(sent["system"])
    assert "output_config" not in sent


async def test_reasoning_can_be_off_by_default_and_on_by_request(cloud: Cloud, upstream: Upstream) -> None:
    off = {"reasoning_effort": "none"}
    assert (await to_anthropic(cloud, upstream, BODIES["bare"], defaults=off))["thinking"] == {"type": "disabled"}
    upstream.calls.clear()
    assert (await to_anthropic(cloud, upstream, BODIES["reasoning"], defaults=off))["thinking"]["type"] != "disabled"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            {
                "messages": [
                    HELLO,
                    {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{no"}}]},
                ]
            },
            "tool call 'call_1'",
        ),
        ({"messages": [said([{"type": "image_url", "image_url": {"url": "data:image/png"}}])]}, "base64"),
        (BODIES["empty string"], "none of its messages"),
        ({"messages": [HELLO], "reasoning_effort": "ultra"}, "reasoning_effort is 'ultra'. Input should be 'none'"),
        ({"messages": [HELLO], "parallel_tool_calls": {"no": 1}, "tools": [TOOL]}, "parallel_tool_calls is {'no': 1}"),
        ({"messages": [HELLO], "tools": [TOOL], "tool_choice": {"type": "function"}}, "the choice of one"),
    ],
)
async def test_what_anthropic_has_no_word_for_is_refused_before_anything_is_sent(
    cloud: Cloud, upstream: Upstream, body: dict[str, Any], reason: str
) -> None:
    model = cloud("anthropic", upstream.base_url("anthropic"))
    for _ in range(6):
        refused = failure(await events(model, request(body)))
        assert (refused.code, refused.lost) == (FailureCode.BAD_REQUEST, 0)
        assert refused.message.startswith("strong cannot be asked this: ")
        assert reason in refused.message
    assert upstream.calls == []
    # It is no fault of the provider's.
    assert (await model.status()).state == "ready"


async def test_anthropics_usage_counts_the_whole_prompt(cloud: Cloud, upstream: Upstream) -> None:
    answer = await events(cloud("anthropic", upstream.base_url("anthropic")), ask("hello"))
    assert answer[-1] == Usage(7, 3)
