"""Verdicts: what they keep and what they must not, how to be rid of them, and what is learnt from them."""

import asyncio
import json
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.accounts.history import opened
from daemon.accounts.ledger import MIGRATIONS, Record, insert, open_for_writing
from daemon.client import DaemonError
from daemon.routing import feedback
from daemon.routing import recent as recent_module
from daemon.routing.recent import MOST, SECONDS, Recent, Sight
from routers.calibration import shipped
from routers.encoder import DIMENSION, Encoder
from tests.daemon.conftest import StartDaemon
from tests.daemon.harness import Daemon, cli, client, user_environment, wait_until

PROMPT = "Which of the two is the larger planet, and what is it made of?"


def ask(daemon: Daemon, prompt: str = PROMPT) -> str:
    """The request's id."""
    answer = client(daemon).chat.completions.with_raw_response.create(
        model="auto", messages=[{"role": "user", "content": prompt}], max_tokens=1
    )
    return str(answer.headers["x-upcall-request-id"])


def judge(daemon: Daemon, id: str, verdict: str = "wrong") -> dict[str, Any]:
    return daemon.call("POST", "/v1/feedback", {"id": id, "verdict": verdict})


def state(environment: Any) -> Path:
    return Path(environment["XDG_STATE_HOME"]) / "upcall"


def holding(daemon: Daemon, vector: bytes) -> list[str]:
    """The files of the state folder with these bytes."""
    files = [path for path in state(daemon.environment).rglob("*") if path.is_file()]
    return [path.name for path in files if vector in path.read_bytes()]


@pytest.fixture
def vector(use_encoder: Path) -> bytes:
    """A stretch of the embedding of `PROMPT`, as it is kept."""
    return Encoder(use_encoder).embed([PROMPT])[0].astype("<f2").tobytes()[:256]


@pytest.fixture
def scoring(start_daemon: StartDaemon) -> Any:
    """`scoring(**settings)` starts a daemon whose router scores."""

    def start(**settings: str) -> Daemon:
        daemon = start_daemon(**settings)
        wait_until(lambda: not daemon.call("GET", "/healthz")["router"]["detail"])
        return daemon

    return start


def test_an_embedding_is_written_with_a_verdict_alone_and_its_bytes_are_gone_once_forgotten(
    scoring: Any, vector: bytes
) -> None:
    daemon = scoring()
    id = ask(daemon)
    [before] = daemon.call("GET", "/upcall/decisions?limit=1")["decisions"]
    assert (before["id"], before["verdict"], holding(daemon, vector)) == (id, None, [])

    assert judge(daemon, id[:12]) == {"id": id, "verdict": "wrong", "embedding_kept": True}
    assert holding(daemon, vector) != []
    assert daemon.call("GET", f"/upcall/decisions/{id}")["verdict"] == "wrong"
    assert "verdict  wrong" in daemon.cli("why", id).stdout
    assert PROMPT.encode() not in b"".join(p.read_bytes() for p in state(daemon.environment).rglob("*") if p.is_file())

    # Held with the first verdict, it stays with the second.
    assert judge(daemon, "last", "right") == {"id": id, "verdict": "right", "embedding_kept": True}
    [kept] = feedback.all_of(state(daemon.environment) / "ledger.db")
    assert (kept.id, kept.verdict, kept.score) == (id, "right", pytest.approx(before["score"]))
    assert kept.vector is not None
    assert kept.vector.startswith(vector)

    assert daemon.cli("feedback", "forget", id[:12]).stdout == "forgot 1 verdict\n"
    assert holding(daemon, vector) == []
    assert daemon.call("GET", f"/upcall/decisions/{id}")["verdict"] is None


