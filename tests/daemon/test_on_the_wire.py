"""Privacy mode seen from the network: whatever is asked and whatever breaks, no packet leaves the machine."""

import http.client
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.conftest import Require
from tests.daemon.harness import Daemon, cli, reload, running_daemon, wait_until
from tests.daemon.world import ANSWER, SILENT, Box, boxed
from tests.emulators.servers import KEY

HELLO: Any = [{"role": "user", "content": "hello"}]
SETTINGS = {
    "CLOUD__MODEL": "gpt-4",
    "CLOUD__BASE_URL": "http://cloud.example/v1",
    "CLOUD__MAX_RETRIES": "0",
    "ROUTING__ON_LOCAL_FAILURE": "cloud",
    "LOCAL__CONTEXT_LENGTH": "512",
}
NEVER_ANSWERS = {"CLOUD__BASE_URL": f"http://{SILENT}/v1"}
FAULTS = {
    "none": {},
    "a cloud that times out": {**NEVER_ANSWERS, "CLOUD__TIMEOUTS__FIRST_BYTE": "0.5"},
    "a budget that is spent": {"BUDGET__DAILY_USD": "0"},
}
"""Faults that lie in the settings; the others happen while the daemon runs."""
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
ANY_WIRE = {
    "model": "cloud",
    "messages": HELLO,
    "input": "hello",
    "prompt": "hello",
    "max_tokens": 2,
    "max_output_tokens": 16,
    "options": {"num_predict": 2},
}
"""A prompt in whatever wire format; each takes what it knows."""
WIRES = {"/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/api/chat", "/api/generate"}
"""Those that are served are seen to escalate, or `ANY_WIRE` would prove nothing about them."""
PICTURE = "http://cloud.example/picture.png"
IMAGE = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURE}}]}]}
ANTHROPIC_IMAGE = {
    "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": PICTURE}}]}]
}
OLLAMA_IMAGE = {"messages": [{"role": "user", "content": "hello", "images": ["iVBORw0KGgo="]}]}
FUNCTION = {"name": "weather", "parameters": {"type": "object"}, "input_schema": {"type": "object"}}
TOOL = {"tools": [{"type": "function", **FUNCTION, "function": FUNCTION}], "tool_choice": "required"}
LONG = {"messages": [{"role": "user", "content": "word " * 2000}], "input": "word " * 2000}


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, require: Require) -> Iterator[Box]:
    require(os.geteuid() == 0, "needs root to make network namespaces")
    require(all(map(shutil.which, ("ip", "nft", "ss"))), "needs iproute2 and nftables (make test-deps)")
    with boxed(tmp_path_factory.mktemp("world")) as made, made.entered():
        yield made


@contextmanager
def daemon_in(box: Box, home: Path, models: Path, **settings: str) -> Iterator[Daemon]:
    (home / "credentials").mkdir()
    (home / "credentials" / "openai").write_text(KEY)
    with running_daemon(home, models, SETTINGS | settings, home / "credentials", box.wrapper) as daemon:
        wait_until(lambda: daemon.call("GET", "/healthz")["local"]["state"] == "ready")
        yield daemon


def post(
    daemon: Daemon, path: str, body: object, headers: Mapping[str, str] = NO_HEADERS, timeout: float = 60
) -> tuple[int, str]:
    """Status and body of the answer, whatever they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with asked(daemon, "POST", path, data, headers, timeout) as answer:
        return answer.status, answer.read().decode()


def any_wire(path: str) -> dict[str, Any]:
    # To one wire a prompt is a conversation kept by the server, which it refuses, and the limit has another name.
    others = ("prompt", "max_tokens") if path == "/v1/responses" else ()
    return {name: value for name, value in ANY_WIRE.items() if name not in others}


def touch(daemon: Daemon, method: str, path: str) -> None:
    """Ask without reading the answer, which may never end."""
    with asked(daemon, method, path, b"{}" if method == "PUT" else b""):
        pass


@contextmanager
def asked(
    daemon: Daemon,
    method: str,
    path: str,
    data: bytes,
    headers: Mapping[str, str] = NO_HEADERS,
    timeout: float = 60,
) -> Iterator[http.client.HTTPResponse]:
    with closing(http.client.HTTPConnection("127.0.0.1", daemon.server.port, timeout=timeout)) as connection:
        kind = {"Content-Type": "application/json"} if data else {}
        connection.request(method, re.sub(r"\{[^}]*\}", "cloud", path), data, {**kind, **headers})
        yield connection.getresponse()


def chat(daemon: Daemon, model: str = "cloud", timeout: float = 60, **more: Any) -> tuple[int, str]:
    headers = more.pop("headers", {})
    body = {"model": model, "messages": HELLO, "max_tokens": 2, **more}
    return post(daemon, "/v1/chat/completions", body, headers, timeout)


def test_an_escalation_is_seen_on_the_wire_and_privacy_mode_ends_it(
    box: Box, tmp_path: Path, models_ready: Path
) -> None:
    """Without its first half the zeros of the other tests would say nothing."""
    before = box.leaked()
    with daemon_in(box, tmp_path, models_ready) as daemon:
        for path in WIRES.intersection(daemon.paths()):
            box.requests.write_text("")
            assert ANSWER in post(daemon, path, any_wire(path) | {"stream": False})[1], path
            assert '"hello"' in box.requests.read_text(), path
        assert box.leaked() > before

        daemon.cli("privacy", "on")
        wait_until(lambda: not daemon.children("cloud"))
        _wait_until_quiet(box)
        before, requests = box.leaked(), box.requests.read_text()
        for model in ("cloud", "router-mf-0"):
            assert chat(daemon, model)[0] == 200

        assert box.leaked() == before
        assert box.requests.read_text() == requests


def test_privacy_mode_ends_an_escalation_that_hangs_and_nothing_tries_it_again(
    box: Box, tmp_path: Path, models_ready: Path
) -> None:
    box.requests.write_text("")
    with daemon_in(box, tmp_path, models_ready, **NEVER_ANSWERS) as daemon:
        answers: list[tuple[int, str]] = []
        asking = threading.Thread(target=lambda: answers.append(chat(daemon)))
        asking.start()
        wait_until(lambda: "chat/completions" in box.requests.read_text())
        daemon.cli("privacy", "on")
        asking.join()
        _wait_until_quiet(box)
        before, requests = box.leaked(), box.requests.read_text()
        assert chat(daemon)[0] == 200

        assert answers[0][0] != 200 or ANSWER not in answers[0][1]
        assert not daemon.children("cloud")
        assert box.leaked() == before
        assert box.requests.read_text() == requests


def _wait_until_quiet(box: Box) -> None:
    """The end of a killed process' connections takes a few packets more."""
    wait_until(lambda: not box.connected())
    seen = -1
    while seen != (seen := box.leaked()):
        time.sleep(0.3)


