"""Anthropic's wire format: lossless towards Anthropic, translated for others, and as Claude Code uses it."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import pytest
import pytest_asyncio

from daemon.api.anthropic_request import MessagesBody
from tests.daemon.conftest import StartDaemon
from tests.daemon.harness import Daemon, running_daemon, wait_until
from tests.emulators.servers import KEY
from tests.emulators.upstream import Call, Upstream, answer, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
CHOICE = {"disable_parallel_tool_use": True}
CACHED = {"cache_control": {"type": "ephemeral"}}
FOUR = {"type": "text", "text": "4 degrees"}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
TOOL = {"name": "get_weather", "description": "Tell.", "input_schema": {"type": "object", "properties": {}}}
HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "text", "text": "São 3 maçãs?", **CACHED}, IMAGE]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "ZW5j"},
            {"type": "text", "text": "Let me look."},
            {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "São Paulo"}},
            {"type": "tool_use", "id": "toolu_2", "name": "get_weather", "input": {}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [FOUR, IMAGE]},
            {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no such city", "is_error": True},
            {"type": "text", "text": "And now?"},
        ],
    },
]  # fmt: skip
BODY: dict[str, Any] = {
    "model": "claude-opus-5[1m]",
    "max_tokens": 2000,
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
    "messages": HISTORY,
    "tools": [TOOL, {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}],
    "tool_choice": {"type": "auto", **CHOICE},
    "stop_sequences": ["END"],
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "metadata": {"user_id": "user_1"},
    "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
    "x_new": {"deep": [1, None, {"a": 1.5}]},
}
OPTIONAL = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}
UP = {"x-upcall-route": "cloud"}
OWN = {
    "x-api-key": "the client's own",
    "authorization": "Bearer the client's own",
    "cookie": "session=theirs",
    "user-agent": "claude-cli/2.0 (of-somebody)",
    "referer": "http://127.0.0.1/theirs",
    "x-forwarded-for": "192.0.2.7",
    "x-stainless-os": "TheirOS",
    "x-app": "cli-of-theirs",
    "anthropic-dangerous-direct-browser-access": "their-browser",
}
"""What the program that asks sends for upcall alone, or of itself."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider() -> AsyncIterator[Upstream]:
    async for server in serving(None):
        yield server


@pytest.fixture
def upstream(provider: Upstream) -> Upstream:
    provider.calls.clear()
    provider.script = answer
    return provider


@pytest.fixture(scope="module")
def with_anthropic(
    tmp_path_factory: pytest.TempPathFactory, models_ready: Path, provider: Upstream
) -> Iterator[Daemon]:
    yield from _daemon(tmp_path_factory.mktemp("anthropic"), models_ready, provider, "anthropic", "claude-3-opus")


@pytest.fixture(scope="module")
def with_openai(tmp_path_factory: pytest.TempPathFactory, models_ready: Path, provider: Upstream) -> Iterator[Daemon]:
    yield from _daemon(tmp_path_factory.mktemp("openai"), models_ready, provider, "openai", "gpt-4")


def _daemon(home: Path, models: Path, provider: Upstream, name: str, model: str) -> Iterator[Daemon]:
    (home / "credentials").mkdir()
    (home / "credentials" / name).write_text(KEY)
    settings = {"CLOUD__MODEL": model, "CLOUD__BASE_URL": provider.base_url(name), "CLOUD__MAX_RETRIES": "0"}
    with running_daemon(home, models, settings, home / "credentials") as daemon:
        wait_until(lambda: daemon.call("GET", "/healthz")["local"]["state"] == "ready")
        yield daemon


async def post(daemon: Daemon, path: str, body: object, **headers: str) -> tuple[int, Any, Any]:
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=240)) as session,
        session.post(daemon.url + path, json=body, headers=headers) as response,
    ):
        return response.status, await response.json(), response.headers


