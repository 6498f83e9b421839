"""Daemons as people run them: `upcall serve` as a process, with a home of its own and the real models."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil

from daemon.client import DaemonError, call
from daemon.config import Server

UPCALL = Path(sys.executable).with_name("upcall")
START_SECONDS = 240.0
NOON = f"MID{time.gmtime().tm_hour - 12:+d}"
"""A time zone in which it is about noon, so that no test has a midnight in it, after which figures begin anew."""


@dataclass(frozen=True)
class Daemon:
    """A running `upcall serve`."""

    process: "subprocess.Popen[bytes]"
    environment: Mapping[str, str]
    """Of its user."""
    server: Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return call(self.server, method, path, body, timeout=60)

    def paths(self) -> list[str]:
        """Of the routes that are served, from the route table itself."""
        try:
            self.call("GET", "/nothing-here")
        except DaemonError as unknown:
            return str(unknown).split("There is: ")[1].removesuffix(".").split(", ")
        raise AssertionError("there is a route called /nothing-here")

    def children(self, role: str) -> list[psutil.Process]:
        """The processes of the daemon whose command line has `role`: gateway, local or cloud."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in found if any(role in word for word in _command(child))]

    def cli(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Another `upcall` command of the same user."""
        return cli({**self.environment, "UPCALL_SERVER__PORT": str(self.server.port)}, *arguments)


def cli(environment: Mapping[str, str], *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """An `upcall` command, run as a person would."""
    return subprocess.run(
        [UPCALL, *arguments], env=environment, input=stdin, capture_output=True, text=True, timeout=240
    )


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []  # It has just ended.


@contextmanager
def running_daemon(
    home: Path,
    models: Path | None,
    settings: Mapping[str, str],
    credentials: Path | None = None,
    wrapper: Sequence[str] = (),
) -> Iterator[Daemon]:
    """`credentials` is a folder of API keys, as systemd hands them to a service; `wrapper` runs what follows it."""
    environment = user_environment(home, models) | {f"UPCALL_{name}": value for name, value in settings.items()}
    if credentials:
        environment["CREDENTIALS_DIRECTORY"] = str(credentials)
    log = home / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen([*wrapper, UPCALL, "serve", "--port", "0"], env=environment, stderr=stderr)
    try:
        yield Daemon(process, environment, Server(port=_port(process, log)))
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()  # Or it would stay behind; without effect on one that has ended.


def user_environment(home: Path, models: Path | None = None) -> dict[str, str]:
    """The environment of a user with an empty home, no session bus, about noon, and, if given, pulled models."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "VIRTUAL_ENV")}
    folders = {f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("DATA", "CONFIG", "STATE", "CACHE")}
    if models:
        (home / "data" / "upcall").mkdir(parents=True, exist_ok=True)
        link = home / "data" / "upcall" / "models"
        if not link.is_symlink():
            link.symlink_to(models)
    return {**kept, **folders, "HOME": str(home), "TZ": NOON}


def in_every_wire(prompt: str, model: str) -> dict[str, dict[str, Any]]:
    """A short request of each path that takes a prompt, by that path."""
    messages = [{"role": "user", "content": prompt}]
    ollama = {"stream": False, "options": {"num_predict": 4}}
    return {
        path: {"model": model, **body}
        for path, body in {
            "/v1/chat/completions": {"messages": messages, "max_tokens": 4},
            "/v1/completions": {"prompt": prompt, "max_tokens": 4},
            "/v1/responses": {"input": prompt, "max_output_tokens": 16},
            "/v1/messages": {"messages": messages, "max_tokens": 4},
            "/v1/messages/count_tokens": {"messages": messages},
            "/v1/route": {"messages": messages},
            "/v1/embeddings": {"input": prompt},
            "/api/chat": {"messages": messages, **ollama},
            "/api/generate": {"prompt": prompt, **ollama},
            "/api/embed": {"input": prompt},
            "/api/embeddings": {"prompt": prompt},
        }.items()
    }


def client(daemon: Daemon) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0)


def reload(daemon: Daemon, home: Path, config: str = "") -> None:
    """Have the daemon take over `config`, and wait until it has."""
    log, file = home / "log", home / "config" / "upcall" / "config.toml"
    before = log.read_text().count("the settings were reloaded")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(config)
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: log.read_text().count("the settings were reloaded") > before)


def wait_until(condition: Callable[[], object], seconds: float = START_SECONDS) -> None:
    """Poll until `condition` holds; a deadline that only a hang can reach."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


def _port(process: "subprocess.Popen[bytes]", log: Path) -> int:
    port = 0

    def listening() -> bool:
        nonlocal port
        assert process.poll() is None, log.read_text()
        if said := re.search(r"listening on http://127\.0\.0\.1:(\d+)", log.read_text()):
            port = int(said[1])
        return bool(port)

    wait_until(listening)
    return port
