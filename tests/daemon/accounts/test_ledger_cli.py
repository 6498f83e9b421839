"""The ledger from a terminal: figures, lists and explanations, with no daemon running, and what mistakes say."""

import json
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.accounts.ledger import Record, insert, open_for_writing
from routers.calibration import shipped
from tests.daemon.harness import cli, user_environment


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return user_environment(tmp_path)


def ledger_file(home: Mapping[str, str]) -> Path:
    return Path(home["XDG_STATE_HOME"]) / "upcall" / "ledger.db"


def record(id: str, **more: Any) -> Record:
    values: dict[str, Any] = {
        "id": id, "time": time.time(), "wire": "openai", "outcome": "ok", "route": "local", "reason": "below_threshold",
        "router": "mf@1", "score": 0.25, "threshold": 0.5, "router_ms": 1.25, "model": "smollm2-135m",
        "prompt_tokens": 1000, "completion_tokens": 50, "cached_tokens": 10, "first_ms": 100.0, "total_ms": 600.0,
        "cost_usd": 0.0, "saved_usd": 0.005,
    }  # fmt: skip
    return Record(**values | more)


CLOUD = {"route": "cloud", "reason": "above_threshold", "score": 0.75, "cost_usd": 0.02, "saved_usd": 0.0}


def fill(home: Mapping[str, str], *records: Record) -> None:
    with closing(open_for_writing(ledger_file(home))) as connection:
        for each in records:
            insert(connection, each)


def test_stats_add_up_what_was_answered_where_spent_and_saved(home: dict[str, str]) -> None:
    long_ago = time.time() - 40 * 86400
    fill(home, record("aa"), record("bb"), record("cc", **CLOUD), record("dd", time=long_ago), record("ee", route=None))
    today = json.loads(cli(home, "stats", "--json").stdout)["today"]
    table = cli({**home, "COLUMNS": "160"}, "stats").stdout

    assert (today["requests"], today["local"], today["cloud"]) == (4, 2, 1)
    assert today["local_share"] == pytest.approx(2 / 3)
    assert today["cost_usd"] == pytest.approx(0.02)
    assert today["saved_usd"] == pytest.approx(0.015)
    assert today["by_reason"] == {"below_threshold": 3, "above_threshold": 1}
    assert "67%" in table
    assert "$0.020000" in table
    assert "the router expects the local model to do well enough" in table


def test_decisions_are_listed_oldest_first_and_no_more_than_wanted(home: dict[str, str]) -> None:
    fill(home, record("aaaaaaaa01"), record("bbbbbbbb02", **CLOUD), record("cccccccc03", outcome="cancelled"))
    lines = cli(home, "decisions", "-n", "2").stdout.splitlines()
    objects = [json.loads(line) for line in cli(home, "decisions", "--json").stdout.splitlines()]

    assert [line.split()[0] for line in lines] == ["bbbbbbbb", "cccccccc"]
    assert "cloud  above_threshold  0.7500 >= 0.5000  $0.020000" in lines[0]
    assert lines[1].endswith("cancelled")
    assert [seen["request_id"] for seen in objects] == ["aaaaaaaa01", "bbbbbbbb02", "cccccccc03"]


def test_why_explains_with_the_numbers_by_the_first_characters_of_an_id(home: dict[str, str]) -> None:
    fill(home, record("aaaa01", error="rate_limited", degraded=True, reason="cloud_failed"), record("bbbb02", **CLOUD))
    failed, last = cli(home, "why", "aa").stdout, cli(home, "why", "last").stdout

    assert "the cloud did not answer, so the local model did" in failed
    assert "rate_limited" in failed
    assert "0.2500 < 0.5000 by mf@1 in 1.2 ms" in failed
    assert "1,000 of the prompt, 10 of them cached; 50 of the answer" in failed
    assert "first word after 100 ms, 600 ms in all" in failed
    assert "cost     $0.020000" in last
    assert json.loads(cli(home, "why", "bb", "--json").stdout)["request_id"] == "bbbb02"


@pytest.mark.parametrize(
    ("arguments", "status", "hint"),
    [
        (["why", "ffff"], 1, "no request ffff"),
        (["why", "a"], 1, "more than one request"),
        (["why", "%' OR 1"], 1, "no request id"),
        (["decisions", "-n", "0"], 2, "-n"),
        (["decisions", "-n", "many"], 2, "many"),
        (["stats", "--config", "/nonexistent.toml"], 2, "no such file"),
        (["calibrate", "--from-ledger"], 1, "a calibration takes 200"),
        (["calibrate", "--from-ledger", "--router", "nothing"], 2, "nothing"),
        (["calibrate", "--undo"], 1, "no calibration of your own"),
    ],
)
def test_a_mistake_is_one_line_and_a_status(home: dict[str, str], arguments: list[str], status: int, hint: str) -> None:
    fill(home, record("aa"), record("ab"))
    failed = cli(home, *arguments)

    assert failed.returncode == status
    assert hint in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("command", [["stats"], ["decisions"], ["why", "last"], ["calibrate", "--from-ledger"]])
def test_without_a_ledger_or_with_a_broken_one_the_reason_is_said(home: dict[str, str], command: list[str]) -> None:
    missing = cli(home, *command)
    assert (missing.returncode, "there is no ledger" in missing.stderr) == (1, True)

    ledger_file(home).parent.mkdir(parents=True)
    ledger_file(home).write_bytes(b"no database " * 1000)
    broken = cli(home, *command)
    assert (broken.returncode, "cannot be read" in broken.stderr) == (1, True)
    assert "Traceback" not in broken.stderr


def test_reading_changes_nothing_in_the_ledger(home: dict[str, str]) -> None:
    fill(home, record("aa"))
    with closing(sqlite3.connect(ledger_file(home))) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = ledger_file(home).read_bytes()
    for command in (["stats"], ["decisions"], ["why", "last"]):
        assert cli(home, *command).returncode == 0

    assert ledger_file(home).read_bytes() == before


def test_a_calibration_from_the_ledger_sends_up_the_share_of_these_prompts_and_can_be_undone(
    home: dict[str, str],
) -> None:
    version = shipped("mf").version
    scores = np.linspace(0.1, 0.3, 401)
    fill(home, *(record(f"{i:032x}", router=f"mf@{version}", score=float(score)) for i, score in enumerate(scores)))
    fill(home, *(record(f"f{i:031x}", router="mf@another", score=0.99) for i in range(401)))
    shipped_one = cli(home, "calibrate", "--cloud-share", "0.25").stdout
    own = cli(home, "calibrate", "--from-ledger", "--cloud-share", "0.25")
    threshold = float(own.stdout.split()[1])

    assert np.mean(scores >= threshold) == pytest.approx(0.25, abs=0.01)
    assert cli(home, "calibrate", "--cloud-share", "0.25").stdout == own.stdout
    [file] = (ledger_file(home).parent / "calibrations").iterdir()
    kept = json.loads(file.read_text())
    assert (file.name, kept["n"], kept["version"]) == ("mf-0001.json", 401, version)
    assert cli(home, "calibrate", "--undo", "--cloud-share", "0.25").stdout == shipped_one
    assert not file.exists()
