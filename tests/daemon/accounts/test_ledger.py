"""The ledger: every request leaves its figures, none leaves a word, and no trouble with the file reaches a client."""

import asyncio
import contextlib
import http.client
import json
import sqlite3
import stat
import time
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from daemon import config
from daemon.accounts.history import opened
from daemon.accounts.ledger import MIGRATIONS, Ledger, Record
from daemon.client import DaemonError
from tests.daemon.conftest import Escalating, StartDaemon
from tests.daemon.harness import Daemon, client, wait_until
from tests.emulators.servers import Emulator

HELLO: Any = [{"role": "user", "content": "hello"}]
MARKER = "zanzibar-marker-4711"
ENDLESS = {"max_tokens": 4000, "logit_bias": {"2": -100}}
"""The end of the answer is ruled out."""


def latest(daemon: Daemon, limit: int = 1) -> list[dict[str, Any]]:
    return list(daemon.call("GET", f"/upcall/decisions?limit={limit}")["decisions"])


def ledger_file(daemon: Daemon) -> Path:
    return Path(daemon.environment["XDG_STATE_HOME"]) / "upcall" / "ledger.db"


# --- what real requests leave -------------------------------------------------------------------------------------


def test_a_request_leaves_its_decision_tokens_times_and_saving(upcall: Daemon) -> None:
    wait_until(lambda: _ask(upcall).headers.get("x-upcall-saved-usd"))
    answer = _ask(upcall)
    [kept] = latest(upcall)

    assert kept["request_id"] == answer.headers["x-upcall-request-id"]
    assert (kept["wire"], kept["outcome"], kept["route"]) == ("openai", "ok", answer.headers["x-upcall-route"])
    assert (kept["reason"], kept["router"]) == (answer.headers["x-upcall-reason"], answer.headers["x-upcall-router"])
    assert kept["score"] == pytest.approx(float(answer.headers["x-upcall-score"]), abs=1e-4)
    assert kept["threshold"] == pytest.approx(float(answer.headers["x-upcall-threshold"]), abs=1e-4)
    usage = answer.parse().usage
    assert (kept["prompt_tokens"], kept["completion_tokens"]) == (usage.prompt_tokens, usage.completion_tokens)
    assert 0 < kept["first_ms"] <= kept["total_ms"]
    assert kept["cost_usd"] == 0
    assert kept["saved_usd"] == pytest.approx(float(answer.headers["x-upcall-saved-usd"]), abs=1e-6)
    assert abs(kept["time"] - time.time()) < 600


def _ask(daemon: Daemon) -> Any:
    return client(daemon).chat.completions.with_raw_response.create(
        model="router-mf-1", messages=HELLO, max_tokens=4, stream=False
    )


def test_no_word_of_a_prompt_or_answer_is_in_any_file_of_the_state_folder(upcall: Daemon) -> None:
    asked = client(upcall).chat.completions.create(
        model="local", messages=[{"role": "user", "content": f"Repeat: {MARKER}"}], max_tokens=8
    )
    with pytest.raises(openai.NotFoundError):
        client(upcall).chat.completions.create(model="router-nothing-0.5", messages=HELLO, user=MARKER)
    assert latest(upcall, 2)[1]["completion_tokens"] == asked.usage.completion_tokens  # type: ignore[union-attr]

    files = [path for path in ledger_file(upcall).parent.rglob("*") if path.is_file()]
    assert ledger_file(upcall) in files
    for path in files:
        assert MARKER.encode() not in path.read_bytes()


def test_nobody_else_may_read_the_ledger(upcall: Daemon) -> None:
    _ask(upcall)
    latest(upcall)
    folder = ledger_file(upcall).parent

    assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("ledger.db*")} == {0o600}


