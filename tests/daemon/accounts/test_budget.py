"""Budgets: no call goes up without room for the most that it can cost, and what it cost is right to the cent."""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from daemon import config
from daemon.accounts.budget import NANO, Budget
from daemon.accounts.ledger import Ledger
from daemon.accounts.prices import Price
from daemon.config_file import load
from daemon.routing.policy import Reason
from models.cloud.size import most_tokens, runs_tools, unpriced
from models.interface import ChatRequest, Usage, Verbatim
from tests.daemon.accounts.test_prices import saved
from tests.daemon.conftest import Escalating
from tests.daemon.harness import Daemon, wait_until
from tests.emulators.upstream import Call, Upstream, answer, chunk

HELLO: Any = [{"role": "user", "content": "hello"}]
PRICE = Price(prompt=10e-6, completion=30e-6)
"""As the daemons of these tests are told."""
PRICES = json.dumps({"gpt-4": {"prompt": 10, "completion": 30}})
ANSWER = 100
"""Tokens that each request asks for at most."""
MOST = PRICE.most(most_tokens(ChatRequest(messages=HELLO)), ANSWER)
USED = PRICE.of(Usage(7, 3))
"""What the upstream says that it counted."""


async def ask(session: aiohttp.ClientSession, model: str = "cloud", **more: Any) -> aiohttp.ClientResponse:
    headers = more.pop("headers", {})
    body = {"model": model, "messages": HELLO, "max_tokens": ANSWER, **more}
    async with session.post("/v1/chat/completions", json=body, headers=headers) as response:
        await response.read()
        return response


@contextlib.asynccontextmanager
async def session(daemon: Daemon) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(daemon.url, timeout=aiohttp.ClientTimeout(total=240)) as opened:
        yield opened


def start(escalating: Escalating, upstream: Upstream, **settings: str) -> Daemon:
    return escalating(upstream.base_url("openai"), PRICES=PRICES, LOCAL__MAX_TOKENS="2", **settings)


def spent(daemon: Daemon) -> float:
    return float(daemon.call("GET", "/upcall/stats")["budget"]["spent_today_usd"])


# --- through the gateway ------------------------------------------------------------------------------------------


async def test_of_twenty_at_once_against_room_for_five_no_sixth_goes_up_and_the_rest_are_answered_here(
    escalating: Escalating, upstream: Upstream
) -> None:
    let_go = asyncio.Event()

    async def wait_and_answer(call: Call) -> None:
        await call.send(*call.begin)
        await let_go.wait()
        await call.send(call.text("Hello"), *call.end)

    upstream.script = wait_and_answer
    few = 4  # tokens: what is answered here takes little time, in which the cloud's answers wait
    most = PRICE.most(most_tokens(ChatRequest(messages=HELLO)), few)
    daemon = start(escalating, upstream, BUDGET__DAILY_USD=f"{5 * most:.9f}", CLOUD__TIMEOUTS__BETWEEN="600")
    async with session(daemon) as opened:
        asked = [asyncio.create_task(ask(opened, max_tokens=few)) for _ in range(20)]
        here = []
        for done in asyncio.as_completed(asked):
            here.append(await done)
            if len(here) == 15:
                break
        await asyncio.to_thread(wait_until, lambda: len(upstream.calls) == 5)
        let_go.set()
        answers = await asyncio.gather(*asked)

    routes = [(answer.headers["x-upcall-route"], answer.headers["x-upcall-reason"]) for answer in answers]
    assert all(answer.status == 200 for answer in answers)
    assert routes.count(("cloud", "forced_cloud")) == 5
    assert routes.count(("local", "budget")) == 15
    assert len(upstream.calls) == 5
    assert await asyncio.to_thread(spent, daemon) == pytest.approx(5 * USED, abs=1e-9)