def test_what_stays_local_sends_nothing_even_with_privacy_mode_off(
    box: Box, tmp_path: Path, models_ready: Path
) -> None:
    """No telemetry, no price list, no update check, from whatever library."""
    before = box.leaked()
    with daemon_in(box, tmp_path, models_ready) as daemon:
        for model in ("local", "router-mf-1"):
            assert chat(daemon, model)[0] == 200
        assert post(daemon, "/v1/route", {"messages": HELLO})[0] == 200

    assert box.leaked() == before


@pytest.mark.parametrize("settings", FAULTS.values(), ids=FAULTS)
def test_privacy_mode_lets_no_packet_out_whatever_is_asked_and_whatever_breaks(
    box: Box, tmp_path: Path, models_ready: Path, settings: dict[str, str]
) -> None:
    before, requests = box.leaked(), box.requests.read_text()
    with daemon_in(box, tmp_path, models_ready, **settings) as daemon:
        assert daemon.cli("privacy", "on").stdout == "privacy mode is on\n"
        assert daemon.call("GET", "/healthz")["kernel"]["barrier"] == "netns"
        _ask_everything(daemon)
        _break_everything(daemon, tmp_path)
        assert not daemon.children("cloud")

    assert box.leaked() == before
    assert box.requests.read_text() == requests


def _ask_everything(daemon: Daemon) -> None:
    for model in ("auto", "local", "cloud", "router-mf-0", "gpt-4", "unknown"):
        for stream in (False, True):
            assert chat(daemon, model, stream=stream)[0] == 200
    for headers in ({"x-upcall-route": "cloud"}, {"x-upcall-privacy": "off"}):
        assert chat(daemon, "auto", headers=headers)[0] == 200
    assert chat(daemon, **TOOL)[0] in (200, 400)
    assert chat(daemon, **IMAGE)[0] == 400
    assert chat(daemon, **LONG)[0] == 400
    for malformed in (b"{", b"[]", {"model": "cloud"}, {"model": "cloud", "messages": "hello"}):
        assert post(daemon, "/v1/chat/completions", malformed)[0] == 400
    for path in daemon.paths():
        for more in ({}, {"model": "auto"}, TOOL, IMAGE, ANTHROPIC_IMAGE, OLLAMA_IMAGE, LONG, {"messages": None}):
            for stream in (False, True):
                post(daemon, path, any_wire(path) | more | {"stream": stream})
        # The feed of events answers for as long as it is listened to.
        for method in ("GET", "PUT", "DELETE") if path != "/upcall/events" else ("PUT", "DELETE"):
            touch(daemon, method, path)
    pulled = cli(daemon.environment, "pull", "llama3-8b")
    assert (pulled.returncode, "privacy mode is on" in pulled.stderr) == (1, True)


def _break_everything(daemon: Daemon, home: Path) -> None:
    for process in daemon.children("local"):
        process.kill()
    # At once, so that some find no local model: the settings would let these go up.
    for _ in range(3):
        chat(daemon, "auto")
    reload(daemon, home)
    wait_until(lambda: chat(daemon)[0] == 200)
    for process in daemon.children("local"):
        process.send_signal(signal.SIGSTOP)
        # The client's patience ends before the model's answer.
        with pytest.raises(TimeoutError):
            chat(daemon, "auto", timeout=1)
        process.kill()
    wait_until(lambda: chat(daemon, "cloud")[0] == 200)
    reload(daemon, home, "[privacy]\nmode = false\n[routing]\nthreshold = 0.0\n[cloud.timeouts]\ntotal = 5\n")
    wait_until(lambda: chat(daemon, "auto", stream=True)[0] == 200)
