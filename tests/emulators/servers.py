"""Public emulators of the providers' APIs, as real servers on loopback: aimock (npm) and llmock (Python).

`make test-deps` installs them: aimock into node_modules beside this file, llmock into an environment of its own.
"""

import json
import os
import random
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
AIMOCK = HERE / "node_modules/@copilotkit/aimock/dist/cli.js"
LLMOCK = HERE.parent.parent / ".venv-llmock/bin/llmock"
KEY = "sk-emulator-key"
"""The only key that aimock accepts."""


@dataclass(frozen=True)
class Emulator:
    root: str
    openai_path: str
    anthropic_path: str

    def base_url(self, provider: str) -> str:
        return self.root + (self.anthropic_path if provider == "anthropic" else self.openai_path)

    def fail(self, *behaviors: dict[str, Any]) -> None:
        """llmock only: what goes wrong with the next requests."""
        self._call("POST", "/_llmock/scenario", {"behaviors": behaviors})

    def reset(self) -> None:
        """llmock only: forget requests, verdict and scripted faults."""
        self._call("POST", "/_llmock/reset", {})

    def verdict(self) -> dict[str, Any]:
        """llmock only: how well the client behaved since the last reset."""
        return self._call("GET", "/_llmock/verdict")  # type: ignore[no-any-return]

    def requests(self) -> list[dict[str, Any]]:
        """llmock only: every request served since the last reset."""
        return self._call("GET", "/_llmock/requests")["requests"]  # type: ignore[no-any-return]

    def _call(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.root + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=240) as answer:
            return json.load(answer)


@pytest.fixture(scope="session")
def aimock(require: Any) -> Iterator[Emulator]:
    node = shutil.which("node")
    require(node and AIMOCK.exists(), "needs node and aimock (make test-deps)")
    port = free_port()
    command = [
        str(node),
        str(AIMOCK),
        "-p",
        str(port),
        "-f",
        str(HERE / "fixtures.json"),
        "--strict",
        "--log-level",
        "warn",
    ]
    with _running(command, port, {"AIMOCK_API_KEYS": KEY}):
        yield Emulator(f"http://127.0.0.1:{port}", "/v1", "")


@pytest.fixture(scope="session")
def llmock_server(require: Any) -> Iterator[Emulator]:
    require(LLMOCK.exists(), "needs llmock (make test-deps)")
    port = free_port()
    command = [str(LLMOCK), "serve", "--port", str(port), "--log-level", "warning", "--stream-chunk-delay-ms", "10"]
    with _running(command, port, {}):
        yield Emulator(f"http://127.0.0.1:{port}", "/v1", "/anthropic")


@pytest.fixture
def llmock(llmock_server: Emulator) -> Emulator:
    llmock_server.reset()
    return llmock_server


class _running:  # noqa: N801 - a context manager, named as one
    def __init__(self, command: list[str], port: int, environment: dict[str, str]) -> None:
        self._command = command
        self._port = port
        self._environment = {**os.environ, **environment}

    def __enter__(self) -> None:
        self._process = subprocess.Popen(self._command, env=self._environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while True:
            assert self._process.poll() is None, f"{self._command} ended with {self._process.returncode}"
            assert time.monotonic() < deadline, f"{self._command} does not listen"
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


def free_port() -> int:
    """A port for a server that starts later: not of those of which the kernel could give it to a connection first."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(lowest // 2, lowest)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