async def test_a_restart_forgets_nothing_that_was_spent_and_keeps_the_most_of_a_call_that_it_cut_off(
    escalating: Escalating, upstream: Upstream
) -> None:
    limit = {"BUDGET__DAILY_USD": f"{USED + 1.5 * MOST:.9f}"}
    first = start(escalating, upstream, **limit)
    async with session(first) as opened:
        assert (await ask(opened)).headers["x-upcall-route"] == "cloud"
        upstream.asked.clear()
        upstream.script = lambda call: asyncio.Event().wait()  # type: ignore[assignment,return-value]
        hanging = asyncio.create_task(ask(opened))
        await upstream.asked.wait()
        for process in [*first.children("gateway"), *first.children("cloud")]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(aiohttp.ClientError):
            await hanging
    await asyncio.to_thread(first.process.wait, 60)

    second = await asyncio.to_thread(start, escalating, upstream, **limit)
    assert await asyncio.to_thread(spent, second) == pytest.approx(USED + MOST, abs=1e-9)
    async with session(second) as opened:
        answer = await ask(opened)
    assert (answer.headers["x-upcall-route"], answer.headers["x-upcall-reason"]) == ("local", "budget")
    decisions = (await asyncio.to_thread(second.call, "GET", "/upcall/decisions"))["decisions"]
    assert [kept["outcome"] for kept in decisions] == ["ok", "lost", "ok"]
    assert decisions[1]["estimated"]
    assert decisions[1]["cost_usd"] == pytest.approx(MOST)


async def cut(call: Call) -> None:
    await call.send(*call.begin, call.text("Hel"))
    call.cut()


async def uncounted(call: Call) -> None:
    await call.send(*call.begin, call.text("Hello"), chunk({}, finish_reason="stop"), "[DONE]")


async def refused(call: Call) -> None:
    await call.refuse(500, {"error": {"message": "no", "type": "server_error"}})


async def silent(call: Call) -> None:
    call.cut()


async def cached(call: Call) -> None:
    usage = {
        "prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 1010,
        "prompt_tokens_details": {"cached_tokens": 800},
    }  # fmt: skip
    await call.send(*call.begin, call.text("Hi"), chunk({}, finish_reason="stop"))
    await call.send({**chunk(), "choices": [], "usage": usage}, "[DONE]")


@pytest.mark.parametrize(
    ("script", "cost", "estimated"),
    [
        (cut, MOST, True),
        (uncounted, MOST, True),
        (silent, MOST, True),
        (refused, 0, False),
        (cached, 200 * 10e-6 + 800 * 1e-6 + 10 * 30e-6, False),
    ],
)
async def test_each_end_of_a_call_costs_what_is_documented(
    shared: Escalating, upstream: Upstream, script: Any, cost: float, estimated: bool
) -> None:
    upstream.script = script
    prices = json.dumps({"gpt-4": {"prompt": 10, "completion": 30, "cached": 1}})
    daemon = shared(upstream.base_url("openai"), PRICES=prices, LOCAL__MAX_TOKENS="2")
    before = await asyncio.to_thread(_of_today, daemon)
    async with session(daemon) as opened:
        with contextlib.suppress(aiohttp.ClientError):
            await ask(opened)
    kept = (await asyncio.to_thread(daemon.call, "GET", "/upcall/decisions"))["decisions"][0]
    requests, paid = await asyncio.to_thread(_of_today, daemon)

    assert len(upstream.calls) == 1
    assert requests == before[0] + 1
    assert kept["cost_usd"] == pytest.approx(cost, abs=1e-9)
    assert kept["estimated"] == estimated
    assert paid - before[1] == pytest.approx(cost, abs=1e-9)


def _of_today(daemon: Daemon) -> tuple[int, float]:
    """How many requests there were, and what they cost."""
    return len(daemon.call("GET", "/upcall/decisions")["decisions"]), spent(daemon)


async def test_a_try_that_the_provider_may_charge_for_is_counted_beside_the_one_that_answered(
    escalating: Escalating, upstream: Upstream
) -> None:
    async def second_time(call: Call) -> None:
        if len(upstream.calls) == 1:
            call.cut()
        else:
            await call.send(*call.begin, call.text("Hello"), *call.end)

    upstream.script = second_time
    daemon = start(escalating, upstream, CLOUD__MAX_RETRIES="1")
    async with session(daemon) as opened:
        assert (await ask(opened)).headers["x-upcall-route"] == "cloud"

    assert len(upstream.calls) == 2
    assert await asyncio.to_thread(spent, daemon) == pytest.approx(USED + MOST, abs=1e-9)


