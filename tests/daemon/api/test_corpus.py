"""What goes to the provider is what the client meant: requests as clients record them, through the whole daemon.

The differences that docs/cloud.md lists are written out here, request by request; any other is one too many.
"""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.daemon.harness import Daemon, running_daemon, wait_until
from tests.emulators.servers import KEY
from tests.emulators.upstream import Upstream, answer, serving
from tests.models.cloud.test_requests import BODIES, CALL, HELLO, PIXEL, TOOL, said

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECOND_CALL = {"id": "call_2", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Évora"}'}}
OPENAI: dict[str, dict[str, Any]] = BODIES | {
    "system and developer": {
        "messages": [{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}, HELLO]
    },
    "parallel tool calls": {
        "messages": [
            HELLO,
            {"role": "assistant", "content": None, "tool_calls": [CALL, SECOND_CALL]},
            {"role": "tool", "tool_call_id": "call_2", "content": '{"°C": 21.50}'},
            {"role": "tool", "tool_call_id": "call_1", "content": ""},
        ],
        "tools": [TOOL], "parallel_tool_calls": True,
    },
    "arguments that are no JSON": {
        "messages": [
            HELLO,
            {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": '{"a": '}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "error"},
        ],
    },
    "picture between texts": {
        "messages": [said([
            {"type": "text", "text": "What"}, {"type": "image_url", "image_url": {"url": PIXEL}},
            {"type": "text", "text": "is it?"},
        ])]
    },
    "spoken answer": {
        "messages": [HELLO], "modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}
    },
    "functions of old": {
        "messages": [
            HELLO, {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "1"},
        ],
        "functions": [{"name": "f", "parameters": {"type": "object", "properties": {}}}], "function_call": "auto",
    },
    "small and large numbers": {"messages": [HELLO], "x_new": [1e-7, 1.5e300, -0.0, 10**30, 0.1]},
    "order of keys": {"messages": [{"content": "hello", "role": "user"}], "x_new": {"b": 1, "a": {"d": 2, "c": 3}}},
    "streamed": {"messages": [HELLO], "stream": True, "stream_options": {"include_usage": False}},
    "routed by its metadata": {"messages": [HELLO], "metadata": {"k": "v"}},
}  # fmt: skip

# As sent, and as the provider of the same format must get it where that differs.
SAID_OTHERWISE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one stop": ({"messages": [HELLO], "stop": "END"}, {"messages": [HELLO], "stop": ["END"]}),
    "what is the default": (
        {"messages": [HELLO], "n": 1, "logprobs": False, "tools": [], "temperature": None, "stop": None},
        {"messages": [HELLO]},
    ),
    "both limits": (
        {"messages": [HELLO], "max_tokens": 20, "max_completion_tokens": 10},
        {"messages": [HELLO], "max_tokens": 10},
    ),
    "wishes": (
        {"messages": [HELLO], "upcall": {"explain": True}, "metadata": {"k": "v", "x-upcall-sensitive": "allow"}},
        {"messages": [HELLO], "metadata": {"k": "v"}},
    ),
}  # fmt: skip

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL.split(",")[1]}}
CACHED = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
LOOK_UP = {"name": "look_up", "description": "Procura.", "input_schema": {"type": "object", "properties": {}}}
ANTHROPIC: dict[str, dict[str, Any]] = {
    "bare": {"messages": [HELLO]},
    "system": {"messages": [HELLO], "system": "Be brief."},
    "system in blocks": {"messages": [HELLO], "system": [{"type": "text", "text": "Be brief.", **CACHED}]},
    "unicode": {"messages": [said("São 3 maçãs, 你好 👩‍👩‍👧‍👦 \u0000 \u2028")]},
    "image": {"messages": [said([IMAGE, {"type": "text", "text": "What is it?", **CACHED}])]},
    "image by address": {
        "messages": [said([{"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}])]
    },
    "document": {
        "messages": [said([{
            "type": "document", "title": "a", "citations": {"enabled": True},
            "source": {"type": "text", "media_type": "text/plain", "data": "Four."},
        }])]
    },
    "tools": {
        "messages": [HELLO], "tools": [{**LOOK_UP, **CACHED}, {"type": "web_search_20250305", "name": "web_search"}],
        "tool_choice": {"type": "tool", "name": "look_up", "disable_parallel_tool_use": True},
    },
    "tool results": {
        "messages": [
            HELLO,
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
                {"type": "redacted_thinking", "data": "ZW5j"},
                {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {"b": 1, "a": [None, 0.5]}},
                {"type": "tool_use", "id": "toolu_2", "name": "look_up", "input": {}},
            ]},
            said([
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "4"}, IMAGE]},
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": "none", "is_error": True},
            ]),
        ],
        "tools": [LOOK_UP],
    },
    "sampling": {"messages": [HELLO], "temperature": 0.0, "top_p": 0.5, "top_k": 3, "stop_sequences": ["\n\n", "END"]},
    "thinking": {"messages": [HELLO], "thinking": {"type": "enabled", "budget_tokens": 1024}},
    "unknown fields": {
        "messages": [{**HELLO, "x_mine": 1}], "metadata": {"user_id": "u"}, "service_tier": "auto",
        "mcp_servers": [{"type": "url", "url": "https://example.com", "name": "a"}], "x_new": {"deep": [1, None, 1.5]},
    },
    "begun answer": {"messages": [HELLO, {"role": "assistant", "content": "{"}]},
    "streamed": {"messages": [HELLO], "stream": True},
}  # fmt: skip


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
def with_openai(tmp_path_factory: pytest.TempPathFactory, models_ready: Path, provider: Upstream) -> Iterator[Daemon]:
    yield from _daemon(tmp_path_factory.mktemp("openai"), models_ready, provider, "openai")


