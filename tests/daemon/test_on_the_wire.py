"""Privacy mode seen from the network: whatever is asked and whatever breaks, no packet leaves the machine."""

import json
import os
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.conftest import Require
from tests.daemon.harness import Daemon, cli, running_daemon, wait_until
from tests.daemon.world import ANSWER, Box, boxed
from tests.emulators.servers import KEY

HELLO: Any = [{"role": "user", "content": "hello"}]
SETTINGS = {
    "CLOUD__MODEL": "gpt-4",
    "CLOUD__BASE_URL": "http://cloud.example/v1",
    "CLOUD__MAX_RETRIES": "0",
    "ROUTING__ON_LOCAL_FAILURE": "cloud",
    "LOCAL__CONTEXT_LENGTH": "512",
}


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


def get(
    daemon: Daemon, path: str, data: bytes | None = None, headers: Mapping[str, str] = MappingProxyType({})
) -> tuple[int, str]:
    """Status and body of the answer, whatever they are."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(daemon.url + path, data, dict(headers)), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def post(daemon: Daemon, path: str, body: object, **headers: str) -> tuple[int, str]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return get(daemon, path, data, {"Content-Type": "application/json", **headers})


def chat(daemon: Daemon, model: str = "cloud", **more: Any) -> tuple[int, str]:
    headers = more.pop("headers", {})
    body = {"model": model, "messages": HELLO, "max_tokens": 2, **more}
    return post(daemon, "/v1/chat/completions", body, **headers)


def test_an_escalation_is_seen_on_the_wire_and_privacy_mode_ends_it(
    box: Box, tmp_path: Path, models_ready: Path
) -> None:
    """Without its first half the zeros of the other tests would say nothing."""
    before = box.leaked()
    with daemon_in(box, tmp_path, models_ready) as daemon:
        assert ANSWER in chat(daemon)[1]
        assert '"hello"' in box.requests.read_text()
        assert box.leaked() > before

        daemon.cli("privacy", "on")
        wait_until(lambda: not daemon.children("cloud"))
        _wait_until_quiet(box)
        before, requests = box.leaked(), box.requests.read_text()
        for model in ("cloud", "router-mf-0"):
            assert chat(daemon, model)[0] == 200

        assert box.leaked() == before
        assert box.requests.read_text() == requests


def _wait_until_quiet(box: Box) -> None:
    """The end of a killed process' connections takes a few packets more."""
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


def test_privacy_mode_lets_no_packet_out_whatever_is_asked_and_whatever_breaks(
    box: Box, tmp_path: Path, models_ready: Path
) -> None:
    before, requests = box.leaked(), box.requests.read_text()
    with daemon_in(box, tmp_path, models_ready) as daemon:
        assert daemon.cli("privacy", "on").stdout == "privacy mode is on\n"
        assert daemon.call("GET", "/healthz")["kernel"]["barrier"] == "netns"
        _ask_everything(daemon)
        _break_everything(daemon)
        assert not daemon.children("cloud")
        pulled = cli(daemon.environment, "pull", "llama3-8b")
        assert (pulled.returncode, "privacy mode is on" in pulled.stderr) == (1, True)

    assert box.leaked() == before
    assert box.requests.read_text() == requests


def _ask_everything(daemon: Daemon) -> None:
    image = {"type": "image_url", "image_url": {"url": "http://cloud.example/picture.png"}}
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    long = [{"role": "user", "content": "word " * 2000}]
    for model in ("auto", "local", "cloud", "router-mf-0", "gpt-4", "unknown"):
        for stream in (False, True):
            assert chat(daemon, model, stream=stream)[0] == 200
    for headers in ({"x-upcall-route": "cloud"}, {"x-upcall-privacy": "off"}):
        assert chat(daemon, "auto", headers=headers)[0] == 200
    assert chat(daemon, tools=[tool], tool_choice="required")[0] in (200, 400)
    assert chat(daemon, messages=[{"role": "user", "content": [image]}])[0] == 400
    assert chat(daemon, messages=long)[0] == 400
    assert chat(daemon, "auto", messages=long, stream=True)[0] == 400
    for malformed in (b"{", b"[]", {"model": "cloud"}, {"model": "cloud", "messages": "hello"}):
        assert post(daemon, "/v1/chat/completions", malformed)[0] == 400
    for path in ("/v1/route", "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/responses", "/api/chat"):
        post(daemon, path, {"model": "cloud", "messages": HELLO, "input": "hello", "prompt": "hello", "max_tokens": 2})
    for path in ("/healthz", "/v1/models", "/openapi.json", "/metrics", "/"):
        get(daemon, path)


def _break_everything(daemon: Daemon) -> None:
    for process in daemon.children("local"):
        process.kill()
    # At once, so that some find no local model: the settings would let these go up.
    for _ in range(3):
        chat(daemon, "auto")
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: chat(daemon)[0] == 200)
    for process in daemon.children("local"):
        process.send_signal(signal.SIGSTOP)
        process.kill()
    wait_until(lambda: chat(daemon, "cloud")[0] == 200)
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: chat(daemon, "cloud", stream=True)[0] == 200)
