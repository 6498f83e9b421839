"""Requests that reach Anthropic as their client sent them: what comes back, and what becomes of faults on that way."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from models.interface import ChatRequest, FailureCode, Finish, Native, Usage, Verbatim
from tests.emulators.upstream import Call, Script, Upstream
from tests.models.cloud.asking import events, failure, text
from tests.models.cloud.conftest import Cloud
from tests.models.cloud.misbehaving import SECRET, error, shown_nothing

BODY: Mapping[str, Any] = {
    "model": "claude-opus-4-5",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "hello"}],
    "a_field_of_tomorrow": {"kept": True},
}
HEADERS = {"anthropic-beta": "some-feature-2026-01-01"}
REQUEST = ChatRequest(messages=BODY["messages"], verbatim=Verbatim("anthropic", BODY, HEADERS))


async def test_body_and_headers_arrive_as_they_were_sent(cloud: Cloud, upstream: Upstream) -> None:
    model = cloud("anthropic", upstream.base_url("anthropic"), key=SECRET)

    got = await events(model, REQUEST)

    assert text(got) == "Hello"
    assert Finish("stop") in got
    assert got[-1] == Usage(7, 3)
    [call] = upstream.calls
    assert call.path == "/v1/messages"
    assert call.body == {**BODY, "model": "claude-sonnet-5", "stream": True}
    assert call.headers["x-api-key"] == SECRET
    assert call.headers["anthropic-version"]
    assert call.headers.items() >= HEADERS.items()
    assert not any(name.startswith("x-stainless") for name in call.headers)


async def test_what_has_no_name_in_canonical_form_comes_back_as_it_is(cloud: Cloud, upstream: Upstream) -> None:
    thought = {"type": "thinking_delta", "thinking": "Hm.", "a_field_of_tomorrow": 1}

    async def thinking(call: Call) -> None:
        await call.send(
            call.begin[0],
            {"type": "ping"},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
            {"type": "content_block_delta", "index": 0, "delta": thought},
            *call.end,
        )

    upstream.script = thinking
    got = await events(cloud("anthropic", upstream.base_url("anthropic")), REQUEST)

    native = [event.event for event in got if isinstance(event, Native)]
    assert {"type": "content_block_delta", "delta": thought} in native
    assert native[-1]["usage"]["output_tokens"] == 3


def refusing(status: int, kind: str, **headers: str) -> Script:
    return lambda call: error(call, status, kind, f"Not with {SECRET}.", **headers)


async def hang(call: Call) -> None:
    await call.start()
    await asyncio.sleep(60)


async def cut(call: Call) -> None:
    await call.send(*call.begin, call.text("Hel"))
    call.cut()


async def end(call: Call) -> None:
    await call.send(*call.begin, call.text("Hel"))


async def overloaded(call: Call) -> None:
    await call.send(*call.begin, call.text("Hel"))
    await call.send({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})


async def malformed(call: Call) -> None:
    await call.send(*call.begin, call.text("Hel"))
    await call.write(b"event: x\ndata: {not json}\n\n")


async def no_event(call: Call) -> None:
    await call.send(*call.begin, call.text("Hel"))
    await call.write(b"data: " + json.dumps([1, 2]).encode() + b"\n\n")


async def no_text(call: Call) -> None:
    await call.send(*call.begin, call.text("Hel"))
    await call.send({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": None}})
    await call.send(*call.end)


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        (refusing(401, "authentication_error"), FailureCode.AUTHENTICATION, ""),
        (refusing(429, "rate_limit_error", **{"Retry-After": "600"}), FailureCode.RATE_LIMITED, ""),
        (refusing(529, "overloaded_error"), FailureCode.UPSTREAM, ""),
        (refusing(307, "moved", Location="http://127.0.0.1:9/"), FailureCode.UNAVAILABLE, ""),
        (hang, FailureCode.TIMEOUT, ""),
        (cut, FailureCode.UPSTREAM, "Hel"),
        (end, FailureCode.UPSTREAM, "Hel"),
        (overloaded, FailureCode.UPSTREAM, "Hel"),
        (malformed, FailureCode.UPSTREAM, "Hel"),
        (no_event, FailureCode.UPSTREAM, "Hel"),
        (no_text, FailureCode.UPSTREAM, "Hel"),
    ],
)
async def test_a_fault_ends_as_it_does_for_other_requests(
    cloud: Cloud, upstream: Upstream, script: Script, code: FailureCode, said: str
) -> None:
    upstream.script = script
    wait = 5 if script is hang else 60
    model = cloud("anthropic", upstream.base_url("anthropic"), key=SECRET, first_byte_timeout=wait)

    got = await asyncio.wait_for(events(model, REQUEST), 60)

    assert text(got) == said
    assert failure(got).code is code
    assert shown_nothing(failure(got).message)
    assert len(upstream.calls) == 1
