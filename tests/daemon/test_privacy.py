"""Privacy mode: what it keeps here, how it is switched, and that no cloud process exists under it."""

import http.client
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.daemon.conftest import Escalating, StartDaemon
from tests.daemon.harness import Daemon, cli, client, running_daemon, user_environment, wait_until
from tests.emulators.servers import Emulator

HELLO: Any = [{"role": "user", "content": "hello"}]


def reason(daemon: Daemon, model: str = "cloud", **headers: str) -> str:
    answer = client(daemon).chat.completions.with_raw_response.create(
        model=model, messages=HELLO, max_tokens=2, extra_headers=headers
    )
    return str(answer.headers["x-upcall-reason"])


def test_privacy_answers_every_escalation_locally_and_ends_the_cloud_process(
    escalating: Escalating,
    aimock: Emulator,
) -> None:
    daemon = escalating(aimock.base_url("openai"))
    assert reason(daemon) == "forced_cloud"
    assert daemon.children("cloud")

    assert daemon.cli("privacy", "on").stdout == "privacy mode is on\n"
    wait_until(lambda: not daemon.children("cloud"))
    assert [reason(daemon, model) for model in ("cloud", "router-mf-0")] == ["privacy", "privacy"]
    assert daemon.call("GET", "/healthz")["privacy"] is True
    assert not daemon.children("cloud")

    assert daemon.cli("privacy", "off").stdout == "privacy mode is off\n"
    assert reason(daemon) == "forced_cloud"


def test_privacy_cuts_an_escalation_under_way_and_tells_its_client(
    escalating: Escalating,
    aimock: Emulator,
) -> None:
    daemon = escalating(aimock.base_url("openai"))
    stream = client(daemon).chat.completions.create(
        model="cloud", messages=[{"role": "user", "content": "count for long"}], stream=True
    )
    received = iter(stream)
    while not next(received).choices[0].delta.content:
        pass
    daemon.cli("privacy", "on")

    with pytest.raises(openai.APIError, match="Privacy mode was switched on"):
        for _ in received:
            pass


def test_every_answer_carries_a_header_while_privacy_mode_is_on(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()

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


def test_nothing_is_pulled_under_privacy(tmp_path: Path) -> None:
    environment = user_environment(tmp_path)
    cli(environment, "privacy", "on")
    refused = cli(environment, "pull", "smollm2-135m")

    assert refused.returncode == 1
    assert "upcall privacy off" in refused.stderr
    assert not (tmp_path / "data" / "upcall" / "models").exists()


def test_a_request_header_tightens_privacy_and_cannot_loosen_it(
    escalating: Escalating,
    aimock: Emulator,
) -> None:
    daemon = escalating(aimock.base_url("openai"))
    assert reason(daemon, **{"x-upcall-privacy": "on"}) == "privacy"

    daemon.cli("privacy", "on")
    assert reason(daemon, **{"x-upcall-privacy": "off"}) == "privacy"


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


def test_a_switch_that_cannot_be_read_counts_as_on(tmp_path: Path, models_ready: Path) -> None:
    (tmp_path / "state" / "upcall" / "privacy").mkdir(parents=True)
    with running_daemon(tmp_path, models_ready, {}) as daemon:
        assert daemon.call("GET", "/healthz")["privacy"] is True


def test_what_cannot_be_answered_here_is_refused_under_privacy(
    escalating: Escalating,
    aimock: Emulator,
) -> None:
    daemon = escalating(aimock.base_url("openai"), PRIVACY__MODE="true")
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}

    with pytest.raises(openai.BadRequestError):
        client(daemon).chat.completions.create(model="auto", messages=[{"role": "user", "content": [picture]}])
    assert not daemon.children("cloud")