async def test_anthropic_is_sent_what_its_client_sent(with_anthropic: Daemon, upstream: Upstream) -> None:
    beta = {"anthropic-version": "2023-06-01", "anthropic-beta": "context-management-2025-06-27"}
    status, said, headers = await post(with_anthropic, "/v1/messages?beta=true", BODY, **UP, **beta, **OWN)
    sent = upstream.calls[0]

    assert status == 200, said
    assert sent.body == {**BODY, "model": "claude-opus-5", "stream": True}
    assert sent.headers["anthropic-beta"] == beta["anthropic-beta"]
    assert sent.headers["x-api-key"] == KEY
    assert [name for name, value in sent.headers.items() if value in {*OWN.values(), *UP.values()}] == []
    assert said["content"] == [{"type": "text", "text": "Hello"}]
    assert headers["request-id"] == headers["x-upcall-request-id"]


async def test_overrides_in_the_metadata_are_heeded_and_travel_no_further(
    with_anthropic: Daemon, upstream: Upstream
) -> None:
    wishes = {"x-upcall-route": "cloud", "upcall": {"explain": True}, "user_id": "user_1"}
    _, said, _ = await post(with_anthropic, "/v1/messages", {**BODY, "metadata": wishes})

    assert said["x_upcall"]["reason"] == "forced_cloud"
    assert upstream.calls[0].body["metadata"] == {"user_id": "user_1"}


CALLER = {"type": "code_execution_20250825", "tool_id": "srvtoolu_1"}
CLEARED = {"applied_edits": [{"type": "clear_tool_uses_20250919", "cleared_tool_uses": 2}]}


async def _think(call: Call) -> None:
    usage = {"input_tokens": 7, "output_tokens": 1, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 20}
    begin: Any = call.begin[0]
    await call.send(
        {**begin, "message": {**begin["message"], "usage": usage}},
        {"type": "content_block_start", "index": 0,
         "content_block": {"type": "thinking", "thinking": "", "signature": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "H"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "m."}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2ln"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "redacted_thinking", "data": "ZW5j"}},
        {"type": "content_block_stop", "index": 1},
        {"type": "content_block_start", "index": 2, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "text_delta", "text": "Four."}},
        {"type": "content_block_stop", "index": 2},
        {"type": "content_block_start", "index": 3,
         "content_block": {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}, "caller": CALLER}},
        {"type": "content_block_delta", "index": 3, "delta": {"type": "input_json_delta", "partial_json": '{"ci'}},
        {"type": "content_block_delta", "index": 3, "delta": {"type": "input_json_delta", "partial_json": 'ty":1}'}},
        {"type": "content_block_stop", "index": 3},
        {"type": "message_delta", "delta": {"stop_reason": "pause_turn", "stop_sequence": None},
         "usage": {"output_tokens": 30}, "context_management": CLEARED},
        {"type": "message_stop"},
    )  # fmt: skip


async def test_thinking_and_the_caches_usage_come_back_from_anthropic(
    with_anthropic: Daemon, upstream: Upstream
) -> None:
    upstream.script = _think
    client = anthropic.AsyncAnthropic(base_url=with_anthropic.url, api_key="none", max_retries=0)
    asked: Any = {"model": "cloud", "max_tokens": 2000, "messages": [{"role": "user", "content": "hello"}]}
    whole = await client.messages.create(**asked)
    async with client.messages.stream(**asked) as stream:
        ends = [event.to_dict() async for event in stream if event.type == "message_delta"]
        streamed = await stream.get_final_message()

    assert whole.to_dict()["context_management"] == ends[0]["context_management"] == CLEARED
    for said in (whole, streamed):
        assert [block.to_dict() for block in said.content] == [
            {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "ZW5j"},
            {"type": "text", "text": "Four."},
            {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": 1}, "caller": CALLER},
        ]
        assert said.stop_reason == "pause_turn"
        assert (said.usage.input_tokens, said.usage.output_tokens) == (7, 30)
        assert (said.usage.cache_read_input_tokens, said.usage.cache_creation_input_tokens) == (100, 20)


async def test_another_cloud_is_sent_the_same_in_openais_words(with_openai: Daemon, upstream: Upstream) -> None:
    functions = {**BODY, "tools": [TOOL], "tool_choice": {**CHOICE, "name": "get_weather", "type": "tool"}}
    functions["output_config"] = {"format": {"type": "json_schema", "schema": OPTIONAL}}
    await post(with_openai, "/v1/messages", functions, **UP)
    sent = upstream.calls[0].body
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}

    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "São 3 maçãs?"}, image]},
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [
                {"id": "toolu_1", "type": "function",
                 "function": {"name": "get_weather", "arguments": '{"city": "São Paulo"}'}},
                {"id": "toolu_2", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "4 degrees"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": "Error: no such city"},
        {"role": "user", "content": [image, {"type": "text", "text": "And now?"}]},
    ]  # fmt: skip
    function = {"name": "get_weather", "description": "Tell.", "parameters": TOOL["input_schema"]}
    assert sent["tools"] == [{"type": "function", "function": function}]
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "get_weather"}}
    assert (sent["stop"], sent["user"], sent["parallel_tool_calls"]) == (["END"], "user_1", False)
    assert sent["response_format"]["json_schema"] == {"name": "answer", "schema": OPTIONAL}
    assert not {"thinking", "context_management", "x_new", "system", "metadata"} & sent.keys()