def test_a_client_that_leaves_is_recorded_as_cancelled(upcall: Daemon) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", upcall.server.port, timeout=60)) as connection:
        body = {"model": "local", "messages": [{"role": "user", "content": "Tell a very long story."}], "stream": True}
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps({**body, **ENDLESS}), headers)
        response = connection.getresponse()
        id = response.headers["x-upcall-request-id"]
        response.read(20)
        response.close()
    wait_until(lambda: latest(upcall)[0]["request_id"] == id)

    [kept] = latest(upcall)
    assert (kept["outcome"], kept["route"], kept["error"]) == ("cancelled", "local", None)


def test_a_request_that_nothing_could_be_decided_for_is_recorded_as_refused(upcall: Daemon) -> None:
    with pytest.raises(openai.NotFoundError):
        client(upcall).chat.completions.create(model="router-nothing-0.5", messages=HELLO)

    [kept] = latest(upcall)
    assert (kept["outcome"], kept["route"], kept["reason"]) == ("refused", None, None)


def test_a_cloud_failure_is_in_the_record_of_the_local_answer(escalating: Escalating) -> None:
    daemon = escalating("http://127.0.0.1:9/v1")
    client(daemon).chat.completions.create(model="cloud", messages=HELLO, max_tokens=2)

    [kept] = latest(daemon)
    assert (kept["route"], kept["reason"], kept["degraded"]) == ("local", "cloud_failed", True)
    assert (kept["outcome"], kept["error"]) == ("ok", "unavailable")


def test_a_failure_in_the_middle_of_a_stream_is_its_outcome(escalating: Escalating, llmock: Emulator) -> None:
    daemon = escalating(llmock.base_url("openai"))
    llmock.fail({"type": "stream_fault", "kind": "truncate", "after_chunks": 6})
    with pytest.raises(openai.APIError):
        for _ in client(daemon).chat.completions.create(model="cloud", messages=HELLO, stream=True):
            pass

    [kept] = latest(daemon)
    assert (kept["outcome"], kept["error"], kept["route"]) == ("upstream", "upstream", "cloud")


def test_without_a_ledger_nothing_is_kept_and_requests_are_answered(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(LEDGER__ENABLED="false")
    _ask(daemon)

    with pytest.raises(DaemonError, match=r"ledger\.enabled"):
        latest(daemon)
    assert not ledger_file(daemon).exists()


# --- a file that is not well --------------------------------------------------------------------------------------


def test_a_corrupt_file_costs_a_line_in_the_log_and_no_answer(start_daemon: StartDaemon, tmp_path: Path) -> None:
    file = tmp_path / "state" / "upcall" / "ledger.db"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"this is no database " * 1000)
    daemon = start_daemon()
    for _ in range(3):
        assert _ask(daemon).parse().choices[0].message.content is not None

    with pytest.raises(DaemonError, match="ledger"):
        latest(daemon)
    assert (tmp_path / "log").read_text().count("cannot be written") == 1
    assert file.read_bytes().startswith(b"this is no database")
    doctor = json.loads(daemon.cli("doctor", "--json").stdout)
    assert next(finding for finding in doctor if finding["check"] == "ledger")["state"] == "bad"


