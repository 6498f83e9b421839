"""The log: no secret, no prompt, and lines that people and programs can read."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from daemon.logs import REDACTED, redact
from tests.daemon.conftest import Escalating, StartDaemon
from tests.daemon.harness import client, in_every_wire, wait_until
from tests.emulators.servers import KEY as PROVIDER_KEY
from tests.emulators.servers import Emulator

WORDS: Any = [{"role": "user", "content": "hello xylophone-quagmire-7731"}]
KEY = "Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5"


@pytest.mark.parametrize(
    "line",
    [
        f"401 for sk-proj-{KEY}",
        f"anthropic refused sk-ant-api03-{KEY}",
        f"Authorization: Bearer {KEY}",
        f"headers={{'x-api-key': '{KEY}'}}",
        f"https://example.org/?api_key={KEY}&n=1",
        f"AIza{KEY}0123456789",
        f"token ghp_{KEY}",
        f"eyJhbGciOiJI.{KEY}.{KEY}",
        f"-----BEGIN PRIVATE KEY-----\n{KEY}\n-----END PRIVATE KEY-----",
    ],
)
def test_what_looks_like_a_key_is_not_written(line: str) -> None:
    assert KEY not in redact(line)
    assert REDACTED in redact(line)


@pytest.mark.parametrize(
    "line",
    [
        "listening on http://127.0.0.1:8484",
        "request=8d2f6f outcome=ok route=local reason=below_threshold score=0.31 model=smollm2-135m prompt_tokens=31",
        "There is no key openai: store one with `upcall key set openai`.",
    ],
)
def test_what_upcall_says_is_left_as_it_is(line: str) -> None:
    assert redact(line) == line


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_key_in_a_message_its_fields_or_a_traceback_is_not_written(format: str) -> None:
    script = f"""
import logging
from daemon.config import Log
from daemon.logs import set_up_logging
set_up_logging(Log(format={format!r}))
log = logging.getLogger("daemon.test")
log.info("said %s", "Bearer {KEY}")
log.info("a=%(a)s", {{"a": "sk-{KEY}"}})
try:
    raise ValueError("sk-{KEY}")
except ValueError:
    log.exception("failed")
"""
    written = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stderr

    assert "ValueError" in written
    assert written.count(REDACTED) >= 3
    assert KEY not in written


def test_a_request_that_is_framed_wrongly_leaves_no_word_of_its_prompt_in_the_log(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    daemon = start_daemon(LOG__LEVEL="debug")
    chunked = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", daemon.server.port), timeout=60) as connection:
        connection.sendall(chunked + json.dumps({"messages": WORDS}).encode() + b"\n")
        assert b" 400 " in connection.recv(65536)

    wait_until(lambda: "aiohttp" in (tmp_path / "log").read_text(), seconds=30)
    assert "xylophone" not in (tmp_path / "log").read_text()


def test_json_has_one_object_per_line_and_a_request_s_fields_as_keys(start_daemon: StartDaemon, tmp_path: Path) -> None:
    daemon = start_daemon(LOG__FORMAT="json")
    client(daemon).chat.completions.create(model="local", messages=WORDS, max_tokens=2)

    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    (request,) = [line for line in lines if "outcome" in line]
    assert {line["level"] for line in lines} <= {"info", "warning", "error"}
    assert (request["outcome"], request["route"], request["model"]) == ("ok", "local", "smollm2-135m")
    assert request["completion_tokens"] == 2


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_the_most_talkative_log_has_no_word_of_a_prompt_that_went_up_and_no_file_the_key(
    aimock: Emulator, escalating: Escalating, provider: str, tmp_path: Path
) -> None:
    daemon = escalating(aimock.base_url(provider), provider, LOG__LEVEL="debug")
    for path, body in in_every_wire(WORDS[0]["content"], "cloud").items():
        daemon.call("POST", path, body)

    log = tmp_path / "log"
    wait_until(lambda: log.read_text().count("route=cloud") == 6)
    assert "xylophone" not in log.read_text()
    written = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert tmp_path / "state" / "upcall" / "ledger.db" in written
    assert [path for path in written if PROVIDER_KEY.encode() in path.read_bytes()] == [
        tmp_path / "credentials" / provider
    ]
