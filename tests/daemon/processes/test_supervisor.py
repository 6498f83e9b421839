"""Processes: started, told to systemd, restarted, and never left behind."""

import asyncio
import os
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import pytest_asyncio

from daemon.accounts.history import opened
from daemon.config import Settings
from daemon.processes.children import Children
from daemon.processes.link import Message, WorkerDown
from tests.daemon.conftest import Escalating, StartDaemon
from tests.daemon.harness import (
    UPCALL,
    Daemon,
    client,
    in_every_wire,
    reload,
    running_daemon,
    user_environment,
    wait_until,
)
from tests.emulators.upstream import Call, Upstream, serving

HELLO: Any = [{"role": "user", "content": "hello"}]


def family(daemon: Daemon) -> list[psutil.Process]:
    return psutil.Process(daemon.process.pid).children(recursive=True)


def test_systemd_is_told_when_requests_are_served(tmp_path: Path) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(30)
        environment = {**user_environment(tmp_path), "NOTIFY_SOCKET": str(address)}
        with subprocess.Popen([UPCALL, "serve", "--port", "0"], env=environment, stderr=subprocess.DEVNULL) as process:
            assert manager.recv(1000).startswith(b"READY=1\n")
            process.terminate()
            assert manager.recv(1000) == b"STOPPING=1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_clean_and_leaves_no_process(start_daemon: StartDaemon, number: signal.Signals) -> None:
    daemon = start_daemon()
    processes = family(daemon)
    daemon.process.send_signal(number)

    assert daemon.process.wait(60) == 0
    assert not [process for process in processes if process.is_running()]


async def test_an_answer_that_is_nearly_done_is_not_cut_by_a_stop(escalating: Escalating, upstream: Upstream) -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def slowly(call: Call) -> None:
        begun.set()
        await stopped.wait()
        await asyncio.sleep(0.5)
        await call.send(*call.begin, call.text("Hello"), *call.end)

    upstream.script = slowly
    daemon = await asyncio.to_thread(escalating, upstream.base_url("openai"))

    def ask() -> str | None:
        return client(daemon).chat.completions.create(model="cloud", messages=HELLO).choices[0].message.content

    asking = asyncio.create_task(asyncio.to_thread(ask))
    await begun.wait()
    daemon.process.terminate()
    stopped.set()

    assert await asking == "Hello"
    assert await asyncio.to_thread(daemon.process.wait, 60) == 0


def test_an_answer_that_a_stop_cuts_is_recorded_as_such(start_daemon: StartDaemon, tmp_path: Path) -> None:
    daemon = start_daemon()
    answer = client(daemon).chat.completions.create(
        model="local", messages=HELLO, max_tokens=4000, logit_bias={"2": -100}, stream=True
    )
    next(chunk for chunk in answer if chunk.choices[0].delta.content)
    daemon.process.terminate()
    assert daemon.process.wait(60) == 0

    with opened(tmp_path / "state" / "upcall" / "ledger.db") as history:
        assert [record.outcome for _, record in history.newer(0, 10)] == ["cancelled"]


