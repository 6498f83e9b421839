"""A provider that misbehaves, seen from the client and in the ledger: every row of the table in docs/cloud.md."""

import asyncio
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from daemon.accounts.prices import Price
from models.cloud.size import most_tokens
from models.interface import ChatRequest, Usage
from tests.daemon.conftest import Escalating
from tests.daemon.harness import Daemon, wait_until
from tests.emulators.upstream import Call, Script, Upstream, answer, certificate, serving

HELLO: Any = [{"role": "user", "content": "hello"}]
ANSWER = 100
"""Tokens that each request asks for at most."""
PRICE = Price(prompt=10e-6, completion=30e-6)
PRICES = json.dumps({"gpt-4": {"prompt": 10, "completion": 30}})
MOST = PRICE.most(most_tokens(ChatRequest(messages=HELLO)), ANSWER)
USED = PRICE.of(Usage(7, 3))
"""What the upstream says that it counted."""
SHORT = "5"
"""Seconds, for what never comes: a hang would last until the defaults of 30 and 60 s, and the test's own end."""
WIDE = 50_000_000


@dataclass(frozen=True)
class End:
    """How a request must end, for the client and in the ledger."""

    outcome: str = "ok"
    error: str | None = None
    """Why not by the model that was chosen."""
    calls: int = 1
    cost: float = 0.0
    estimated: bool = False


HERE = "answered here"
"""What the text is where the local model answers."""


@dataclass(frozen=True)
class Fault:
    script: Script
    text: str
    """What the client reads before the end."""
    end: End
    settings: dict[str, str] = field(default_factory=dict)


def refusing(status: int, **headers: str) -> Script:
    async def script(call: Call) -> None:
        await call.refuse(status, {"error": {"message": "no", "type": "some_error"}}, **headers)

    return script


async def hang(call: Call) -> None:
    await asyncio.Event().wait()


async def hang_after_headers(call: Call) -> None:
    await call.start()
    await hang(call)


async def hang_midway(call: Call) -> None:
    await call.send(*call.begin, call.text("Hel"))
    await hang(call)


async def cut_at_once(call: Call) -> None:
    call.cut()
    raise ConnectionError


async def cut_midway(call: Call) -> None:
    await call.send(*call.begin, call.text("Hel"))
    call.cut()


async def end_midway(call: Call) -> None:
    await call.send(*call.begin, call.text("Hel"))


async def malformed_at_once(call: Call) -> None:
    await call.write(b"data: {not json}\n\n")


async def malformed_midway(call: Call) -> None:
    await call.send(*call.begin, call.text("Hel"))
    await call.write(b"data: {not json}\n\n")


async def overloaded_midway(call: Call) -> None:
    await call.send(*call.begin, call.text("Hel"))
    await call.send({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})


async def bytewise(call: Call) -> None:
    pieces: list[bytes] = []
    write = call.write

    async def keep(data: bytes) -> None:
        pieces.append(data)

    call.write = keep  # type: ignore[method-assign]
    await call.send(*call.begin, call.text("Olá 👋"), *call.end)
    for byte in b"".join(pieces):
        await write(bytes([byte]))


async def wide(call: Call) -> None:
    await call.send(*call.begin, call.text("x" * WIDE), *call.end)


async def slowly(call: Call) -> None:
    """Longer in all than the time that is allowed between two pieces."""
    await call.send(*call.begin)
    for _ in range(24):
        await asyncio.sleep(0.5)
        await call.send(call.text("x"))
    await call.send(*call.end)