def test_a_file_that_another_process_holds_delays_no_answer_and_is_written_later(upcall: Daemon) -> None:
    _ask(upcall)
    latest(upcall)
    with closing(sqlite3.connect(ledger_file(upcall), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        held = [_ask(upcall).headers["x-upcall-request-id"] for _ in range(2)]
        other.execute("ROLLBACK")

    wait_until(lambda: [kept["request_id"] for kept in latest(upcall, 2)] == held[::-1])


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    ledger = Ledger(config.Ledger(), tmp_path / "ledger.db")
    yield ledger
    ledger.close()


def record(id: str, **more: Any) -> Record:
    return Record(**{"id": id, "time": time.time(), "wire": "openai", "outcome": "ok", **more})


async def test_what_was_waiting_when_the_disk_was_full_is_written_once_there_is_room(tmp_path: Path) -> None:
    # A folder in the file's place refuses writes as a full disk does.
    path = tmp_path / "ledger.db"
    path.mkdir()
    ledger = Ledger(config.Ledger(), path)
    ledger.record(record("aa"))
    assert not await ledger.written(60)
    assert "ledger.db" in ledger.trouble
    path.rmdir()
    ledger.record(record("bb"))
    assert await ledger.written(60)

    with opened(path) as past:
        assert [kept.id for kept in past.decisions(10)] == ["bb", "aa"]
    assert ledger.trouble == ""
    ledger.close()


async def test_a_number_beyond_sqlite_loses_its_own_record_alone(ledger: Ledger) -> None:
    for id, tokens in (("aa", 1), ("bb", 2**80), ("cc", 3)):
        ledger.record(record(id, prompt_tokens=tokens))
    assert await ledger.written(60)

    with opened(ledger.path) as past:
        assert [kept.id for kept in past.decisions(10)] == ["cc", "aa"]


@pytest.mark.parametrize(
    ("now", "hours"), [("2025-11-03 23:45", (23.5, 0.5)), ("2025-04-02 12:00", (0.5, 11.5))], ids=["autumn", "spring"]
)
async def test_a_day_is_the_calendars_also_where_clocks_were_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: str, hours: tuple[float, float]
) -> None:
    ledger = Ledger(config.Ledger(days=36500), tmp_path / "ledger.db")
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        at = datetime.fromisoformat(now)
        midnight = at.replace(hour=0, minute=0)
        for id, hour in zip(("aa", "bb"), hours, strict=True):
            when = (midnight + timedelta(hours=hour)).timestamp()
            ledger.record(record(id, time=when, route="local", reason="forced_local"))
        assert await ledger.written(60)
        with opened(ledger.path) as past:
            days = past.stats(at.timestamp())["days"]
        starts = [datetime.fromtimestamp(day["start"]) for day in days]
    finally:
        ledger.close()
        monkeypatch.undo()
        time.tzset()

    assert starts == [midnight - timedelta(days=back) for back in range(30, -1, -1)]
    assert [day["local"] for day in days] == [0] * 30 + [2]


async def test_days_end_where_the_machine_is_and_not_where_it_was_started(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.record(record("aa"))
    assert await ledger.written(60)
    hours = []
    with opened(ledger.path) as past, monkeypatch.context() as travels:
        for zone in ("EAST-14", "WEST+11"):
            travels.setenv("TZ", zone)
            hours.append(past.stats()["days"][-1]["start"] % 86400 / 3600)
    time.tzset()
    assert hours == [10, 11]


async def test_what_failed_was_answered_nowhere_and_short_answers_tell_no_speed(ledger: Ledger) -> None:
    local = {"route": "local", "reason": "forced_local", "first_ms": 100.0}
    ledger.record(record("aa", outcome="unavailable", **local))
    ledger.record(record("bb", outcome="cancelled", route="cloud", reason="forced_cloud"))
    ledger.record(record("cc", completion_tokens=2, total_ms=101.0, **local))
    ledger.record(record("dd", completion_tokens=41, total_ms=2100.0, **local))
    assert await ledger.written(60)

    with opened(ledger.path) as past:
        today = past.stats()["today"]
    assert (today["requests"], today["local"], today["cloud"], today["failed"]) == (4, 2, 1, 1)
    assert today["local_share"] == pytest.approx(2 / 3)
    assert today["speed"]["local"]["tokens_per_second"] == pytest.approx(20.0)


async def test_records_older_than_the_settings_want_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    for records in (
        [record("aa", time=time.time() - 3 * 86400), record("bb", time=time.time() - 86400)],
        [record("cc")],
    ):
        ledger = Ledger(config.Ledger(days=2), path)
        for each in records:
            ledger.record(each)
        assert await ledger.written(60)
        ledger.close()

    with opened(path) as past:
        assert [kept.id for kept in past.decisions(10)] == ["cc", "bb"]


async def test_a_file_of_the_first_version_is_brought_up_to_date_with_its_records(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as old:
        old.executescript(f"{MIGRATIONS[0]} PRAGMA user_version = 1;")
        old.execute(
            "INSERT INTO requests (id, time, wire, outcome, degraded, prompt_tokens, completion_tokens, cached_tokens, "
            "estimated, cost_usd) VALUES ('ab', ?, 'openai', 'ok', 0, 1, 2, 0, 0, 0.25)",
            (time.time(),),
        )
        old.commit()
    ledger = Ledger(config.Ledger(), path)
    ledger.record(record("cd"))
    assert await ledger.written(60)
    ledger.close()

    with opened(path) as past:
        assert [kept.id for kept in past.decisions(10)] == ["cd", "ab"]
    with closing(sqlite3.connect(path)) as new:
        assert new.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


async def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as newer:
        newer.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    ledger = Ledger(config.Ledger(), path)
    assert not await ledger.written(60)
    ledger.close()

    assert "newer upcall" in ledger.trouble
    assert path.read_bytes()[100:] == before[100:]


# --- what is read -------------------------------------------------------------------------------------------------


def test_figures_of_today_tell_routes_reasons_and_savings(upcall: Daemon) -> None:
    before = upcall.call("GET", "/upcall/stats")["today"]
    client(upcall).chat.completions.create(model="local", messages=HELLO, max_tokens=4)
    stats = upcall.call("GET", "/upcall/stats")
    today = stats["today"]

    assert today["requests"] == before["requests"] + 1
    assert today["local"] == before["local"] + 1
    assert today["by_reason"]["forced_local"] == before["by_reason"].get("forced_local", 0) + 1
    assert today["local_share"] == 1
    assert sum(hour["local"] for hour in stats["hours"]) >= today["local"]
    assert stats["month"]["requests"] >= today["requests"]
    assert today["speed"]["local"]["first_ms_p50"] > 0


def test_decisions_page_both_ways_by_id(upcall: Daemon) -> None:
    for _ in range(3):
        client(upcall).chat.completions.create(model="local", messages=HELLO, max_tokens=1)
    newest, middle, oldest = (kept["request_id"] for kept in latest(upcall, 3))

    assert [kept["request_id"] for kept in _page(upcall, f"after={oldest}")] == [newest, middle]
    assert [kept["request_id"] for kept in _page(upcall, f"before={newest}&limit=2")] == [middle, oldest]
    assert upcall.call("GET", f"/upcall/decisions/{middle[:12]}")["request_id"] == middle
    assert upcall.call("GET", "/upcall/decisions/last")["request_id"] == newest


def _page(daemon: Daemon, query: str) -> list[dict[str, Any]]:
    return list(daemon.call("GET", f"/upcall/decisions?{query}")["decisions"])


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("decisions?limit=0", "limit"),
        ("decisions?limit=000001999", "limit"),
        ("decisions?limit=x", "limit"),
        ("decisions?limit=99999999999999999999", "limit"),
        ("decisions?after=ffffffffffff", "no request"),
        ("decisions/%27%20OR%201", "no request id"),
        ("decisions/ffffffffffff", "no request"),
    ],
)
def test_a_question_that_makes_no_sense_is_told_why(upcall: Daemon, path: str, hint: str) -> None:
    with pytest.raises(DaemonError, match=hint):
        upcall.call("GET", f"/upcall/{path}")


async def test_the_feed_tells_of_each_request_as_it_ends_and_ends_with_the_daemon(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session,
        session.get(f"{daemon.url}/upcall/events") as feed,
    ):
        assert feed.content_type == "text/event-stream"
        events = _events(feed)
        name, first = await anext(events)
        assert (name, first["status"]) == ("status", "ok")
        body = {"model": "local", "messages": HELLO, "max_tokens": 1}
        async with session.post(f"{daemon.url}/v1/chat/completions", json=body) as answer:
            id = answer.headers["x-upcall-request-id"]
        while name != "decision":
            name, told = await anext(events)
        assert told["request_id"] == id
        daemon.process.terminate()
        with contextlib.suppress(aiohttp.ClientError):
            async for _ in events:
                pass
    assert await asyncio.to_thread(daemon.process.wait, 240) == 0


async def _events(feed: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    name = ""
    async for line in feed.content:
        key, _, value = line.decode().rstrip("\n").partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            yield name, json.loads(value)