@pytest.mark.parametrize("named", ["output_config", "output_format"])
async def test_a_schema_for_the_answer_is_heeded_under_its_older_name_too(named: str) -> None:
    form = {"type": "json_schema", "schema": OPTIONAL}
    body = {**_hello("local"), named: {"format": form, "effort": "low"} if named == "output_config" else form}
    schema = MessagesBody.model_validate(body).request(body, {}).response_format

    assert schema == {"type": "json_schema", "json_schema": {"name": "answer", "schema": OPTIONAL}}


async def test_an_account_is_named_to_another_cloud_in_no_more_than_it_takes(
    with_openai: Daemon, upstream: Upstream
) -> None:
    long = f"user_{'0' * 64}_account__session_{'1' * 36}"  # as Claude Code has it
    for user in (long, long, f"{long}2", "u" * 64):
        await post(with_openai, "/v1/messages", {**BODY, "tools": [TOOL], "metadata": {"user_id": user}}, **UP)
    said = [call.body["user"] for call in upstream.calls]
    assert [len(user) for user in said] == [64] * 4
    assert said[0] == said[1] != said[2]
    assert said[3] == "u" * 64


async def test_anthropics_own_tools_go_up_and_are_kept_from_another_cloud(
    with_openai: Daemon, upstream: Upstream
) -> None:
    search = {"type": "web_search_20250305", "name": "web_search"}
    choice = {"type": "tool", "name": "web_search", **CHOICE}
    _, _, headers = await post(
        with_openai, "/v1/messages", {**_hello("auto"), "tools": [search], "tool_choice": choice}
    )
    await post(with_openai, "/v1/messages", {**_hello("auto"), "tools": [search, TOOL], "tool_choice": choice})
    alone, beside = (call.body for call in upstream.calls)

    assert headers["x-upcall-reason"] == "tools"
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & alone.keys()
    assert [tool["function"]["name"] for tool in beside["tools"]] == ["get_weather"]
    assert beside["tool_choice"] == "auto"


async def test_a_stream_says_first_what_the_prompt_comes_to(with_anthropic: Daemon, upstream: Upstream) -> None:
    upstream.script = _think
    client = anthropic.AsyncAnthropic(base_url=with_anthropic.url, api_key="none", max_retries=0)
    async with client.messages.stream(**_hello("cloud")) as stream:
        [begin] = [event.message.usage async for event in stream if event.type == "message_start"]

    assert (begin.input_tokens, begin.cache_read_input_tokens, begin.output_tokens) == (27, 100, 0)


async def test_a_stream_of_the_local_model_says_so_too(upcall: Daemon) -> None:
    client = anthropic.AsyncAnthropic(base_url=upcall.url, api_key="none", max_retries=0)
    async with client.messages.stream(**_hello("local")) as stream:
        [begin] = [event.message.usage async for event in stream if event.type == "message_start"]
        whole = (await stream.get_final_message()).usage

    assert begin.input_tokens == whole.input_tokens + (whole.cache_read_input_tokens or 0) > 5


