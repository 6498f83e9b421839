"""What the kernel keeps from a process that has been taken over, and what happens where the kernel cannot."""

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from daemon.confine import kernel, seccomp
from tests.conftest import Require
from tests.daemon.conftest import Escalating, StartDaemon
from tests.daemon.harness import UPCALL, client, reload, running_daemon, user_environment, wait_until
from tests.daemon.planted import HOSTILE, planted, reports
from tests.emulators.servers import KEY, Emulator

WITHOUT = Path(__file__).with_name("without.py")
HELLO: Any = [{"role": "user", "content": "hello"}]
CONFINED = ("gateway", "local")
OWN = {"gateway": ["list the state", "read the state", "write the state"], "local": []}
"""What each does for a living: the gateway keeps the ledger there."""


def attacked(role: str, targets: dict[str, Any], tmp_path: Path) -> dict[str, bool]:
    environment = {**user_environment(tmp_path), "HOME": targets["home"]}
    command = [sys.executable, "-P", HOSTILE, role, json.dumps(targets)]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr.decode()
    outcome: dict[str, bool] = json.loads(done.stdout)
    return outcome


def test_the_attacks_work_where_nothing_is_confined(targets: dict[str, Any], tmp_path: Path, require: Require) -> None:
    require(os.geteuid() == 0, "needs root, whom nothing else stops")
    outcome = attacked("free", targets, tmp_path)

    assert [name for name, succeeded in outcome.items() if not succeeded] == []


@pytest.mark.parametrize("role", CONFINED)
def test_a_hostile_process_reaches_nothing(
    role: str, targets: dict[str, Any], tmp_path: Path, require: Require
) -> None:
    require(_landlock(), "needs a kernel with Landlock")
    outcome = attacked(role, targets, tmp_path)

    assert len(outcome) > 20
    assert [name for name, succeeded in outcome.items() if succeeded] == OWN[role]


def test_code_inside_the_running_processes_reaches_nothing(
    targets: dict[str, Any], models_ready: Path, tmp_path: Path, require: Require
) -> None:
    """The same attempts, by code that waits for a signal inside the very processes that serve."""
    require(_landlock(), "needs a kernel with Landlock")
    # The most that the local worker ever may.
    settings, wrapper = {"LOCAL__CACHE_ON_DISK": "true"}, planted(tmp_path, targets)
    with running_daemon(tmp_path, models_ready, settings, Path(targets["credentials"]), wrapper) as daemon:
        wait_until(lambda: daemon.call("GET", "/healthz")["local"]["state"] == "ready")
        for count, role in enumerate(("local", "gateway"), 1):
            daemon.children(role)[0].send_signal(signal.SIGUSR1)
            wait_until(lambda count=count: len(reports(tmp_path)) == count)

    assert [bool(listeners) for listeners, _ in reports(tmp_path)] == [False, True]
    for role, (_, outcome) in zip(("local", "gateway"), reports(tmp_path), strict=True):
        assert len(outcome) > 20
        assert [name for name, succeeded in outcome.items() if succeeded] == OWN[role]


def test_every_layer_holds_the_processes_that_see_prompts(start_daemon: StartDaemon, require: Require) -> None:
    require(os.geteuid() == 0, "needs root, who may look into any process")
    require(_landlock(), "needs a kernel with Landlock")
    daemon = start_daemon()
    networks = {os.readlink("/proc/self/ns/net")}

    every = "netns+seccomp+landlock"
    assert daemon.call("GET", "/healthz")["kernel"] == {"barrier": "netns", "gateway": every, "local": every}
    for role in CONFINED:
        (process,) = daemon.children(role)
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert re.findall(r"Cap\w+:\t0*([1-9a-f]\w*)", status) == []
        assert re.findall(r"(?:NoNewPrivs|Seccomp):\t(\d)", status) == ["1", "2"]
        assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        networks.add(os.readlink(f"/proc/{process.pid}/ns/net"))
    assert len(networks) == 3


PASSWORDS = ("password-at-the-start", "password-of-a-reload")
PROXIES = """
[cloud]
proxy = "http://user:first-{password}@127.0.0.1:9"
[[cloud.fallbacks]]
model = "claude-3-opus"
proxy = "http://user:fallback-{password}@127.0.0.1:9"
"""


