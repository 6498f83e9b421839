"""The second look: local answers that begin badly are answered by the cloud, and nobody can tell."""

import asyncio
import http.client
import json
import re
import shutil
import sqlite3
from asyncio import to_thread
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from daemon.accounts.ledger import MIGRATIONS, Record, insert, open_for_writing
from daemon.config import ConfigError, Routing
from daemon.config_file import load
from daemon.routing.policy import Decision, Needs, Reason, State, Wish, doubted, instead
from models.interface import Failure, FailureCode
from models.store import Store
from routers.calibration import Calibration, measured
from routers.second_look import FILE, beside
from routers.training.export import write_second_look
from tests.daemon.conftest import Escalating
from tests.daemon.harness import Daemon, running_daemon
from tests.emulators.upstream import Call, Script, Upstream

PROMPT = "Say in your own words, and with an example of your own, why the sky over the sea looks blue at noon."
SURE_OF_NOTHING = {"SECOND_LOOK__THRESHOLD": "1"}
SURE_OF_ALL = {"SECOND_LOOK__THRESHOLD": "0"}
LOOKING = {
    "SECOND_LOOK__ENABLED": "true",
    "SECOND_LOOK__BAND": "1",
    # Longer than any machine takes for a few tokens: here the count decides, not the clock.
    "SECOND_LOOK__MILLISECONDS": "100000",
    "LOCAL__MAX_TOKENS": "12",
}
BELOW_ALL = "router-mf-1"
"""No prompt scores so high: all of them stay here at the first look."""
PLAIN, NOTHING = Wish(), Needs()
WIDTH = 576
"""Of SmolLM2's hidden states."""
MESSAGES = [{"role": "user", "content": PROMPT}]
WIRES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "stream_options": {"include_usage": True}},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 12},
    "/api/chat": {"messages": MESSAGES},
}
OWN = re.compile(r"id|created|created_at|.*_duration")
"""Names of what differs between any two answers."""