async def test_no_worker_is_started_once_the_daemon_stops(
    tmp_path: Path, models_ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in user_environment(tmp_path, models_ready).items():
        monkeypatch.setenv(name, value)
    told: list[Message] = []
    children = Children(Settings(), lambda name: "", lambda message, sock=None: told.append(message), lambda *_: None)
    await children.stop()
    children.want("cloud")
    await asyncio.to_thread(wait_until, lambda: told)

    assert told == [WorkerDown("cloud", "upcall is stopping")]
    assert not [child for child in psutil.Process().children() if "daemon.processes.worker" in child.cmdline()]


def test_a_killed_supervisor_leaves_no_process(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    processes = family(daemon)
    daemon.process.kill()

    wait_until(lambda: not [process for process in processes if process.is_running() and _alive(process)])


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_killed_gateway_ends_the_daemon_with_an_error_for_systemd_to_restart(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    daemon.children("daemon.gateway")[0].kill()

    assert daemon.process.wait(60) != 0


def test_a_killed_local_worker_is_restarted_again_and_again(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    for _ in range(3):
        wait_until(lambda: len(daemon.children("local")) == 1)
        (worker,) = daemon.children("local")
        worker.kill()
        # What it is asked before it is gone, it takes along.
        worker.wait(60)
        hello = [{"role": "user", "content": "hello"}]
        answer = client(daemon).chat.completions.create(model="local", messages=hello, max_tokens=2)  # type: ignore[arg-type]
        assert answer.model == "smollm2-135m"
        assert daemon.children("local") != [worker]


async def test_a_worker_that_is_asked_for_while_it_starts_is_started_once(
    tmp_path: Path, models_ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway asks for a killed worker just when the pause before its restart ends."""
    for name, value in user_environment(tmp_path, models_ready).items():
        monkeypatch.setenv(name, value)
    started: list[socket.socket | None] = []
    children = Children(
        Settings(), lambda name: "", lambda _, sock=None: started.append(sock and sock.dup()), lambda *_: None
    )
    for _ in range(3):
        children.want("local")
    await asyncio.to_thread(wait_until, lambda: started)
    await asyncio.sleep(1)
    workers = [child for child in psutil.Process().children() if "daemon.processes.worker" in child.cmdline()]
    await children.stop()

    assert len(started) == len(workers) == 1


def test_pauses_between_restarts_grow_until_the_local_worker_answers(start_daemon: StartDaemon, tmp_path: Path) -> None:
    daemon = start_daemon()
    workers: list[psutil.Process] = []

    def kill() -> None:
        wait_until(lambda: daemon.children("local") not in ([], workers[-1:]))
        workers.extend(daemon.children("local"))
        workers[-1].kill()

    kill()
    kill()
    workers[-1].wait(60)
    hello = [{"role": "user", "content": "hello"}]
    client(daemon).chat.completions.create(model="local", messages=hello, max_tokens=2)  # type: ignore[arg-type]
    kill()
    log = tmp_path / "log"
    wait_until(lambda: log.read_text().count("restarting it in") == 3)
    assert re.findall(r"restarting it in ([\d.]+) s", log.read_text()) == ["0.2", "0.5", "0.2"]


def test_a_missing_model_says_which_command_brings_it(tmp_path: Path) -> None:
    with running_daemon(tmp_path, None, {}) as daemon:
        wait_until(lambda: "upcall pull smollm2-135m" in daemon.call("GET", "/healthz")["local"]["detail"])


def test_no_prompt_reaches_disk_or_log(start_daemon: StartDaemon, tmp_path: Path) -> None:
    daemon = start_daemon(LOG__LEVEL="debug")
    secret = "xylophone-quagmire-7731"
    for model in ("auto", "local", "cloud", "unknown"):
        hello = [{"role": "user", "content": f"Repeat: {secret}"}]
        client(daemon).chat.completions.create(model=model, messages=hello, max_tokens=16)  # type: ignore[arg-type]
    for path, body in in_every_wire(f"Repeat: {secret}", "local").items():
        daemon.call("POST", path, body)
        refused = httpx.post(daemon.url + path, json={**body, "model": [secret]}, timeout=60)
        assert (path, refused.status_code) == (path, 400)
    wrong = [{"role": secret, "content": secret}]
    with pytest.raises(openai.BadRequestError):
        client(daemon).chat.completions.create(model="auto", messages=wrong)  # type: ignore[arg-type]

    written = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert tmp_path / "log" in written
    assert not [path for path in written if secret.encode() in path.read_bytes()]


def test_the_local_worker_is_nicer_than_the_gateway(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()

    assert daemon.children("local")[0].nice() == os.nice(0) + 5
    assert daemon.children("daemon.gateway")[0].nice() == os.nice(0)


@pytest_asyncio.fixture
async def another() -> AsyncIterator[Upstream]:
    async for server in serving(None):
        yield server


PROXIED = 'provider = "openai"\nbase_url = "http://provider.invalid/v1"\nkey = "none"\nproxy = "{proxy}"\n'
UNREACHABLE = 'provider = "openai"\nbase_url = "http://127.0.0.1:9/v1"\nkey = "none"\nmax_retries = 0\n'


@pytest.mark.parametrize(
    "config",
    [
        f'[cloud]\nmodel = "first"\n{PROXIED}',
        f'[cloud]\nmodel = "first"\n{UNREACHABLE}[[cloud.fallbacks]]\nmodel = "second"\n{PROXIED}',
    ],
    ids=["of the first", "of a fallback"],
)
async def test_prompts_go_by_a_new_proxy_as_soon_as_it_was_reloaded(
    start_daemon: StartDaemon, upstream: Upstream, another: Upstream, tmp_path: Path, config: str
) -> None:
    def ask() -> None:
        client(daemon).chat.completions.create(model="cloud", messages=HELLO, max_tokens=2)

    (tmp_path / "config" / "upcall").mkdir(parents=True)
    (tmp_path / "config" / "upcall" / "config.toml").write_text(config.format(proxy=upstream.url))
    daemon = await asyncio.to_thread(start_daemon)
    await asyncio.to_thread(ask)
    assert (len(upstream.calls), len(another.calls)) == (1, 0)

    await asyncio.to_thread(reload, daemon, tmp_path, config.format(proxy=another.url))
    await asyncio.to_thread(ask)
    assert (len(upstream.calls), len(another.calls)) == (1, 1)


def test_a_provider_that_no_key_can_be_named_after_is_told_and_ends_no_look_for_keys(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ready=False, CLOUD__MODEL="m", CLOUD__PROVIDER="two words")

    wait_until(lambda: "is no key name" in daemon.call("GET", "/healthz")["cloud"]["detail"])
    assert "is no key name" in daemon.cli("doctor").stdout


PASTED = "sk-proj-Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5"


def test_a_key_that_was_pasted_as_its_name_is_refused_and_shown_nowhere(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    daemon = start_daemon(ready=False)
    config = tmp_path / "config" / "upcall" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'[cloud]\nkey = "{PASTED}"\n')
    daemon.process.send_signal(signal.SIGHUP)
    log = tmp_path / "log"
    wait_until(lambda: "were not reloaded" in log.read_text())

    said = [daemon.cli(*command.split()) for command in ("config check", "config show", "serve --port 0", "doctor")]
    assert [each.returncode for each in said] == [2] * 4
    assert all("upcall key set NAME" in each.stderr for each in said)
    shown = [log.read_text(), str(daemon.call("GET", "/healthz")), *(each.stdout + each.stderr for each in said)]
    assert not [text for text in shown if PASTED in text]