def test_no_process_that_sees_prompts_inherits_keys_from_the_environment_or_the_settings(
    tmp_path: Path, models_ready: Path, require: Require
) -> None:
    require(os.geteuid() == 0, "needs root, who may read any memory")
    wrapper = ["env", "OPENAI_API_KEY=sk-from-the-shell", "LLAMA_CLOUD_API_KEY=sk-from-the-shell"]
    config = tmp_path / "config" / "upcall" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(PROXIES.format(password=PASSWORDS[0]))
    with running_daemon(tmp_path, models_ready, {}, wrapper=wrapper) as daemon:
        wait_until(lambda: daemon.call("GET", "/healthz")["local"]["state"] == "ready")
        supervisor = psutil.Process(daemon.process.pid)
        first, later = ([f"{of}-{password}".encode() for of in ("first", "fallback")] for password in PASSWORDS)
        # Shows that the search finds what is there.
        assert all(_in_memory(supervisor, password) for password in first)
        reload(daemon, tmp_path, PROXIES.format(password=PASSWORDS[1]))
        assert all(_in_memory(supervisor, password) for password in later)
        for role in CONFINED:
            (process,) = daemon.children(role)
            assert "sk-from-the-shell" not in str(process.environ())
            assert [password for password in first + later if _in_memory(process, password)] == []


def test_nothing_is_imported_from_the_directory_that_upcall_was_started_in(
    tmp_path: Path, models_ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = tmp_path / "imported"
    for module in ("numpy", "psutil", "json", "llama_cpp"):
        (tmp_path / f"{module}.py").write_text(f"open({str(imported)!r}, 'w').close()\nraise SystemExit('planted')")
    monkeypatch.chdir(tmp_path)
    with running_daemon(tmp_path, models_ready, {}) as daemon:
        wait_until(lambda: daemon.call("GET", "/healthz")["local"]["state"] == "ready")
        ask = client(daemon).chat.completions.with_raw_response.create

        def helped() -> bool:
            """By helpers that have looked for the key and for its model's price."""
            return bool(daemon.call("GET", "/healthz")["cloud"]["models"][0]["detail"]) and (
                "x-upcall-saved-usd" in ask(model="local", messages=HELLO, max_tokens=1).headers
            )

        wait_until(lambda: imported.exists() or helped())
    assert not imported.exists()


def test_no_key_is_in_the_memory_of_gateway_or_local_worker_after_escalations(
    escalating: Escalating, aimock: Emulator, require: Require
) -> None:
    require(os.geteuid() == 0, "needs root, who may read any memory")
    daemon = escalating(aimock.base_url("openai"))
    ask = client(daemon).chat.completions.create
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: ask(model="cloud", messages=HELLO), range(100)))
    (cloud,) = daemon.children("cloud")  # however many asked for it at once

    assert {answer.model for answer in answers} == {"gpt-4"}
    # Shows that the search finds what is there.
    assert _in_memory(cloud, KEY.encode())
    assert cloud.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    for role in CONFINED:
        (process,) = daemon.children(role)
        assert not _in_memory(process, KEY.encode())
        assert KEY not in str(process.cmdline()) + str(process.environ())


UNENFORCEABLE = ("unshare", "seccomp", "landlock_create_ruleset")


def test_privacy_mode_does_not_start_where_the_kernel_enforces_nothing(tmp_path: Path) -> None:
    command = [*_without(UNENFORCEABLE), UPCALL, "serve", "--port", "0", "--privacy"]
    environment = user_environment(tmp_path)
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    errors = [line for line in refused.stderr.splitlines() if "ERROR   daemon.processes.supervisor" in line]

    assert refused.returncode == 2
    assert len(errors) == 1
    assert 'privacy.enforcement = "best-effort"' in errors[0]
    assert "listening" not in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_reload_does_not_switch_privacy_mode_on_where_the_kernel_enforces_nothing(tmp_path: Path) -> None:
    with running_daemon(tmp_path, None, {}, wrapper=_without(UNENFORCEABLE)) as daemon:
        (tmp_path / "config" / "upcall").mkdir(parents=True)
        (tmp_path / "config" / "upcall" / "config.toml").write_text("[privacy]\nmode = true\n")
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "the settings were not reloaded" in (tmp_path / "log").read_text())

        assert 'privacy.enforcement = "best-effort"' in (tmp_path / "log").read_text()
        assert daemon.call("GET", "/healthz")["privacy"] is False


def test_the_switch_says_where_the_kernel_enforces_nothing(tmp_path: Path) -> None:
    with running_daemon(tmp_path, None, {}, wrapper=_without(UNENFORCEABLE)) as daemon:
        daemon.cli("privacy", "on")

        assert daemon.call("GET", "/healthz")["privacy"] is True
        assert 'privacy.enforcement = "best-effort"' in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("denied", "settings", "barrier", "missing"),
    [
        (UNENFORCEABLE, {}, "none", {"netns", "seccomp", "landlock"}),
        (UNENFORCEABLE, {"PRIVACY__MODE": "true", "PRIVACY__ENFORCEMENT": "best-effort"}, "none", {"netns"}),
        (("unshare",), {"PRIVACY__MODE": "true"}, "seccomp", {"netns"}),
        (("seccomp", "landlock_create_ruleset"), {"PRIVACY__MODE": "true"}, "netns", {"seccomp", "landlock"}),
    ],
)
def test_a_layer_that_the_kernel_lacks_is_named_and_the_others_hold(
    tmp_path: Path, denied: tuple[str, ...], settings: dict[str, str], barrier: str, missing: set[str]
) -> None:
    with running_daemon(tmp_path, None, settings, wrapper=_without(denied)) as daemon:
        log = (tmp_path / "log").read_text()

        assert daemon.call("GET", "/healthz")["kernel"]["barrier"] == barrier
        for layer in missing:
            assert f"the gateway process runs without {layer}: " in log


