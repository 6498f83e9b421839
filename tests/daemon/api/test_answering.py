"""Streams that begin with a wait: who answers is named once nobody else can."""

import http.client
import json
import re
from asyncio import sleep, to_thread
from typing import Any

from daemon.api.answering import QUIET_SECONDS
from tests.daemon.conftest import Escalating, StartDaemon
from tests.daemon.harness import Daemon, wait_until
from tests.emulators.upstream import Call, Upstream

WORDS = "word " * 20_000
"""More than the local model takes, as it says itself where it was not loaded before."""
LONG = [{"role": "user", "content": WORDS}]
TOLD_TO_WAIT: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": LONG},
    "/v1/messages": {"messages": LONG, "max_tokens": 12},
    "/v1/responses": {"input": WORDS},
}
KEPT_WAITING: dict[str, dict[str, Any]] = {"/v1/completions": {"prompt": WORDS}, "/api/chat": {"messages": LONG}}
"""Formats that have no word for it."""
HELLO = [{"role": "user", "content": "hello"}]
WHO = ("x-upcall-route", "x-upcall-model", "x-upcall-reason")


def unloaded(daemon: Daemon) -> Daemon:
    wait_until(lambda: daemon.call("GET", "/healthz")["local"]["state"] == "unloaded")
    return daemon


def stream(daemon: Daemon, path: str, body: dict[str, Any], model: str) -> tuple[Any, str]:
    """Headers and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.server.port, timeout=240)
    try:
        said = json.dumps({"model": model, "stream": True, **body})
        connection.request("POST", path, said, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
        assert response.status == 200, text
        return response.headers, text
    finally:
        connection.close()


async def test_a_stream_that_turns_to_the_cloud_after_a_wait_names_the_cloud_alone(
    escalating: Escalating, upstream: Upstream
) -> None:
    daemon = await to_thread(escalating, upstream.base_url("openai"), LOCAL__IDLE_SECONDS="1")
    for path, body in {**TOLD_TO_WAIT, **KEPT_WAITING}.items():
        await to_thread(unloaded, daemon)
        headers, text = await to_thread(stream, daemon, path, body, "router-mf-1")
        waited = path in TOLD_TO_WAIT

        assert text.startswith(": ") is waited, path
        assert set(re.findall(r'"model":"([^"]*)"', text)) == {"gpt-4"}, path
        assert {headers[name] for name in WHO} == ({None} if waited else {"cloud", "gpt-4", "context_length"}), path
        assert headers["x-upcall-request-id"]
        assert "Hel" in text


def test_a_stream_that_cannot_turn_names_its_model_at_once(start_daemon: StartDaemon) -> None:
    daemon = unloaded(start_daemon(LOCAL__IDLE_SECONDS="1", LOCAL__MAX_TOKENS="4"))
    headers, text = stream(daemon, "/v1/chat/completions", {"messages": HELLO}, "local")

    assert text.startswith(": ")
    assert [headers[name] for name in WHO] == ["local", "smollm2-135m", "forced_local"]


async def test_a_provider_that_says_it_is_at_work_keeps_a_stream_alive_and_takes_no_names_from_others(
    escalating: Escalating, upstream: Upstream
) -> None:
    pause = 0.0

    async def ping(call: Call) -> None:
        await call.send(*call.begin)
        await sleep(pause)
        await call.send({"type": "ping"}, call.text("Hel"), {"type": "ping"}, call.text("lo"), *call.end)

    upstream.script = ping
    daemon = await to_thread(escalating, upstream.base_url("anthropic"), "anthropic")
    body = {"messages": HELLO, "max_tokens": 12}
    await to_thread(stream, daemon, "/v1/messages", body, "cloud")  # starts the process for the cloud
    headers, text = await to_thread(stream, daemon, "/v1/messages", body, "cloud")
    pause = QUIET_SECONDS + 1
    later, slow = await to_thread(stream, daemon, "/v1/messages", body, "cloud")

    assert [headers[name] for name in WHO] == ["cloud", "claude-3-opus", "forced_cloud"]
    assert {later[name] for name in WHO} == {None}
    assert slow.startswith(": waiting\n\nevent: message_start")
    for said in (text, slow):
        assert 'Hel"}}\n\nevent: ping' in said