async def test_choices_that_take_a_request_each_are_weighed_and_paid_for_one_by_one(
    shared: Escalating, upstream: Upstream
) -> None:
    prices = json.dumps({"claude-3-opus": {"prompt": 10, "completion": 30}})
    daemon = shared(upstream.base_url("anthropic"), "anthropic", PRICES=prices, LOCAL__MAX_TOKENS="2")
    async with session(daemon) as opened:
        dear = await ask(opened, n=3, headers={"x-upcall-max-cost-usd": f"{2.9 * MOST:.9f}"})
        fine = await ask(opened, n=3, headers={"x-upcall-max-cost-usd": f"{3 * MOST:.9f}"})
        paid = await asyncio.to_thread(spent, daemon)
        upstream.script = lambda call: cut(call) if len(upstream.calls) == 6 else answer(call)
        broken = await ask(opened, n=3)

    assert [each.headers["x-upcall-reason"] for each in (dear, fine)] == ["max_cost", "forced_cloud"]
    assert paid == pytest.approx(3 * USED, abs=1e-9)
    assert (broken.status, len(upstream.calls)) == (502, 6)
    assert await asyncio.to_thread(spent, daemon) == pytest.approx(3 * USED + 3 * MOST, abs=1e-9)


async def test_a_client_that_leaves_in_the_middle_has_spent_the_most(shared: Escalating, upstream: Upstream) -> None:
    async def hang(call: Call) -> None:
        await call.send(*call.begin, call.text("Hel"))
        await asyncio.Event().wait()

    upstream.script = hang
    daemon = start(shared, upstream)
    before = await asyncio.to_thread(spent, daemon)
    async with session(daemon) as opened:
        body = {"model": "cloud", "messages": HELLO, "max_tokens": ANSWER, "stream": True}
        async with opened.post("/v1/chat/completions", json=body) as response:
            await response.content.readany()
    await asyncio.wait_for(upstream.calls[0].left.wait(), 60)

    def cancelled() -> bool:
        decisions = daemon.call("GET", "/upcall/decisions")["decisions"]
        return bool(decisions) and decisions[0]["outcome"] == "cancelled" and decisions[0]["estimated"]

    await asyncio.to_thread(wait_until, cancelled)
    assert await asyncio.to_thread(spent, daemon) - before == pytest.approx(MOST, abs=1e-9)


async def test_a_local_failure_does_not_go_up_over_the_budget(
    escalating: Escalating, upstream: Upstream, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(64))
    settings = {"LOCAL__MODEL": str(broken), "ROUTING__ON_LOCAL_FAILURE": "cloud", "ROUTING__THRESHOLD": "1"}
    for limit, calls in (("1", 1), ("0.000001", 1)):
        daemon = escalating(
            upstream.base_url("openai"), PRICES=PRICES, BUDGET__MONTHLY_USD=limit, ready=False, **settings
        )
        async with session(daemon) as opened:
            answer = await ask(opened, "auto")
        assert answer.status == (200 if limit == "1" else 503)
        assert len(upstream.calls) == calls
        daemon.process.terminate()
        await asyncio.to_thread(daemon.process.wait, 60)


async def test_a_request_names_the_most_that_it_may_cost(shared: Escalating, upstream: Upstream) -> None:
    daemon = start(shared, upstream)
    async with session(daemon) as opened:
        dear = await ask(opened, headers={"x-upcall-max-cost-usd": f"{0.9 * MOST:.9f}"})
        cheap = await ask(opened, headers={"x-upcall-max-cost-usd": f"{1.1 * MOST:.9f}"})
        in_body = await ask(opened, upcall={"max_cost_usd": 0})
        wrong = await ask(opened, headers={"x-upcall-max-cost-usd": "cheap"})

    assert (dear.headers["x-upcall-route"], dear.headers["x-upcall-reason"]) == ("local", "max_cost")
    assert cheap.headers["x-upcall-route"] == "cloud"
    assert in_body.headers["x-upcall-reason"] == "max_cost"
    assert wrong.status == 400
    assert len(upstream.calls) == 1