def _without(denied: tuple[str, ...]) -> list[str]:
    """What runs a command on a kernel that lacks these system calls."""
    return [sys.executable, "-P", str(WITHOUT), ",".join(denied)]


@pytest.mark.parametrize(
    ("machine", "header"), [("x86_64", "x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "asm-generic/unistd.h")]
)
def test_system_calls_have_the_numbers_of_linux(machine: str, header: str, require: Require) -> None:
    path = Path("/usr/include", header)
    require(path.exists(), f"needs {path} (linux-libc-dev)")
    numbers = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)", path.read_text()))

    assert {name: int(numbers[name]) for name in kernel.SYSCALLS[machine]} == kernel.SYSCALLS[machine]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_decides_alike_on_every_machine(machine: str) -> None:
    numbers = kernel.SYSCALLS[machine]
    architecture = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]

    def verdict(name: str, *arguments: int, may_accept: bool = False) -> str:
        return _run(seccomp.program(machine, may_accept, pid=4711), architecture, numbers[name], arguments)

    assert {verdict(name) for name in (*seccomp.NEVER, *seccomp.LISTENING)} == {"errno 1"}
    assert {verdict(name) for name in seccomp.ABSENT} == {"errno 38"}
    assert {verdict(name, may_accept=True) for name in seccomp.LISTENING} == {"allow"}
    assert verdict("clone", 0x3D0F00) == "allow"  # a thread
    assert verdict("clone", 0x10000000 | 17) == "errno 1"  # a process in a user namespace
    assert verdict("socketpair", socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) == "allow"
    assert verdict("socketpair", socket.AF_UNIX, socket.SOCK_DGRAM) == "errno 1"
    assert verdict("socketpair", 30, socket.SOCK_STREAM) == "errno 1"  # AF_TIPC reaches other machines
    assert [verdict(name, 0, 0, 0, 0) for name in ("sendto", "sendmsg", "sendmmsg")] == ["allow"] * 3
    assert verdict("sendto", 0, 0, 0, 0x20000000) == "errno 1"
    assert verdict("sendmsg", 0, 0, 0x20000000) == "errno 1"
    assert {verdict(name, 4711) for name in seccomp.SIGNALLING} == {"allow"}
    assert {verdict(name, pid) for name in seccomp.SIGNALLING for pid in (1, 0, 2**64 - 1, 4712)} == {"errno 1"}
    assert _run(seccomp.program(machine, False, 1), 0x40000003, 0, ()) == "kill"  # i386 has other numbers
    assert _run(seccomp.program(machine, False, 1), architecture, 0x40000000 | 41, ()) == "kill"  # so has x32


def _run(program: bytes, architecture: int, number: int, arguments: tuple[int, ...]) -> str:
    """What the kernel would do: an interpreter of the part of classic BPF that filters use."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, *(*arguments, *[0] * (6 - len(arguments))))
    instructions = list(struct.iter_unpack("=HBBI", program))
    accumulator = place = 0
    while True:
        operation, if_true, if_false, operand = instructions[place]
        place += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, operand)
            case 0x54:
                accumulator &= operand
            case 0x15:
                place += if_true if accumulator == operand else if_false
            case 0x35:
                place += if_true if accumulator >= operand else if_false
            case 0x45:
                place += if_true if accumulator & operand else if_false
            case 0x06:
                kinds = {0x7FFF0000: "allow", 0x80000000: "kill"}
                return kinds.get(operand) or f"errno {operand & 0xFFFF}"


def _landlock() -> bool:
    try:
        return kernel.call("landlock_create_ruleset", None, 0, 1) > 0
    except OSError:
        return False


def _in_memory(process: psutil.Process, secret: bytes) -> bool:
    """Whether the readable and writable memory of a process has `secret` anywhere."""
    with Path(f"/proc/{process.pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
            place, rights = line.split()[:2]
            start, end = (int(number, 16) for number in place.split("-"))
            if rights.startswith("rw"):
                memory.seek(start)
                with contextlib.suppress(OSError):
                    if secret in memory.read(end - start):
                        return True
    return False