def test_in_privacy_mode_no_embedding_is_written_whenever_the_prompt_came(scoring: Any, vector: bytes) -> None:
    daemon = scoring()
    earlier = ask(daemon)
    daemon.call("PUT", "/upcall/privacy", {"on": True})
    assert not judge(daemon, earlier)["embedding_kept"]
    private = ask(daemon)
    daemon.call("PUT", "/upcall/privacy", {"on": False})

    assert not judge(daemon, private)["embedding_kept"]
    assert holding(daemon, vector) == []
    assert daemon.call("GET", f"/upcall/decisions/{private}")["verdict"] == "wrong"


def test_what_was_held_when_privacy_mode_was_switched_on_is_let_go(scoring: Any) -> None:
    daemon = scoring()
    earlier = ask(daemon)
    daemon.call("PUT", "/upcall/privacy", {"on": True})
    daemon.call("PUT", "/upcall/privacy", {"on": False})

    assert not judge(daemon, earlier)["embedding_kept"]


def test_in_privacy_mode_embeddings_are_kept_where_the_settings_say_so(scoring: Any, vector: bytes) -> None:
    daemon = scoring(FEEDBACK__KEEP_IN_PRIVACY="true")
    daemon.call("PUT", "/upcall/privacy", {"on": True})

    assert judge(daemon, ask(daemon))["embedding_kept"]
    assert holding(daemon, vector) != []


def test_where_feedback_is_off_there_is_none(scoring: Any, vector: bytes) -> None:
    daemon = scoring(FEEDBACK__ENABLED="false")
    with pytest.raises(DaemonError, match=r"feedback\.enabled is false"):
        judge(daemon, ask(daemon))

    assert holding(daemon, vector) == []


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ({"id": "ffffffff", "verdict": "right"}, "no request ffffffff"),
        ({"id": "no id", "verdict": "right"}, "is no request id"),
        ({"id": "last", "verdict": "great"}, "The body must be"),
        ({"id": "last"}, "The body must be"),
        ({"id": "", "verdict": "right"}, "The body must be"),
        ({"id": "last", "verdict": "right", "text": "more"}, "The body must be"),
    ],
)
def test_a_mistake_in_a_verdict_is_an_error_that_says_what_to_send(
    upcall: Daemon, body: dict[str, Any], hint: str
) -> None:
    ask(upcall)
    with pytest.raises(DaemonError, match=hint):
        upcall.call("POST", "/v1/feedback", body)


def test_the_commands_give_list_and_forget_verdicts(upcall: Daemon) -> None:
    id = ask(upcall)
    with_it = "kept with the prompt's embedding\n"
    assert upcall.cli("feedback", "right", "last").stdout == f"{id[:8]} was right; {with_it}"
    assert upcall.cli("feedback", "wrong", id).stdout == f"{id[:8]} was wrong; {with_it}"
    listed = [json.loads(line) for line in upcall.cli("feedback", "list", "--json").stdout.splitlines()]
    assert [(each["id"], each["verdict"], each["embedding_kept"]) for each in listed] == [(id, "wrong", True)]
    assert upcall.cli("feedback", "list").stdout.startswith(id[:8])

    assert upcall.cli("feedback", "forget", "--all").stdout == "forgot 1 verdict\n"
    assert upcall.cli("feedback", "list").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "status", "hint"),
    [
        (["feedback", "right", "last"], 1, "no upcall daemon answers"),
        (["feedback", "great", "last"], 2, "great"),
        (["feedback", "forget"], 2, "--all"),
        (["feedback", "forget", "aa", "--all"], 2, "--all"),
        (["feedback", "forget", "ffff"], 1, "no verdict is on a request ffff"),
        (["calibrate", "--from-feedback"], 1, "there are 0 verdicts with an embedding"),
        (["calibrate", "--from-feedback", "--undo"], 1, "there is no correction of mf"),
        (["calibrate", "--from-feedback", "--from-ledger"], 2, "two steps"),
    ],
)
def test_a_mistake_of_the_commands_is_one_line(tmp_path: Path, arguments: list[str], status: int, hint: str) -> None:
    home = user_environment(tmp_path)
    open_for_writing(state(home) / "ledger.db").close()
    failed = cli({**home, "UPCALL_SERVER__PORT": "1"}, *arguments)

    assert (failed.returncode, hint in failed.stderr, "Traceback" in failed.stderr) == (status, True, False)