async def test_under_a_budget_an_answer_without_a_limit_gets_one(escalating: Escalating, upstream: Upstream) -> None:
    daemon = start(escalating, upstream, BUDGET__DAILY_USD="5", BUDGET__ANSWER_TOKENS="321")
    async with session(daemon) as opened:
        await ask(opened, max_tokens=None)
        await ask(opened)

    assert [call.body["max_tokens"] for call in upstream.calls] == [321, ANSWER]


async def test_a_request_that_names_the_most_gets_an_answer_no_longer_than_that_was_weighed_for(
    escalating: Escalating, upstream: Upstream
) -> None:
    daemon = start(escalating, upstream, BUDGET__ANSWER_TOKENS="321")
    async with session(daemon) as opened:
        await ask(opened, max_tokens=None, headers={"x-upcall-max-cost-usd": "1"})
        await ask(opened, max_tokens=None)

    assert [call.body.get("max_tokens") for call in upstream.calls] == [321, None]


def test_all_that_a_provider_counts_as_prompt_is_weighed() -> None:
    long = "x" * 1000
    plain = most_tokens(ChatRequest(messages=HELLO))

    for extra in ({"functions": [{"name": long}]}, {"prediction": {"type": "content", "content": long}}):
        assert most_tokens(ChatRequest(messages=HELLO, extra=extra)) > plain + 1000


async def test_a_prediction_may_be_billed_as_answer(shared: Escalating, upstream: Upstream) -> None:
    daemon = start(shared, upstream)
    prediction = {"type": "content", "content": "x" * 1000}
    cap = {"x-upcall-max-cost-usd": f"{MOST + 1100 * PRICE.prompt:.9f}"}
    async with session(daemon) as opened:
        dear = await ask(opened, prediction=prediction, headers=cap)

    assert dear.headers["x-upcall-reason"] == "max_cost"


@pytest.mark.parametrize(
    ("settings", "route", "reason"),
    [
        ({"BUDGET__DAILY_USD": "5"}, "local", "unknown_price"),
        ({"BUDGET__DAILY_USD": "5", "CLOUD__UNKNOWN_PRICE": "20"}, "cloud", "forced_cloud"),
        ({}, "cloud", "forced_cloud"),
    ],
)
async def test_what_an_unknown_price_means_is_for_the_settings_to_say(
    escalating: Escalating, upstream: Upstream, settings: dict[str, str], route: str, reason: str
) -> None:
    own = {"CLOUD__MODEL": "house-model", "CLOUD__PROVIDER": "openai", **settings}
    daemon = escalating(upstream.base_url("openai"), LOCAL__MAX_TOKENS="2", **own)
    if "CLOUD__UNKNOWN_PRICE" in settings:
        # It holds once the list has been looked in. The others find no price there, nor before.
        await asyncio.to_thread(wait_until, lambda: saved(daemon) is not None)
    async with session(daemon) as opened:
        answer = await ask(opened)
    kept, *earlier = (await asyncio.to_thread(daemon.call, "GET", "/upcall/decisions"))["decisions"]

    assert kept["request_id"] == answer.headers["x-upcall-request-id"]
    assert earlier == [] or "CLOUD__UNKNOWN_PRICE" in settings
    assert (answer.headers["x-upcall-route"], answer.headers["x-upcall-reason"]) == (route, reason)
    assert (kept["cost_usd"] is None) == (route == "cloud" and not settings)


SEARCH = {"type": "web_search_20250305", "name": "web_search"}