async def test_a_cut_stream_ends_in_anthropics_error_event(with_anthropic: Daemon, upstream: Upstream) -> None:
    async def cut(call: Call) -> None:
        await call.send(*call.begin, call.text("Hel"))
        call.cut()

    upstream.script = cut
    client = anthropic.AsyncAnthropic(base_url=with_anthropic.url, api_key="none", max_retries=0)
    with pytest.raises(anthropic.APIStatusError, match="broke off"):
        async with client.messages.stream(**_hello("cloud")) as stream:
            await stream.get_final_message()


async def test_a_refusal_of_anthropic_reaches_the_client_as_its_own(with_anthropic: Daemon, upstream: Upstream) -> None:
    async def refuse(call: Call) -> None:
        error = {"type": "invalid_request_error", "message": "thinking.budget_tokens is too small"}
        await call.refuse(400, {"type": "error", "error": error})

    upstream.script = refuse
    status, said, _ = await post(with_anthropic, "/v1/messages", _hello("cloud"))

    assert (status, said["error"]["type"]) == (400, "invalid_request_error")
    assert "budget_tokens" in said["error"]["message"]


async def test_a_prompt_as_long_as_claude_codes_goes_where_it_fits(with_anthropic: Daemon, upstream: Upstream) -> None:
    upstream.script = answer
    long = {**_hello("claude-sonnet-5"), "system": [{"type": "text", "text": "You write programs. " * 5000}]}
    status, _, headers = await post(with_anthropic, "/v1/messages?beta=true", long)

    assert (status, headers["x-upcall-reason"]) == (200, "context_length")
    assert upstream.calls[0].body["system"] == long["system"]


async def test_without_a_cloud_a_long_prompt_is_an_error_and_never_cut_short(upcall: Daemon) -> None:
    long = {**_hello("claude-sonnet-5"), "system": "You write programs. " * 5000}
    status, said, _ = await post(upcall, "/v1/messages", long)

    assert (status, said["error"]["type"]) == (400, "invalid_request_error")
    assert "context" in said["error"]["message"]


async def test_tokens_that_no_model_is_there_to_count_are_no_fault_of_the_request(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(64))
    daemon = await asyncio.to_thread(start_daemon, LOCAL__MODEL=str(broken), ready=False)
    status, said, _ = await post(daemon, "/v1/messages/count_tokens", _hello("local"))

    assert (status, said["error"]["type"]) == (503, "api_error")
    assert said["error"]["message"].startswith("Tokens cannot be counted now: The local model")


RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": {"degrees": 4}}


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "text"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id"),
        ({"messages": [{"role": "user", "content": [RESULT]}]}, "tool_result"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64"}}]}]}, "media_type"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"tools": [{"name": "f"}]}, "input_schema"),
        ({"tool_choice": {"type": "tool"}}, "name"),
        ({"upcall": {"speed": "high"}}, "route, threshold"),
    ],
)
async def test_a_malformed_message_is_a_400_that_names_the_mistake(
    upcall: Daemon, change: dict[str, Any], hint: str
) -> None:
    status, said, headers = await post(upcall, "/v1/messages", {**_hello("local"), **change})

    assert (status, said["type"], said["error"]["type"]) == (400, "error", "invalid_request_error")
    assert hint in said["error"]["message"]
    assert said["request_id"] == headers["request-id"]


def _hello(model: str) -> Any:
    return {"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions", "/api/chat"])
async def test_every_wire_has_its_own_errors_also_for_what_never_reaches_it(upcall: Daemon, path: str) -> None:
    faults: list[tuple[int, str, Any]] = [
        (415, path, {"data": b"{}", "headers": {"Content-Type": "text/plain"}}),
        (403, path, {"json": {}, "headers": {"Host": "attacker.example"}}),
        (404, f"{path}/nothing", {"json": {}}),
        (413, path, {"json": {"x": "y" * 9_000_000}}),
        (400, path, {"data": b"{", "headers": {"Content-Type": "application/json"}}),
    ]
    async with aiohttp.ClientSession() as session:
        for expected, target, request in faults:
            async with session.post(upcall.url + target, **request) as response:
                assert response.status == expected
                said = json.loads(await response.read())
                message = said["error"] if path.startswith("/api/") else said["error"]["message"]
                assert isinstance(message, str)
                assert (said.get("type") == "error") == (path == "/v1/messages")
                assert ("code" in said["error"]) == path.endswith("completions")
