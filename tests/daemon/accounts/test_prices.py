"""Costs and savings at list prices, of real answers."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from daemon.accounts.prices import Price, look_up
from daemon.client import call as call_daemon
from models.interface import Usage
from tests.daemon.conftest import Escalating, StartDaemon
from tests.daemon.harness import Daemon, client, reload, wait_until
from tests.emulators.servers import Emulator
from tests.emulators.upstream import Call, Upstream

HELLO: Any = [{"role": "user", "content": "hello"}]


async def test_the_price_list_knows_a_model_and_admits_what_it_does_not_know() -> None:
    price = await look_up("openai", "gpt-4")

    assert price
    assert price.of(Usage(1_000_000, 1_000_000)) == pytest.approx(90)
    assert await look_up("openai", "no-such-model") is None


def test_a_cloud_answer_names_its_cost_and_a_local_one_what_it_saved(escalating: Escalating, aimock: Emulator) -> None:
    daemon = escalating(aimock.base_url("openai"), PRICES="{}")

    def header(model: str, name: str) -> float | None:
        answer = client(daemon).chat.completions.with_raw_response.create(model=model, messages=HELLO, max_tokens=4)
        value = answer.headers.get(name)
        return None if value is None else float(value)

    wait_until(lambda: header("cloud", "x-upcall-cost-usd") is not None)
    assert (header("cloud", "x-upcall-cost-usd") or 0) > 0
    assert header("cloud", "x-upcall-saved-usd") == 0
    assert header("local", "x-upcall-cost-usd") == 0
    assert (header("local", "x-upcall-saved-usd") or 0) > 0


def saved(daemon: Daemon) -> float | None:
    """What a local answer saved; known once the prices are."""
    answer = client(daemon).chat.completions.with_raw_response.create(model="local", messages=HELLO, max_tokens=1)
    value = answer.headers.get("x-upcall-saved-usd")
    return None if value is None else float(value)


def test_a_reload_while_prices_are_looked_up_loses_none(start_daemon: StartDaemon, tmp_path: Path) -> None:
    # Each takes a while of its own, so that the reload is the first to be done.
    fallbacks = [{"model": "claude-3-opus"}] * 8
    daemon = start_daemon(ready=False, CLOUD__FALLBACKS=json.dumps(fallbacks))
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "the settings were reloaded" in (tmp_path / "log").read_text())

    wait_until(lambda: saved(daemon) is not None)


def test_prices_that_alone_change_are_taken_over_by_a_reload(start_daemon: StartDaemon, tmp_path: Path) -> None:
    def prices(usd: int) -> str:
        return f"[prices.gpt-4]\nprompt = {usd}\ncompletion = {usd}\n"

    (tmp_path / "config" / "upcall").mkdir(parents=True)
    (tmp_path / "config" / "upcall" / "config.toml").write_text(prices(10))
    daemon = start_daemon()
    wait_until(lambda: saved(daemon) is not None)
    before = saved(daemon)
    assert before
    reload(daemon, tmp_path, prices(30))

    wait_until(lambda: saved(daemon) == pytest.approx(3 * before, rel=0.01))


def test_a_price_is_per_token() -> None:
    assert Price(2e-6, 8e-6).of(Usage(100, 10)) == pytest.approx(0.00028)


async def test_the_list_knows_what_cached_and_very_long_prompts_cost() -> None:
    tiered, cached = await look_up("openai", "gpt-5.6-sol"), await look_up("anthropic", "claude-opus-5")

    assert tiered
    assert tiered.of(Usage(272_000, 1_000)) == pytest.approx(272_000 * 4e-6 + 1_000 * 20e-6)
    assert tiered.of(Usage(272_001, 1_000, 72_001)) == pytest.approx(200_000 * 8e-6 + 72_001 * 0.8e-6 + 1_000 * 30e-6)
    assert cached
    read, written, an_hour = 5_000, 2_000, 1_000
    usage = Usage(10_000, 100, read, written, an_hour)
    assert cached.of(usage) == pytest.approx(
        2_000 * 5e-6 + read * 0.5e-6 + 2_000 * 6.25e-6 + 1_000 * 10e-6 + 100 * 25e-6
    )


def test_the_most_is_never_below_what_the_same_tokens_cost() -> None:
    price = Price(4e-6, 2e-5, 4e-7, 5e-6, 1e-5, [(1000, Price(8e-6, 3e-5))])
    for prompt in (1, 999, 1000, 1001, 5000):
        for usage in (
            Usage(prompt, 7),
            Usage(prompt, 7, prompt),
            Usage(prompt, 7, 0, prompt),
            Usage(prompt, 7, 0, 0, 1),
        ):
            assert price.most(prompt, 7) >= price.of(usage)
            assert price.most(2 * prompt, 9) >= price.of(usage)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_what_anthropic_cached_is_priced_to_the_cent_by_either_wire(
    escalating: Escalating, upstream: Upstream, path: str
) -> None:
    async def cached(call: Call) -> None:
        counted = {
            "input_tokens": 1_000, "output_tokens": 1, "cache_read_input_tokens": 50_000,
            "cache_creation_input_tokens": 20_000,
            "cache_creation": {"ephemeral_5m_input_tokens": 15_000, "ephemeral_1h_input_tokens": 5_000},
        }  # fmt: skip
        start, *rest = call.begin
        start["message"]["usage"] = counted  # type: ignore[index]
        await call.send(start, *rest, call.text("Hi"), *call.end)

    upstream.script = cached
    daemon = escalating(upstream.base_url("anthropic"), "anthropic", PRICES="{}")
    await asyncio.to_thread(wait_until, lambda: saved(daemon) is not None)
    body = {"model": "cloud", "messages": HELLO, "max_tokens": 50}
    headers = {"x-upcall-route": "cloud"}
    answer = await asyncio.to_thread(call_daemon, daemon.server, "POST", path, body, headers, 120)
    assert answer["id"]
    kept, *earlier = (await asyncio.to_thread(daemon.call, "GET", "/upcall/decisions"))["decisions"]

    assert {row["route"] for row in earlier} == {"local"}
    assert (kept["prompt_tokens"], kept["completion_tokens"], kept["cached_tokens"]) == (71_000, 3, 50_000)
    cost = 1_000 * 5e-6 + 50_000 * 0.5e-6 + 15_000 * 6.25e-6 + 5_000 * 10e-6 + 3 * 25e-6
    assert kept["cost_usd"] == pytest.approx(cost, abs=1e-9)
    assert not kept["estimated"]
