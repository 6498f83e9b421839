"""Several cloud models in order of preference: who is asked, who never is, and what each hop may cost."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from daemon import resolve
from daemon.accounts.prices import Price
from daemon.config import ConfigError
from daemon.config_file import load
from models.cloud.size import most_tokens
from models.interface import ChatRequest, Usage
from tests.daemon.conftest import Escalating
from tests.daemon.harness import Daemon
from tests.daemon.test_cloud_faults import cut_at_once, cut_midway, hang, refusing
from tests.emulators.upstream import Call, Upstream, answer, serving

HELLO: Any = [{"role": "user", "content": "hello"}]
PIXEL = "data:image/png;base64,iVBORw0KGgo="
ANSWER = 100
"""Tokens that each request asks for at most."""
FIRST, SECOND = Price(prompt=10e-6, completion=30e-6), Price(prompt=20e-6, completion=60e-6)
PRICES = {"gpt-4": {"prompt": 10, "completion": 30}, "second": {"prompt": 20, "completion": 60}}
SIZE = most_tokens(ChatRequest(messages=HELLO)), ANSWER
USED = Usage(7, 3)
"""What the upstreams say that they counted."""


@pytest_asyncio.fixture
async def another() -> AsyncIterator[Upstream]:
    async for server in serving(None):
        yield server


def fallback(upstream: Upstream, **more: Any) -> dict[str, Any]:
    endpoint = {"model": "second", "provider": "openai", "base_url": upstream.base_url("openai"), "key": "none"}
    return {**endpoint, **more}


def start(escalating: Escalating, upstream: Upstream, *fallbacks: dict[str, Any], **settings: str) -> Daemon:
    usual = {"PRICES": json.dumps(PRICES), "LOCAL__MAX_TOKENS": "2", "CLOUD__FALLBACKS": json.dumps(fallbacks)}
    return escalating(upstream.base_url("openai"), **{**usual, **settings})


async def ask(daemon: Daemon, **more: Any) -> tuple[int, str, dict[str, Any]]:
    """The status, the model that the answer names (or the error's message), and the ledger's row."""
    body = {"model": "cloud", "messages": HELLO, "max_tokens": ANSWER, **more}
    timeout = aiohttp.ClientTimeout(total=240)
    async with (
        aiohttp.ClientSession(daemon.url, timeout=timeout) as session,
        session.post("/v1/chat/completions", json=body) as response,
    ):
        said = await response.json()
    row = (await asyncio.to_thread(daemon.call, "GET", "/upcall/decisions"))["decisions"][0]
    return response.status, said["model"] if response.status == 200 else said["error"]["message"], row


async def test_the_next_one_answers_for_each_way_in_which_the_first_fails_and_each_is_paid_what_it_counted(
    escalating: Escalating, upstream: Upstream, another: Upstream
) -> None:
    daemon = start(escalating, upstream, fallback(another), CLOUD__TIMEOUTS__FIRST_BYTE="5")
    first, second = FIRST.most(*SIZE), SECOND.of(USED)
    spent = 0.0
    for script, error, lost in (
        (refusing(500), "upstream", 0),
        (refusing(401), "authentication", 0),
        (refusing(404), "unavailable", 0),
        (cut_at_once, "unavailable", 1),
        (hang, "timeout", 1),
        (refusing(429, **{"Retry-After": "600"}), "rate_limited", 0),
    ):
        upstream.script = script
        _, model, row = await ask(daemon)
        assert model == "second"
        assert (row["outcome"], row["error"], row["model"], row["route"]) == ("ok", error, "second", "cloud")
        assert row["cost_usd"] == pytest.approx(lost * first + second, abs=1e-9)
        assert (row["estimated"], row["degraded"]) == (lost > 0, False)
        spent += row["cost_usd"]
    calls = len(upstream.calls)
    # It asked for ten minutes of peace.
    assert (await ask(daemon))[1] == "second"
    assert (calls, len(upstream.calls), len(another.calls)) == (6, 6, 7)
    budget = (await asyncio.to_thread(daemon.call, "GET", "/upcall/stats"))["budget"]
    assert budget["spent_today_usd"] == pytest.approx(spent + second, abs=1e-9)
    assert budget["in_flight_usd"] == 0


async def test_no_other_one_is_asked_after_the_first_word_or_for_a_wrong_request(
    escalating: Escalating, upstream: Upstream, another: Upstream
) -> None:
    daemon = start(escalating, upstream, fallback(another))
    upstream.script = cut_midway
    assert (await ask(daemon))[0] == 502
    upstream.script = refusing(400)
    assert (await ask(daemon))[0] == 400
    assert another.calls == []


async def test_a_first_without_a_key_leaves_the_prompt_to_the_next_and_all_failing_to_the_local_model(
    escalating: Escalating, upstream: Upstream, another: Upstream
) -> None:
    daemon = start(escalating, upstream, fallback(another), CLOUD__KEY="stored_nowhere")
    status, model, row = await ask(daemon)
    assert (status, model, row["error"]) == (200, "second", "no_key")
    cloud = (await asyncio.to_thread(daemon.call, "GET", "/healthz"))["cloud"]
    assert [(each["model"], each["has_key"]) for each in cloud["models"]] == [("gpt-4", False), ("second", True)]
    assert (cloud["has_key"], cloud["resting"]) == (True, False)
    said = [
        found["text"]
        for found in json.loads((await asyncio.to_thread(daemon.cli, "doctor", "--json")).stdout)
        if found["check"] == "key"
    ]
    assert ["gpt-4 is passed over" in said[0], "second at" in said[1], len(said)] == [True, True, 2]
    tried = await asyncio.to_thread(daemon.cli, "key", "test")
    assert (tried.returncode, tried.stdout, tried.stderr[:7]) == (1, "second answers\n", "gpt-4: ")
    assert "gpt-4, " in (shown := (await asyncio.to_thread(daemon.cli, "status")).stdout)
    assert "second, the endpoint asks for no key" in shown
    another.script = refusing(500)
    status, model, row = await ask(daemon)
    assert (status, model, row["error"], row["reason"]) == (200, "smollm2-135m", "no_key", "cloud_failed")
    assert row["cost_usd"] == 0
    assert upstream.calls == []


async def test_one_that_the_budget_has_no_room_for_at_its_own_price_is_passed_over(
    escalating: Escalating, upstream: Upstream, another: Upstream
) -> None:
    upstream.script = refusing(500)
    room = (FIRST.most(*SIZE) + SECOND.most(*SIZE)) / 2
    last = fallback(another, model="third")
    prices = {**PRICES, "third": {"prompt": 1, "completion": 3}}
    daemon = start(
        escalating, upstream, fallback(another), last, PRICES=json.dumps(prices), BUDGET__DAILY_USD=f"{room:.9f}"
    )
    assert (await ask(daemon))[1] == "third"
    assert [call.body["model"] for call in another.calls] == ["third"]


async def test_one_that_reads_no_images_is_passed_over_for_a_prompt_that_has_them(
    escalating: Escalating, upstream: Upstream, another: Upstream
) -> None:
    upstream.script = refusing(500)
    seeing = fallback(another, model="third", images=True)
    daemon = start(escalating, upstream, fallback(another), seeing)
    shown = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    assert (await ask(daemon, messages=[{"role": "user", "content": shown}]))[1] == "third"
    assert (await ask(daemon))[1] == "second"


async def test_privacy_mode_that_begins_between_two_hops_stops_the_second(
    escalating: Escalating, upstream: Upstream, another: Upstream
) -> None:
    daemon = start(escalating, upstream, fallback(another))

    async def private_now(call: Call) -> None:
        await asyncio.to_thread(daemon.call, "PUT", "/upcall/privacy", {"on": True})
        await refusing(500)(call)

    upstream.script = private_now
    _, model, row = await ask(daemon)
    assert (model, row["reason"]) == ("smollm2-135m", "privacy")
    assert another.calls == []


async def test_an_endpoint_gets_its_own_names_defaults_and_none_of_what_it_refuses(
    escalating: Escalating, upstream: Upstream
) -> None:
    settings = {
        "CLOUD__MODEL": "house", "CLOUD__PROVIDER": "openai", "CLOUD__UNSUPPORTED": '["seed"]',
        "CLOUD__DEFAULTS": '{"reasoning_effort": "low"}', "CLOUD__MAX_TOKENS_FIELD": "max_completion_tokens",
    }  # fmt: skip
    daemon = escalating(upstream.base_url("openai"), **settings)
    upstream.script = answer
    assert (await ask(daemon, seed=3, temperature=0.5))[1] == "house"
    sent = upstream.calls[0].body
    assert (sent["max_completion_tokens"], sent["reasoning_effort"], sent["temperature"]) == (ANSWER, "low", 0.5)
    assert not {"seed", "max_tokens"} & sent.keys()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('model = "gpt-4"\nbase_ulr = "x"', r"cloud\.fallbacks\.0\.base_ulr: unknown key; did you mean .*base_url"),
        ('provider = "openai"', r"cloud\.fallbacks\.0\.model: Field required"),
        ('model = "unheard-of"', r"cloud\.fallbacks\.0\.model: 'unheard-of' is no preset .*cloud\.fallbacks\.0\.prov"),
        ('model = "gpt-4"\nbase_url = "ftp://x"', r"cloud\.fallbacks\.0: base_url .* is no http or https URL"),
    ],
)
def test_a_mistake_in_a_fallback_is_named_with_its_place(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"[[cloud.fallbacks]]\n{text}\n")
    with pytest.raises(ConfigError, match=sentence):
        resolve.clouds(load(file).cloud)


async def test_what_a_request_is_said_to_have_cost_is_what_the_ledger_has_of_all_who_were_asked(
    escalating: Escalating, upstream: Upstream, another: Upstream
) -> None:
    daemon = start(escalating, upstream, fallback(another), CLOUD__TIMEOUTS__FIRST_BYTE="5")
    body = {"model": "cloud", "messages": HELLO, "max_tokens": ANSWER, "metadata": {"x-upcall-explain": "1"}}
    upstream.script = cut_at_once
    for script, model in ((answer, "second"), (refusing(500), "smollm2-135m")):
        another.script = script
        said = (await asyncio.to_thread(daemon.call, "POST", "/v1/chat/completions", body))["x_upcall"]
        row = (await asyncio.to_thread(daemon.call, "GET", "/upcall/decisions"))["decisions"][0]

        assert said["model"] == model
        assert row["cost_usd"] >= FIRST.most(*SIZE)
        assert (said["cost_usd"], said["saved_usd"]) == pytest.approx((row["cost_usd"], row["saved_usd"]))