def teach(ledger: Path, count: int = 120) -> None:
    """Verdicts of a user who wants the cloud on one side of the embeddings' space."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(count, DIMENSION))
    vectors[:, 0] += np.where(np.arange(count) % 2, 30, -30)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    router = f"mf@{shipped('mf').version}"
    with closing(open_for_writing(ledger)) as connection:
        for row, vector in enumerate(vectors):
            record = Record(id=f"{row:032x}", time=time.time(), wire="openai", outcome="ok", route="local")
            sight = Sight(router, float(random.uniform(0.1, 0.3)), vector.astype("<f2").tobytes())
            feedback.keep(connection, record, "wrong" if row % 2 else "right", sight)


def test_what_is_learnt_holds_from_a_reload_on_and_can_be_taken_back(scoring: Any) -> None:
    daemon = scoring()
    plain = f"mf@{shipped('mf').version}"

    def router() -> str:
        ask(daemon)
        return str(daemon.call("GET", "/upcall/decisions?limit=1")["decisions"][0]["router"])

    def becomes(label: str) -> None:
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: router() == label)

    teach(state(daemon.environment) / "ledger.db")
    learnt = daemon.cli("calibrate", "--from-feedback")
    assert learnt.returncode == 0, learnt.stderr
    assert "learnt from 120 verdicts" in learnt.stdout
    assert "reloaded (SIGHUP) or restarted" in learnt.stderr
    assert router() == plain

    becomes(f"{plain}+f1")
    assert daemon.cli("calibrate", "--from-feedback", "--undo").returncode == 0
    assert router() == f"{plain}+f1"
    becomes(plain)


def test_verdicts_that_teach_nothing_change_nothing(tmp_path: Path) -> None:
    home = user_environment(tmp_path)
    ledger = state(home) / "ledger.db"
    teach(ledger, 40)
    few = cli(home, "calibrate", "--from-feedback")
    teach(ledger)
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("UPDATE feedback SET verdict = 'right'")
    alike = cli(home, "calibrate", "--from-feedback")

    assert (few.returncode, "learning takes 50" in few.stderr) == (1, True)
    assert (alike.returncode, "nothing to tell apart" in alike.stderr) == (1, True)
    assert not (state(home) / "corrections").exists()


def test_a_ledger_from_before_there_were_verdicts_is_read(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    with closing(open_for_writing(file)) as connection:
        insert(connection, Record(id="aa", time=1.0, wire="openai", outcome="ok"))
        connection.executescript(f"DROP TABLE feedback; PRAGMA user_version = {len(MIGRATIONS) - 1};")
    with opened(file) as history:
        assert history.find("aa").verdict is None


async def test_what_is_held_is_let_go_of_in_time_though_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_module, "SECONDS", 0.3)
    recent = Recent()
    recent.note("old", Sight("mf@1", 0.5, b"vector"))
    ageing = asyncio.create_task(recent.age())
    await asyncio.wait([ageing], timeout=1)
    held = len(recent._held)
    ageing.cancel()
    assert held == 0


def test_only_the_latest_decisions_are_held_and_only_for_minutes() -> None:
    now = 1000.0
    recent, sight = Recent(lambda: now), Sight("mf@1", 0.5, b"vector")
    for number in range(MOST + 1):
        recent.note(str(number), sight)
    assert (recent.of("0"), recent.of("1"), recent.of(str(MOST))) == (None, sight, sight)

    now += SECONDS + 1
    assert recent.of(str(MOST)) is None
    assert not recent._held
    recent.note("new", sight)
    recent.drop("new")
    assert recent.of("new") is None
