"""Privacy mode: what it keeps here, how it is switched, and that no cloud process exists under it."""

import asyncio
import http.client
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from daemon import privacy
from daemon.config import Settings
from daemon.processes.supervisor import SWITCH_SECONDS
from tests.daemon.conftest import Escalating, StartDaemon
from tests.daemon.harness import Daemon, cli, client, reload, running_daemon, user_environment, wait_until
from tests.daemon.test_kept import ask, kept
from tests.emulators.servers import Emulator
from tests.emulators.upstream import Call, Upstream

HELLO: Any = [{"role": "user", "content": "hello"}]


def reason(daemon: Daemon, model: str = "cloud", **headers: str) -> str:
    answer = client(daemon).chat.completions.with_raw_response.create(
        model=model, messages=HELLO, max_tokens=2, extra_headers=headers
    )
    return str(answer.headers["x-upcall-reason"])


def test_privacy_answers_every_escalation_locally_and_ends_the_cloud_process(
    shared: Escalating,
    aimock: Emulator,
) -> None:
    daemon = shared(aimock.base_url("openai"))
    assert reason(daemon) == "forced_cloud"
    assert daemon.children("cloud")

    assert daemon.cli("privacy", "on").stdout == "privacy mode is on\n"
    wait_until(lambda: not daemon.children("cloud"))
    assert [reason(daemon, model) for model in ("cloud", "router-mf-0")] == ["privacy", "privacy"]
    assert daemon.call("GET", "/healthz")["privacy"] is True
    assert not daemon.children("cloud")

    assert daemon.cli("privacy", "off").stdout == "privacy mode is off\n"
    assert reason(daemon) == "forced_cloud"


async def test_privacy_cuts_escalations_under_way_and_tells_their_clients(
    escalating: Escalating, upstream: Upstream, tmp_path: Path
) -> None:
    async def begin_only(call: Call) -> None:
        await call.send(*call.begin, call.text("One, "))
        await asyncio.Event().wait()

    def begin() -> Iterator[Any]:
        received = iter(client(daemon).chat.completions.create(model="cloud", messages=HELLO, stream=True))
        while not next(received).choices[0].delta.content:
            pass
        return received

    def be_cut(received: Iterator[Any]) -> None:
        with pytest.raises(openai.APIError, match="Privacy mode was switched on"):
            for _ in received:
                pass

    upstream.script = begin_only
    daemon = escalating(upstream.base_url("openai"), CLOUD__TIMEOUTS__BETWEEN="600")
    before = await asyncio.to_thread(begin)
    # From here on a worker of its own has the one that has begun, until it is done.
    await asyncio.to_thread(reload, daemon, tmp_path, "[cloud]\nidle_seconds = 299\n")
    after = await asyncio.to_thread(begin)
    assert len(daemon.children("cloud")) == 2
    await asyncio.to_thread(daemon.cli, "privacy", "on")
    for call, received in zip(upstream.calls, (before, after), strict=True):
        await asyncio.wait_for(call.left.wait(), 60)
        await asyncio.to_thread(be_cut, received)
    await asyncio.to_thread(wait_until, lambda: not daemon.children("cloud"))


def test_every_answer_carries_a_header_while_privacy_mode_is_on(shared: Escalating, aimock: Emulator) -> None:
    daemon = shared(aimock.base_url("openai"))

    def header(path: str, method: str = "GET") -> str | None:
        connection = http.client.HTTPConnection("127.0.0.1", daemon.server.port, timeout=60)
        connection.request(method, path)
        return connection.getresponse().getheader("x-upcall-privacy")

    paths = [("/healthz", "GET"), ("/v1/models", "GET"), ("/nowhere", "GET"), ("/v1/chat/completions", "POST")]
    assert [header(*path) for path in paths] == [None] * 4
    daemon.cli("privacy", "on")
    assert [header(*path) for path in paths] == ["on"] * 4
    raw = client(daemon).chat.completions.with_raw_response
    for stream in (False, True):
        answer = raw.create(model="local", messages=HELLO, max_tokens=1, stream=stream)
        assert answer.headers["x-upcall-privacy"] == "on"
    daemon.cli("privacy", "off")


def test_nothing_is_pulled_under_privacy(tmp_path: Path) -> None:
    environment = user_environment(tmp_path)
    cli(environment, "privacy", "on")
    refused = cli(environment, "pull", "smollm2-135m")

    assert refused.returncode == 1
    assert "upcall privacy off" in refused.stderr
    assert not (tmp_path / "data" / "upcall" / "models").exists()


def test_a_request_header_tightens_privacy_and_cannot_loosen_it(
    shared: Escalating,
    aimock: Emulator,
) -> None:
    daemon = shared(aimock.base_url("openai"))
    assert reason(daemon, **{"x-upcall-privacy": "on"}) == "privacy"

    daemon.cli("privacy", "on")
    assert reason(daemon, **{"x-upcall-privacy": "off"}) == "privacy"
    daemon.cli("privacy", "off")


def test_the_switch_survives_restarts(tmp_path: Path, models_ready: Path) -> None:
    with running_daemon(tmp_path, models_ready, {}) as daemon:
        daemon.cli("privacy", "on")
    with running_daemon(tmp_path, models_ready, {}) as daemon:
        assert daemon.call("GET", "/healthz")["privacy"] is True