async def test_the_providers_own_tools_go_up_under_a_budget_once_it_says_what_they_may_cost(
    escalating: Escalating, upstream: Upstream
) -> None:
    async def through(**settings: str) -> tuple[aiohttp.ClientResponse, dict[str, Any]]:
        daemon = start(escalating, upstream, **settings)
        await asyncio.to_thread(wait_until, lambda: saved(daemon) is not None)
        async with session(daemon) as opened:
            answer = await ask(opened, tools=[SEARCH])
        kept = (await asyncio.to_thread(daemon.call, "GET", "/upcall/decisions"))["decisions"]
        return answer, next(each for each in kept if each["request_id"] == answer.headers["x-upcall-request-id"])

    answer, kept = await through(BUDGET__DAILY_USD="5")
    assert (answer.headers["x-upcall-route"], answer.headers["x-upcall-reason"]) == ("local", "unknown_tools")
    assert upstream.calls == []

    answer, kept = await through(BUDGET__DAILY_USD="5", BUDGET__TOOLS_USD="0.25")
    assert answer.headers["x-upcall-route"] == "cloud"
    assert (kept["cost_usd"], kept["estimated"]) == (pytest.approx(USED + 0.25, abs=1e-9), True)

    answer, _ = await through(BUDGET__DAILY_USD="0.2", BUDGET__TOOLS_USD="0.25")
    assert (answer.headers["x-upcall-route"], answer.headers["x-upcall-reason"]) == ("local", "budget")

    answer, kept = await through()
    assert answer.headers["x-upcall-route"] == "cloud"
    assert (kept["cost_usd"], kept["estimated"]) == (pytest.approx(USED, abs=1e-9), False)


@pytest.mark.parametrize(
    ("request_", "runs"),
    [
        (ChatRequest(messages=HELLO), False),
        (ChatRequest(messages=HELLO, tools=[{"type": "function", "function": {"name": "f"}}]), False),
        (ChatRequest(messages=HELLO, tools=[{"type": "custom", "custom": {"name": "f"}}]), False),
        (ChatRequest(messages=HELLO, tools=[{"type": "bash_20250124", "name": "bash"}]), False),
        (ChatRequest(messages=HELLO, tools=[{"name": "without a type"}]), False),
        (ChatRequest(messages=HELLO, tools=[SEARCH]), True),
        (ChatRequest(messages=HELLO, tools=[{"type": "of_a_kind_that_comes_next_year"}]), True),
        (ChatRequest(messages=HELLO, extra={"web_search_options": {}}), True),
        (ChatRequest(messages=HELLO, verbatim=Verbatim("anthropic", {"tools": [SEARCH]})), True),
        (ChatRequest(messages=HELLO, verbatim=Verbatim("anthropic", {"tools": [{"name": "without a type"}]})), False),
    ],
)
def test_tools_that_the_provider_runs_are_told_from_those_that_clients_run(request_: ChatRequest, runs: bool) -> None:
    assert runs_tools(request_) is runs


PDF: dict[str, Any] = {"type": "document", "source": {"type": "url", "url": "https://example.org/long.pdf"}}
RESULT = {"type": "tool_result", "tool_use_id": "1", "content": [PDF]}


@pytest.mark.parametrize(
    ("request_", "unknown"),
    [
        (ChatRequest(messages=HELLO), False),
        (ChatRequest(messages=HELLO, extra={"service_tier": "flex", "speed": "standard"}), False),
        (ChatRequest(messages=HELLO, extra={"service_tier": None, "modalities": ["text"]}), False),
        (ChatRequest(messages=HELLO, extra={"modalities": ["text", "audio"]}), True),
        (ChatRequest(messages=HELLO, verbatim=Verbatim("anthropic", {"inference_geo": "us"})), True),
        (ChatRequest(messages=HELLO, extra={"service_tier": "priority"}), True),
        (ChatRequest(messages=HELLO, verbatim=Verbatim("anthropic", {"speed": "fast"})), True),
        (ChatRequest(messages=[{"role": "user", "content": [PDF]}]), True),
        (ChatRequest(messages=HELLO, verbatim=Verbatim("anthropic", {"messages": [{"content": [RESULT]}]})), True),
        (ChatRequest(messages=[{"content": [{"type": "file", "file": {"file_id": "file-1"}}]}]), True),
        (ChatRequest(messages=[{"content": [{"type": "file", "file": {"file_data": "data:x"}}]}]), False),
        (ChatRequest(messages=[{"content": [{"type": "image_url", "image_url": {"url": "https://e.org"}}]}]), False),
    ],
)
def test_what_may_cost_more_than_the_list_says_has_no_known_price(request_: ChatRequest, unknown: bool) -> None:
    assert unpriced(request_, {}) is unknown
    assert unpriced(request_, {"service_tier": "priority"}) is (unknown or "service_tier" not in request_.extra)