@pytest.fixture(scope="module")
def with_anthropic(
    tmp_path_factory: pytest.TempPathFactory, models_ready: Path, provider: Upstream
) -> Iterator[Daemon]:
    yield from _daemon(tmp_path_factory.mktemp("anthropic"), models_ready, provider, "anthropic")


def _daemon(home: Path, models: Path, provider: Upstream, name: str) -> Iterator[Daemon]:
    (home / "credentials").mkdir()
    (home / "credentials" / name).write_text(KEY)
    settings = {
        "CLOUD__MODEL": "strong", "CLOUD__PROVIDER": name, "CLOUD__BASE_URL": provider.base_url(name),
        "CLOUD__MAX_RETRIES": "0", "SENSITIVE__ACTION": "off",
    }  # fmt: skip
    with running_daemon(home, models, settings, home / "credentials") as daemon:
        wait_until(lambda: daemon.call("GET", "/healthz")["local"]["state"] == "ready")
        yield daemon


@pytest.mark.parametrize("name", OPENAI)
async def test_openai_is_sent_what_its_client_sent(with_openai: Daemon, upstream: Upstream, name: str) -> None:
    body = OPENAI[name]
    await _post(with_openai, "/v1/chat/completions", {**body, "model": "cloud"})
    [sent] = upstream.calls
    # The one limit goes by the name that servers of this format all know.
    limit = {"max_tokens": body["max_completion_tokens"]} if "max_completion_tokens" in body else {}
    expected = {key: value for key, value in body.items() if key != "max_completion_tokens"} | limit
    assert _same(sent.body, _for_openai(expected))


@pytest.mark.parametrize("name", SAID_OTHERWISE)
async def test_what_openai_is_sent_in_other_words_is_listed(with_openai: Daemon, upstream: Upstream, name: str) -> None:
    body, expected = SAID_OTHERWISE[name]
    await _post(with_openai, "/v1/chat/completions", {**body, "model": "cloud"})
    [sent] = upstream.calls
    assert _same(sent.body, _for_openai(expected))


@pytest.mark.parametrize("name", ANTHROPIC)
async def test_anthropic_is_sent_what_its_client_sent(with_anthropic: Daemon, upstream: Upstream, name: str) -> None:
    body = {"max_tokens": 100, **ANTHROPIC[name]}
    await _post(with_anthropic, "/v1/messages", {**body, "model": "cloud"})
    [sent] = upstream.calls
    assert _same(sent.body, {**body, "model": "strong", "stream": True})


def _for_openai(body: dict[str, Any]) -> dict[str, Any]:
    options = {**body.get("stream_options", {}), "include_usage": True}
    return {**body, "model": "strong", "stream": True, "stream_options": options}


def _same(one: Any, other: Any) -> bool:
    """Equal down to the order of keys, but for those at the top; numbers by their value, and no number is a boolean."""
    return json.dumps(_numbers(one), sort_keys=False) == json.dumps(
        _numbers({name: other[name] for name in one if name in other} | other), sort_keys=False
    )


def _numbers(value: Any) -> Any:
    """With whole floats as integers: JSON has one kind of number, and 2 and 2.0 are the same."""
    if isinstance(value, dict):
        return {name: _numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


async def _post(daemon: Daemon, path: str, body: dict[str, Any]) -> None:
    data = json.dumps(body, ensure_ascii=False).encode()
    headers = {"Content-Type": "application/json", "x-upcall-route": "cloud"}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=240)) as session,
        session.post(daemon.url + path, data=data, headers=headers) as response,
    ):
        said = await response.text()
        # The upstream gives one answer where several are asked for.
        assert response.status == (200 if body.get("n", 1) == 1 else 502), said