def test_the_switch_works_while_no_daemon_runs(tmp_path: Path, models_ready: Path) -> None:
    environment = {**user_environment(tmp_path, models_ready), "UPCALL_SERVER__PORT": "9"}

    assert cli(environment, "privacy", "on").stdout == "privacy mode is on\n"
    assert cli(environment, "privacy", "status").stdout == "privacy mode is on\n"


def test_privacy_in_the_config_cannot_be_switched_off(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(PRIVACY__MODE="true")
    refused = daemon.cli("privacy", "off")

    assert refused.returncode == 1
    assert "config.toml" in refused.stderr
    assert daemon.call("GET", "/healthz")["privacy"] is True


@pytest.mark.parametrize("content", [None, b"\xff"], ids=["a folder", "no text"])
def test_a_switch_that_cannot_be_read_counts_as_on(tmp_path: Path, models_ready: Path, content: bytes | None) -> None:
    switch = tmp_path / "state" / "upcall" / "privacy"
    switch.parent.mkdir(parents=True)
    if content is None:
        switch.mkdir()
    else:
        switch.write_bytes(content)
    with running_daemon(tmp_path, models_ready, {}) as daemon:
        assert daemon.call("GET", "/healthz")["privacy"] is True


@pytest.mark.parametrize(
    ("content", "on"),
    [(b"off\n", False), (b"on\n", True), (b"", True), (b"of", True), (b"nonsense", True), (b"\xff", True)],
)
def test_only_the_word_off_counts_as_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, on: bool
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    privacy.path().parent.mkdir()
    privacy.path().write_bytes(content)
    assert privacy.is_on(Settings()) is on


def test_privacy_that_cannot_be_remembered_holds_at_once_and_says_until_when(
    escalating: Escalating, aimock: Emulator, tmp_path: Path
) -> None:
    daemon = escalating(aimock.base_url("openai"))
    daemon.cli("privacy", "off")
    assert reason(daemon) == "forced_cloud"
    _make_unwritable(daemon, tmp_path)
    told = daemon.cli("privacy", "on")
    wait_until(lambda: not daemon.children("cloud"))
    time.sleep(2 * SWITCH_SECONDS)  # in which the "off" from before could be found

    assert (told.returncode, told.stdout) == (0, "privacy mode is on\n")
    said = r"upcall: Privacy mode is on, but only until the next start, because \S+ cannot be written \(.+\)\.\n"
    assert re.fullmatch(said, told.stderr)
    assert reason(daemon) == "privacy"
    reload(daemon, tmp_path)
    assert reason(daemon) == "privacy"
    assert daemon.cli("privacy", "off").stdout == "privacy mode is off\n"
    assert reason(daemon) == "forced_cloud"


def test_a_local_model_that_starts_again_keeps_nothing_under_privacy_that_could_not_be_remembered(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    daemon = start_daemon(LOCAL__CACHE_ON_DISK="true")
    _make_unwritable(daemon, tmp_path)
    daemon.cli("privacy", "on")
    (worker,) = daemon.children("local")
    worker.kill()
    worker.wait(60)  # Until it is gone, it takes a request with it.
    ask(daemon)
    daemon.process.terminate()
    daemon.process.wait(60)

    assert not kept(tmp_path)


def test_off_that_cannot_be_remembered_is_refused_with_the_reason(start_daemon: StartDaemon, tmp_path: Path) -> None:
    daemon = start_daemon()
    daemon.cli("privacy", "on")
    _make_unwritable(daemon, tmp_path)
    refused = daemon.cli("privacy", "off")

    assert refused.returncode == 1
    assert re.fullmatch(r"Error: Privacy mode is still on, because \S+ cannot be written \(.+\)\.\n", refused.stderr)
    assert daemon.call("GET", "/healthz")["privacy"] is True


def test_a_switch_that_was_set_past_a_daemon_reaches_it_within_seconds_and_is_said_to(
    shared: Escalating, aimock: Emulator
) -> None:
    daemon = shared(aimock.base_url("openai"))
    elsewhere = {**daemon.environment, "UPCALL_SERVER__PORT": "9"}
    assert reason(daemon) == "forced_cloud"
    told = cli(elsewhere, "privacy", "on")
    wait_until(lambda: not daemon.children("cloud"))

    assert told.stdout == "privacy mode is on\n"
    assert "no upcall daemon answers at 127.0.0.1:9" in told.stderr
    assert reason(daemon) == "privacy"
    cli(elsewhere, "privacy", "off")
    wait_until(lambda: daemon.call("GET", "/healthz")["privacy"] is False)
    assert reason(daemon) == "forced_cloud"


def _make_unwritable(daemon: Daemon, home: Path) -> None:
    """Have the daemon fail to write its switch: in the way is a folder, since root may write to what is read-only."""
    (home / "state" / "upcall" / f"privacy.{daemon.process.pid}").mkdir(parents=True)


def test_what_cannot_be_answered_here_is_refused_under_privacy(
    escalating: Escalating,
    aimock: Emulator,
) -> None:
    daemon = escalating(aimock.base_url("openai"), PRIVACY__MODE="true")
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}

    with pytest.raises(openai.BadRequestError):
        client(daemon).chat.completions.create(model="auto", messages=[{"role": "user", "content": [picture]}])
    assert not daemon.children("cloud")