async def test_under_a_budget_a_dearer_tier_stays_here(escalating: Escalating, upstream: Upstream) -> None:
    daemon = start(escalating, upstream, BUDGET__DAILY_USD="5")
    await asyncio.to_thread(wait_until, lambda: saved(daemon) is not None)
    async with session(daemon) as opened:
        dearer = await ask(opened, service_tier="priority")
        plain = await ask(opened, service_tier="default")
    assert (dearer.headers["x-upcall-route"], dearer.headers["x-upcall-reason"]) == ("local", "unknown_cost")
    assert plain.headers["x-upcall-route"] == "cloud"


def test_a_budget_without_a_ledger_is_a_wrong_setting(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[budget]\ndaily_usd = 1\n[ledger]\nenabled = false\n")
    with pytest.raises(config.ConfigError, match=r"ledger\.enabled = true"):
        load(file)


def test_a_misspelt_price_names_the_nearest_setting(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[prices."my-model"]\nprompt = 1\ncompletions = 2\n')
    with pytest.raises(
        config.ConfigError, match=r"prices\.my-model\.completions: unknown key; did you mean .*completion"
    ):
        load(file)


# --- the account by itself ----------------------------------------------------------------------------------------


async def test_days_and_months_are_counted_apart_and_a_limit_is_reached_exactly(tmp_path: Path) -> None:
    ledger = Ledger(config.Ledger(), tmp_path / "ledger.db")
    budget = Budget(ledger)
    today = time.strftime("%Y-%m-%d")
    another = f"{today[:7]}-{'02' if today.endswith('01') else '01'}"
    assert await ledger.written(60)
    ledger.write(lambda connection: connection.execute("INSERT INTO spend VALUES (?, ?)", (another, 3 * NANO)) and None)
    assert await ledger.written(60)
    ledger.close()

    ledger = Ledger(config.Ledger(), tmp_path / "ledger.db")
    budget = Budget(ledger)
    await budget.learn()
    assert budget.refusal(config.Budget(daily_usd=1), 1.0, None) is None
    assert budget.refusal(config.Budget(daily_usd=1), 1.000000001, None) is Reason.BUDGET
    assert budget.refusal(config.Budget(monthly_usd=4), 1.0, None) is None
    assert budget.refusal(config.Budget(monthly_usd=4), 1.1, None) is Reason.BUDGET_MONTH
    with budget.hold(PRICE, 0.5, "ab", "openai", "gpt-4") as hold:
        assert budget.refusal(config.Budget(daily_usd=1), 0.6, None) is Reason.BUDGET
        hold.sent()
        hold.used(Usage(10_000, 0))
    assert budget.refusal(config.Budget(daily_usd=1), 0.9, None) is None
    assert budget.refusal(config.Budget(daily_usd=1), 0.95, None) is Reason.BUDGET
    ledger.close()


async def test_under_a_budget_nothing_goes_up_while_the_ledger_cannot_count(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"no database " * 1000)
    ledger = Ledger(config.Ledger(), tmp_path / "ledger.db")
    budget = Budget(ledger)
    await budget.learn()

    assert budget.refusal(config.Budget(daily_usd=1), 0.1, None) is Reason.BUDGET_UNKNOWN
    assert budget.refusal(config.Budget(), 0.1, None) is None
    ledger.close()