@pytest.fixture(scope="session")
def models_ready(store: Store, smollm2: Path, use_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the models with a second look for the weak one, as `upcall learn-model` puts it there."""
    folder = tmp_path_factory.mktemp("models")
    for file in store.root.iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file)
    artifact = beside(folder / smollm2.name, store.find("smollm2-135m").sha256)
    artifact.mkdir()
    write_second_look(
        artifact / FILE,
        hidden=np.full(WIDTH, 1e-4, np.float32),
        plain=np.array([0.1, 0.3, -0.3, 0.3, -0.3], np.float32),
        intercept=0.0,
        strong=0.8,
        metadata={"version": "made"},
    )
    scores = np.linspace(0.2, 0.8, 50)
    measured("second_look", "made", scores, date="2026-01-01", sample="made").save(artifact / "calibration.json")
    return folder


async def ask(daemon: Daemon, model: str, path: str = "/v1/chat/completions", **body: Any) -> tuple[Any, str]:
    """Headers and the body as it came."""
    return await to_thread(_ask, daemon, path, {"model": model, **WIRES[path], **body})


def _ask(daemon: Daemon, path: str, body: dict[str, Any]) -> tuple[Any, str]:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.server.port, timeout=240)
    if not body.get("stream"):
        body.pop("stream_options", None)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
        assert response.status == 200, text
        return response.headers, text
    finally:
        connection.close()


async def last_row(daemon: Daemon) -> dict[str, Any]:
    rows: list[dict[str, Any]] = (await to_thread(daemon.call, "GET", "/upcall/decisions"))["decisions"]
    return rows[0]


def plain(headers: Any) -> dict[str, str]:
    """Without what is upcall's, and each answer's, own."""
    own = ("x-upcall", "date", "request-id", "content-length")
    return {name: value for name, value in headers.items() if not name.lower().startswith(own)}


def lines(text: str) -> list[Any]:
    """Every line of an answer, JSON without what is each answer's own."""
    return [_line(line) for line in text.splitlines()]


def _line(line: str) -> Any:
    data = line.removeprefix("data: ")
    return _common(json.loads(data)) if data.startswith("{") else line


def _common(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: "" if OWN.fullmatch(key) else _common(part) for key, part in value.items()}
    return [_common(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_an_escalated_answer_is_on_every_wire_what_the_cloud_would_have_said_at_once(
    shared: Escalating, upstream: Upstream, provider: str
) -> None:
    daemon = shared(upstream.base_url(provider), provider, **LOOKING, **SURE_OF_NOTHING)
    for path in WIRES:
        for stream in (True, False):
            direct_headers, direct = await ask(daemon, "cloud", path, stream=stream)
            headers, text = await ask(daemon, BELOW_ALL, path, stream=stream)

            assert headers["x-upcall-reason"] == "low_confidence"
            assert "Hel" in text
            assert lines(text) == lines(direct)
            assert plain(headers) == plain(direct_headers)
            first, second = (call.body for call in upstream.calls[-2:])
            assert first == second


async def test_what_was_thrown_away_and_both_numbers_are_told_and_recorded(
    shared: Escalating, upstream: Upstream
) -> None:
    daemon = shared(upstream.base_url("openai"), **LOOKING, **SURE_OF_NOTHING)
    headers, text = await ask(daemon, BELOW_ALL, upcall={"explain": True})
    told, row = json.loads(text)["x_upcall"], await last_row(daemon)

    assert (told["route"], told["reason"], told["degraded"]) == ("cloud", "low_confidence", False)
    assert 0 < told["score"] < told["threshold"]
    assert 0 < told["confidence"] < told["confidence_threshold"] == 1
    assert told["held_back_ms"] > 0
    assert headers["x-upcall-confidence"] == f"{told['confidence']:.4f}"
    assert headers["x-upcall-score"] == f"{told['score']:.4f}"
    assert (row["outcome"], row["route"], row["reason"]) == ("ok", "cloud", "low_confidence")
    assert row["confidence"] == pytest.approx(told["confidence"])
    assert row["wasted_tokens"] == 4
    assert row["cost_usd"] > 0


async def test_an_answer_that_begins_well_stays_and_loses_nothing_of_what_was_held_back(
    shared: Escalating, upstream: Upstream
) -> None:
    daemon = shared(upstream.base_url("openai"), **LOOKING, **SURE_OF_ALL)
    headers, text = await ask(daemon, BELOW_ALL, stream=True, logprobs=True)
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    logprobs = [choice.get("logprobs") for chunk in chunks for choice in chunk["choices"]]
    tokens = [each["content"] for each in logprobs if each]

    assert headers["x-upcall-reason"] == "below_threshold"
    assert 0 < float(headers["x-upcall-confidence"]) < 1
    assert sum(map(len, tokens)) == chunks[-1]["usage"]["completion_tokens"] > 4
    assert upstream.calls == []
    assert (await last_row(daemon))["wasted_tokens"] == 0


async def test_the_rule_looks_at_models_that_no_second_look_was_trained_for(
    store: Store, smollm2: Path, use_encoder: Path, tmp_path: Path
) -> None:
    # The same model in a file of another hash, beside which `upcall learn-model` has put nothing.
    model = tmp_path / "unknown.gguf"
    shutil.copyfile(smollm2, model)
    with model.open("ab") as file:
        file.write(bytes(32))
    with running_daemon(tmp_path, store.root, {**LOOKING, **SURE_OF_ALL, "LOCAL__MODEL": str(model)}) as daemon:
        headers, _ = await ask(daemon, BELOW_ALL)
    assert 0 < float(headers["x-upcall-confidence"]) < 1


async def test_what_ships_for_a_model_of_the_catalogue_looks_at_its_answers(
    store: Store, smollm2: Path, use_encoder: Path, tmp_path: Path
) -> None:
    with running_daemon(tmp_path, store.root, {**LOOKING, **SURE_OF_ALL}) as daemon:
        headers, _ = await ask(daemon, BELOW_ALL)
    assert 0 < float(headers["x-upcall-confidence"]) < 1


async def test_what_was_learnt_about_a_file_outside_the_store_is_read_from_beside_it(
    store: Store, models_ready: Path, smollm2: Path, tmp_path: Path
) -> None:
    sha256 = store.find("smollm2-135m").sha256
    model = tmp_path / "elsewhere" / "mine.gguf"
    shutil.copytree(beside(models_ready / smollm2.name, sha256), beside(model, sha256))
    model.symlink_to(smollm2)
    with running_daemon(tmp_path, store.root, {**LOOKING, **SURE_OF_ALL, "LOCAL__MODEL": str(model)}) as daemon:
        headers, _ = await ask(daemon, BELOW_ALL)
    assert 0 < float(headers["x-upcall-confidence"]) < 1


async def test_clear_cases_are_not_held_back(shared: Escalating, upstream: Upstream) -> None:
    daemon = shared(upstream.base_url("openai"), **{**LOOKING, **SURE_OF_NOTHING, "SECOND_LOOK__BAND": "0.001"})
    headers, text = await ask(daemon, BELOW_ALL, upcall={"explain": True})
    told = json.loads(text)["x_upcall"]

    assert (told["reason"], told["confidence"], told["held_back_ms"]) == ("below_threshold", None, None)
    assert "x-upcall-confidence" not in headers
    assert upstream.calls == []


async def test_an_answer_is_not_held_back_longer_than_the_settings_say(shared: Escalating, upstream: Upstream) -> None:
    hurry = {"SECOND_LOOK__MILLISECONDS": "0.0001"}
    daemon = shared(upstream.base_url("openai"), **{**LOOKING, **SURE_OF_NOTHING, **hurry})
    headers, text = await ask(daemon, BELOW_ALL)

    assert headers["x-upcall-reason"] == "below_threshold"
    assert "x-upcall-confidence" not in headers
    assert json.loads(text)["choices"][0]["message"]["content"]


async def test_privacy_keeps_the_answer_here_and_tells_how_sure_it_is(shared: Escalating, upstream: Upstream) -> None:
    daemon = shared(upstream.base_url("openai"), **LOOKING, **SURE_OF_NOTHING)
    for _ in range(2):
        for stream in (True, False):
            headers, _ = await ask(daemon, BELOW_ALL, stream=stream, upcall={"privacy": "on"})
            assert (headers["x-upcall-route"], headers["x-upcall-reason"]) == ("local", "privacy")
            assert 0 < float(headers["x-upcall-confidence"]) < 1
        await to_thread(daemon.call, "PUT", "/upcall/privacy", {"on": True})
    await to_thread(daemon.call, "PUT", "/upcall/privacy", {"on": False})
    assert upstream.calls == []
    assert (await last_row(daemon))["wasted_tokens"] == 0


async def test_privacy_tells_how_sure_the_local_model_is_of_prompts_that_the_cloud_was_wanted_for(
    shared: Escalating, upstream: Upstream
) -> None:
    daemon = shared(upstream.base_url("openai"), **LOOKING, **SURE_OF_NOTHING)
    headers, _ = await ask(daemon, "router-mf-0", upcall={"privacy": "on"})
    assert (headers["x-upcall-route"], headers["x-upcall-reason"]) == ("local", "privacy")
    assert 0 < float(headers["x-upcall-confidence"]) < 1
    assert upstream.calls == []


async def test_a_cloud_answer_in_the_place_of_a_local_failure_is_passed_on_word_by_word(
    escalating: Escalating, upstream: Upstream, tmp_path: Path
) -> None:
    (broken := tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(64))
    heard = asyncio.Event()

    async def one_word_first(call: Call) -> None:
        await call.send(*call.begin, call.text("Hel"))
        await asyncio.wait_for(heard.wait(), 60)
        await call.send(call.text("lo"), *call.end)

    upstream.script = one_word_first
    settings = {"LOCAL__MODEL": str(broken), "ROUTING__ON_LOCAL_FAILURE": "cloud", **LOOKING}
    daemon = escalating(upstream.base_url("openai"), ready=False, **settings)
    async with aiohttp.ClientSession() as session:
        body = {"model": BELOW_ALL, "messages": MESSAGES, "stream": True}
        async with session.post(f"{daemon.url}/v1/chat/completions", json=body) as response:
            assert response.headers["x-upcall-reason"] == "local_failed"
            text = ""
            async for line in response.content:
                text += line.decode()
                if "Hel" in text:
                    heard.set()
    assert '"lo"' in text


async def test_while_who_answers_is_not_decided_nobody_is_told_that_the_local_model_is_waited_for(
    escalating: Escalating, upstream: Upstream
) -> None:
    daemon = escalating(upstream.base_url("openai"), **LOOKING, **SURE_OF_ALL, LOCAL__SLOTS="1")
    for _, text in await asyncio.gather(*(ask(daemon, BELOW_ALL, stream=True) for _ in range(3))):
        assert text.startswith("data: ")
        assert "\n:" not in text


@pytest.mark.parametrize(
    ("settings", "prompt", "reason"),
    [
        ({"BUDGET__DAILY_USD": "0"}, PROMPT, "budget"),
        ({"SENSITIVE__KEYWORDS": '["bluebird"]'}, f"{PROMPT} Call it bluebird.", "sensitive"),
    ],
)
async def test_what_keeps_prompts_here_keeps_doubtful_answers_here(
    escalating: Escalating, upstream: Upstream, settings: dict[str, str], prompt: str, reason: str
) -> None:
    daemon = escalating(upstream.base_url("openai"), **LOOKING, **SURE_OF_NOTHING, **settings)
    headers, text = await ask(daemon, BELOW_ALL, messages=[{"role": "user", "content": prompt}])

    assert (headers["x-upcall-route"], headers["x-upcall-reason"]) == ("local", reason)
    assert headers["x-upcall-degraded"] == "true"
    assert json.loads(text)["model"] == "smollm2-135m"
    assert upstream.calls == []


async def refuse(call: Call) -> None:
    await call.refuse(400, {"error": {"message": "no", "type": "invalid_request_error"}})


async def hang(call: Call) -> None:
    await call.left.wait()


@pytest.mark.parametrize("script", [refuse, hang])
async def test_where_the_cloud_then_fails_the_local_answer_goes_on_from_what_it_had_read(
    shared: Escalating, upstream: Upstream, script: Script
) -> None:
    upstream.script = script
    patience = {"CLOUD__TIMEOUTS__FIRST_BYTE": "5"} if script is hang else {}
    daemon = shared(upstream.base_url("openai"), **LOOKING, **SURE_OF_NOTHING, **patience)
    # In words of its own, so that nothing was read of it before.
    headers, text = await ask(daemon, BELOW_ALL, messages=[{"role": "user", "content": f"Once more, please. {PROMPT}"}])
    answer, row = json.loads(text), await last_row(daemon)

    assert len(upstream.calls) == 1
    assert (headers["x-upcall-reason"], headers["x-upcall-degraded"]) == ("cloud_failed", "true")
    assert answer["model"] == "smollm2-135m"
    assert answer["choices"][0]["message"]["content"]
    usage = answer["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1
    assert row["wasted_tokens"] == 4


def test_a_doubted_answer_goes_up_only_where_every_rule_lets_it() -> None:
    state = State(privacy=False, has_key=True, local_tools=True, local_images=False)
    local = Decision("local", Reason.BELOW_THRESHOLD, 0.4, 0.5, "mf@1")

    def ends(wish: Wish = PLAIN, needs: Needs = NOTHING, **changes: Any) -> tuple[str, Reason, bool]:
        decision = doubted(local, wish, needs, replace(state, **changes))
        return decision.route, decision.reason, decision.degraded

    assert ends() == ("cloud", Reason.LOW_CONFIDENCE, False)
    assert ends(privacy=True) == ends(Wish(privacy=True)) == ("local", Reason.PRIVACY, True)
    assert ends(needs=Needs(private="IBAN")) == ("local", Reason.SENSITIVE, True)
    assert ends(has_key=False) == ("local", Reason.NO_KEY, True)
    assert ends(unaffordable=Reason.MAX_COST) == ("local", Reason.MAX_COST, True)


@pytest.mark.parametrize("code", FailureCode)
def test_whatever_the_cloud_fails_with_the_answer_that_had_begun_here_is_still_to_be_had(code: FailureCode) -> None:
    state = State(privacy=False, has_key=True, local_tools=True, local_images=False)
    up = Decision("cloud", Reason.LOW_CONFIDENCE, 0.4, 0.5, "mf@1")
    back = instead(up, Failure(code, ""), PLAIN, NOTHING, state, Routing())
    assert back is not None
    assert (back.route, back.degraded) == ("local", True)


@pytest.mark.parametrize(
    ("name", "value"), [("BAND", "1.5"), ("TOKENS", "1"), ("TOKENS", "33"), ("MILLISECONDS", "0"), ("THRESHOLD", "-1")]
)
def test_settings_that_make_no_sense_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv(f"UPCALL_SECOND_LOOK__{name}", value)
    with pytest.raises(ConfigError, match=rf"second_look\.{name.lower()}: "):
        load()


def test_it_is_off_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert not load().second_look.enabled


def test_the_band_is_a_share_of_prompts_below_the_threshold() -> None:
    scores = np.linspace(0.5, 0.7, 201)
    calibration: Calibration = measured("mf", "1", scores, date="2026-01-01", sample="made")
    for share in (0.1, 0.3):
        floor = calibration.nearest_below(calibration.threshold(0.2), share)
        assert np.mean((scores >= floor) & (scores < calibration.threshold(0.2))) == pytest.approx(share, abs=0.02)
    assert calibration.nearest_below(calibration.threshold(0.2), 0.9) == 0
    assert calibration.nearest_below(1, 1) == 0


def test_an_older_ledger_is_taken_over_with_nothing_wasted(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    before = next(number for number, script in enumerate(MIGRATIONS) if "wasted_tokens" in script)
    with sqlite3.connect(file) as old:
        for script in MIGRATIONS[:before]:
            old.executescript(script)
        old.execute(f"PRAGMA user_version = {before}")
        old.execute(
            "INSERT INTO requests (id, time, wire, outcome, degraded, prompt_tokens, completion_tokens, cached_tokens, "
            "estimated) VALUES ('old', 0, 'openai', 'ok', 0, 1, 1, 0, 0)"
        )
    old.close()
    connection = open_for_writing(file)
    insert(connection, Record(id="new", time=1, wire="openai", outcome="ok", confidence=0.25, wasted_tokens=4))
    rows = connection.execute("SELECT id, confidence, wasted_tokens FROM requests ORDER BY time").fetchall()
    connection.close()
    assert rows == [("old", None, 0), ("new", 0.25, 4)]