FIRST, BETWEEN = {"CLOUD__TIMEOUTS__FIRST_BYTE": SHORT}, {"CLOUD__TIMEOUTS__BETWEEN": SHORT}
FAULTS = {
    "401": Fault(refusing(401), HERE, End(error="authentication")),
    "429 for a moment": Fault(
        refusing(429, **{"Retry-After": "0"}), HERE, End(error="rate_limited", calls=2)
    ),
    "429 for long": Fault(refusing(429, **{"Retry-After": "600"}), HERE, End(error="rate_limited")),
    "500": Fault(refusing(500), HERE, End(error="upstream", calls=2)),
    "529": Fault(refusing(529), HERE, End(error="upstream", calls=2)),
    "hang": Fault(hang, HERE, End(error="timeout", cost=MOST, estimated=True), FIRST),
    "hang after the headers": Fault(
        hang_after_headers, HERE, End(error="timeout", cost=MOST, estimated=True), FIRST
    ),
    "hang midway": Fault(hang_midway, "Hel", End("timeout", "timeout", cost=MOST, estimated=True), BETWEEN),
    "cut at once": Fault(cut_at_once, HERE, End(error="unavailable", calls=2, cost=2 * MOST, estimated=True)),
    "cut midway": Fault(cut_midway, "Hel", End("upstream", "upstream", cost=MOST, estimated=True)),
    "end midway": Fault(end_midway, "Hel", End("upstream", "upstream", cost=MOST, estimated=True)),
    "malformed at once": Fault(malformed_at_once, HERE, End(error="upstream", cost=MOST, estimated=True)),
    "malformed midway": Fault(
        malformed_midway, "Hel", End("upstream", "upstream", cost=MOST, estimated=True)
    ),
    "overloaded midway": Fault(
        overloaded_midway, "Hel", End("upstream", "upstream", cost=MOST, estimated=True)
    ),
    "one byte at a time": Fault(bytewise, "Olá 👋", End(cost=USED)),
    "a line of 50 MB": Fault(wide, "x" * WIDE, End(cost=USED)),
    "slow tokens": Fault(slowly, "x" * 24, End(cost=USED), BETWEEN),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_ends_in_the_documented_outcome_and_costs_what_is_recorded(
    shared: Escalating, upstream: Upstream, name: str
) -> None:
    fault = FAULTS[name]
    upstream.script = fault.script
    daemon = shared(upstream.base_url("openai"), **_settings(fault.settings))

    await _ends(daemon, fault)
    assert len(upstream.calls) == fault.end.calls
    if "hang" in name:
        # A provider that goes on computing for nobody may bill for it.
        await asyncio.wait_for(upstream.calls[0].left.wait(), 60)


async def test_a_refused_connection_is_answered_here_and_costs_nothing(escalating: Escalating) -> None:
    daemon = escalating("http://127.0.0.1:9/v1", **_settings({}))
    await _ends(daemon, Fault(answer, HERE, End(error="unavailable")))


async def test_an_endpoint_without_tls_is_answered_for_here_and_sees_no_prompt(
    escalating: Escalating, upstream: Upstream
) -> None:
    daemon = escalating(upstream.base_url("openai").replace("http:", "https:"), **_settings({}))
    await _ends(daemon, Fault(answer, HERE, End(error="unavailable")))
    assert upstream.calls == []


@pytest.mark.parametrize(
    ("host", "trusted", "end"),
    [
        ("127.0.0.1", False, End(error="unavailable")),
        ("api.openai.com", True, End(error="unavailable")),
        ("127.0.0.1", True, End(cost=USED)),
    ],
    ids=["unknown authority", "another host", "authority from the settings"],
)
async def test_a_certificate_is_trusted_only_where_its_host_and_its_authority_are_right(
    escalating: Escalating, tmp_path: Path, host: str, trusted: bool, end: End
) -> None:
    both, authority = certificate(tmp_path, host)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    settings = {"CLOUD__CA_BUNDLE": str(authority)} if trusted else {}
    async for server in serving(context):
        daemon = escalating(server.base_url("openai"), **_settings(settings))
        await _ends(daemon, Fault(answer, HERE if end.error else "Hello", end))
        assert len(server.calls) == (0 if end.error else 1)


async def test_a_proxy_from_the_settings_carries_the_request(escalating: Escalating, upstream: Upstream) -> None:
    daemon = escalating("http://provider.invalid/v1", **_settings({"CLOUD__PROXY": upstream.url}))
    await _ends(daemon, Fault(answer, "Hello", End(cost=USED)))
    assert upstream.calls[0].headers["host"] == "provider.invalid"


def _settings(more: dict[str, str]) -> dict[str, str]:
    usual = {"LOCAL__MAX_TOKENS": "2", "CLOUD__MAX_RETRIES": "1", "CLOUD__IDLE_SECONDS": "0.5"}
    return {"PRICES": PRICES, **usual, **more}


async def _ends(daemon: Daemon, fault: Fault) -> None:
    # What asks the cloud is a new process, which knows of no fault of the test before.
    await asyncio.to_thread(wait_until, lambda: not daemon.children("cloud"))
    before = await asyncio.to_thread(_budget, daemon)
    headers, text, error = await asyncio.wait_for(_ask(daemon), 200)
    end, here = fault.end, fault.text is HERE
    assert (headers["x-upcall-route"], headers.get("x-upcall-degraded")) == (
        ("local", "true") if here else ("cloud", None)
    )
    if not here:
        assert text == fault.text
    assert (error is not None) == (end.outcome != "ok")
    if name := next(iter(fault.settings), ""):
        # The deadline of the settings ended it, not the one behind it.
        assert error is None or f"within {fault.settings[name]} s" in error

    row = (await asyncio.to_thread(daemon.call, "GET", "/upcall/decisions"))["decisions"][0]
    assert row["request_id"] == headers["x-upcall-request-id"]
    assert (row["outcome"], row["error"]) == (end.outcome, end.error)
    assert (row["route"], row["degraded"]) == (("local", True) if here else ("cloud", False))
    assert row["cost_usd"] == pytest.approx(end.cost, abs=1e-9)
    assert row["estimated"] == end.estimated
    budget = await asyncio.to_thread(_budget, daemon)
    assert budget["spent_today_usd"] - before["spent_today_usd"] == pytest.approx(end.cost, abs=1e-9)
    assert budget["in_flight_usd"] == 0


def _budget(daemon: Daemon) -> Any:
    return daemon.call("GET", "/upcall/stats")["budget"]


async def _ask(daemon: Daemon) -> tuple[Any, str, str | None]:
    """Headers, text, and what the error event at the end says, if there is one."""
    body = {"model": "cloud", "messages": HELLO, "max_tokens": ANSWER, "stream": True}
    async with (
        aiohttp.ClientSession(daemon.url) as session,
        session.post("/v1/chat/completions", json=body) as response,
    ):
        assert response.status == 200
        events = [part[6:] for part in (await response.text()).split("\n\n") if part]
        kinds: list[Callable[[Any], bool]] = [lambda event: "error" in event, lambda event: event.get("choices")]
        objects = [json.loads(event) for event in events if event != "[DONE]"]
        errors, chunks = ([event for event in objects if is_kind(event)] for is_kind in kinds)
        assert (events[-1] == "[DONE]") == (not errors)
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        return response.headers, text, errors[0]["error"]["message"] if errors else None
