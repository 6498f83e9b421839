"""The command line as a person uses it: the good way, and what mistakes say."""

import json
import re
import socket
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from daemon.config import Server
from daemon.doctor import clock, compiled
from daemon.service import ServiceError, install
from tests.daemon.harness import Daemon, cli, user_environment
from tests.emulators.servers import KEY, Emulator


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return user_environment(tmp_path)


def test_help_imports_nothing_heavy(home: Mapping[str, str]) -> None:
    seen = cli({**home, "PYTHONPROFILEIMPORTTIME": "1"}, "--help").stderr

    imported = {line.rpartition("|")[2].strip() for line in seen.splitlines()}

    assert {"click", "daemon.cli"} <= imported
    assert not imported & {
        "pydantic",
        "numpy",
        "onnxruntime",
        "aiohttp",
        "llama_cpp",
        "rich",
        "asyncio",
        "opentelemetry",
    }


def test_an_empty_key_is_refused(home: Mapping[str, str]) -> None:
    refused = cli(home, "key", "set", "openai")

    assert refused.returncode == 1
    assert "no key was given" in refused.stderr


def test_a_key_without_a_keyring_is_refused_and_nothing_keeps_it(home: Mapping[str, str], tmp_path: Path) -> None:
    refused = cli(home, "key", "set", "openai", stdin="sk-some-secret-key\n")

    assert refused.returncode == 1
    assert "keyring" in refused.stderr
    assert "sk-some-secret-key" not in refused.stdout + refused.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"sk-some-secret" in path.read_bytes()]


def test_config_show_prints_what_is_in_force(home: Mapping[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "config" / "upcall"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("[routing]\ncloud_share = 0.05\n")

    assert json.loads(cli(home, "config", "show").stdout)["routing"]["cloud_share"] == 0.05


def test_a_port_in_use_names_its_holder(upcall: Daemon) -> None:
    second = cli(upcall.environment, "serve", "--port", str(upcall.server.port))

    assert second.returncode == 2
    assert str(upcall.children("gateway")[0].pid) in second.stderr
    assert "Traceback" not in second.stderr


WHY = {"route": "local", "model": "m", "reason": "forced_local", "score": None}
ANY = "what this machine has"
HEALTHY = {
    "python": "ok", "clock": ANY, "llama.cpp": ANY,
    "local model": "ok", "fit": "ok", "router": "ok", "key": "note", "port": "ok", "kernel": ANY,
    "battery": "ok", "systemd": ANY, "disk": ANY, "ledger": "ok",
}  # fmt: skip
BROKEN = {
    "python": "ok", "clock": ANY, "llama.cpp": ANY,
    "local model": "bad", "router": "bad", "cloud": "note", "key": "note", "traces": "bad", "port": "bad",
    "kernel": ANY, "battery": "ok", "systemd": ANY, "disk": ANY, "ledger": "bad",
}  # fmt: skip


@pytest.mark.parametrize("command", ["status", "privacy status", "privacy on", "ask hello", "feedback right last"])
def test_another_program_on_the_port_is_not_taken_for_upcall(home: Mapping[str, str], command: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as stranger:
        threading.Thread(target=stranger.serve_forever).start()
        told = cli({**home, "UPCALL_SERVER__PORT": str(stranger.server_port)}, *command.split())
        stranger.shutdown()

    assert told.returncode == (command != "privacy status")
    assert told.stdout == ("privacy mode is off\n" if command == "privacy status" else "")
    if command != "privacy status":
        where = f"127.0.0.1:{stranger.server_port}"
        assert f"something that is not this upcall answers at {where}: stop it, or set server.port" in told.stderr
    if command == "privacy on":
        assert cli(home, "privacy", "status").stdout == "privacy mode is on\n"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_an_answer_that_is_cut_off_is_no_answer_whatever_the_terminal_can_show(
    home: Mapping[str, str], encoding: str
) -> None:
    class Cut(BaseHTTPRequestHandler):
        server_version, sys_version = "upcall", ""

        def do_POST(self) -> None:
            delta = {"choices": [{"delta": {"content": "half an answer \N{EM DASH}"}}], "x_upcall": WHY}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"data: {json.dumps(delta)}\n\n".encode())

        def version_string(self) -> str:
            return self.server_version

    with ThreadingHTTPServer(("127.0.0.1", 0), Cut) as cut:
        threading.Thread(target=cut.serve_forever).start()
        environment = {**home, "UPCALL_SERVER__PORT": str(cut.server_port), "PYTHONIOENCODING": encoding}
        said = cli(environment, "ask", "hello")
        cut.shutdown()

    assert said.returncode == 1
    assert said.stdout.startswith("half an answer")
    assert "the answer was cut off" in said.stderr
    assert "Traceback" not in said.stderr


def test_without_the_token_commands_say_so_and_privacy_is_still_switched_on(home: Mapping[str, str]) -> None:
    guarded = {**home, "UPCALL_SERVER__TOKEN": "true", "UPCALL_SERVER__PORT": "9"}
    told = {command: cli(guarded, *command.split()) for command in ("status", "ask hello", "privacy on")}
    checked = json.loads(cli(guarded, "doctor", "--json").stdout)

    assert all("Traceback" not in said.stderr for said in told.values())
    assert [told[command].returncode for command in ("status", "ask hello", "privacy on")] == [1, 1, 0]
    assert "the daemon cannot be asked: " in told["status"].stderr
    assert told["privacy on"].stdout == "privacy mode is on\n"
    assert cli(home, "privacy", "status").stdout == "privacy mode is on\n"
    assert [found["state"] for found in checked if found["check"] == "port"] == ["note"]


@pytest.mark.parametrize(
    "server", [Server(host="192.0.2.1", token=True), Server(socket=Path("/run/upcall")), Server(port=0)]
)
def test_no_unit_is_written_for_an_address_that_systemd_could_not_pass_on(server: Server) -> None:
    with pytest.raises(ServiceError, match=r"server\.port|socket unit serves"):
        install(server)


def test_doctor_finds_a_ready_machine_well(tmp_path: Path, models_ready: Path) -> None:
    examined = cli({**user_environment(tmp_path, models_ready), "UPCALL_SERVER__PORT": "0"}, "doctor", "--json")

    assert _states(examined.stdout) == HEALTHY
    assert re.search(r"compiled (for this processor \(|without )", examined.stdout)
    assert f"it is {time.strftime('%Y-', time.gmtime())}" in examined.stdout
    told = ("upcall key set openai", "credential", "did not answer")  # the last where it takes long to look
    assert any(words in examined.stdout for words in told)
    assert examined.returncode == ('"bad"' in examined.stdout)


def test_doctor_names_what_is_broken_and_the_command_that_mends_it(home: Mapping[str, str], tmp_path: Path) -> None:
    ledger = tmp_path / "state/upcall/ledger.db"
    ledger.parent.mkdir(parents=True)
    ledger.write_text("not a database, " * 100)
    cli(home, "privacy", "on")
    with socket.create_server(("127.0.0.1", 0)) as holder:
        holder.listen()
        port = holder.getsockname()[1]
        threading.Thread(target=_answer_nonsense, args=(holder,), daemon=True).start()
        settings = {"UPCALL_SERVER__PORT": str(port), "UPCALL_TELEMETRY__OTLP_ENDPOINT": "http://127.0.0.1:9"}
        examined = cli({**home, **settings}, "doctor", "--json")
    bad = {finding["check"]: finding["text"] for finding in json.loads(examined.stdout) if finding["state"] == "bad"}

    assert examined.returncode == 1
    assert _states(examined.stdout) == BROKEN
    assert "upcall pull smollm2-135m" in bad["local model"]
    assert "upcall pull use-multilingual" in bad["router"]
    assert "server.port" in bad["port"]
    assert "start a collector" in bad["traces"]
    assert f"mv {ledger}" in bad["ledger"]


@pytest.mark.parametrize(
    ("now", "kept", "state", "said"),
    [
        (1.8e9, True, "ok", "2027-01-15 08:00 UTC"),
        (1.8e9, False, "note", "timedatectl set-ntp true"),
        (0.0, True, "bad", "1970-01-01 00:00 UTC, before upcall was installed"),
        (0.0, False, "bad", "timedatectl set-ntp true"),
    ],
)
def test_doctor_tells_a_clock_that_is_kept_right_from_one_that_is_not_and_from_one_that_is_wrong(
    now: float, kept: bool, state: str, said: str
) -> None:
    found = clock(now, 1.7e9, kept)

    assert found.state == state
    assert said in found.text


X86 = "model name\t: any\nflags\t\t: fpu sse2 avx f16c fma avx2 avx512f avx512_vnni\n"
ARM = "Features\t: fp asimd asimddp\n"


@pytest.mark.parametrize(
    ("built", "cpu", "state", "said"),
    [
        (
            "CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | AVX512 = 1 | AVX512_VNNI = 1 |",
            X86,
            "ok",
            "AVX2",
        ),
        ("CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 |", X86, "note", "without AVX512, AVX512_VNNI"),
        ("CPU : SSE3 = 1 | AVX2 = 0 |", X86, "note", "without AVX, AVX2, AVX512, AVX512_VNNI, F16C, FMA"),
        ("CPU : NEON = 1 | ARM_FMA = 1 | DOTPROD = 1 |", ARM, "ok", "NEON, DOTPROD"),
        ("CPU : NEON = 1 | ARM_FMA = 1 |", ARM, "note", "without DOTPROD"),
        ("", X86, "bad", "cannot be loaded"),
        ("CPU : AVX = 1 |", "", "ok", "compiled for this processor"),
    ],
)
def test_doctor_compares_what_llama_cpp_was_compiled_with_to_what_the_processor_has(
    built: str, cpu: str, state: str, said: str
) -> None:
    found = compiled(built, cpu)

    assert (found.state, said in found.text) == (state, True), found.text
    assert ("pip install --force-reinstall" in found.text) == (state != "ok")


def _states(shown: str) -> dict[str, str]:
    """The worst state of each check, in their order, without what depends on the machine."""
    worst: dict[str, str] = {}
    for finding in json.loads(shown):
        name = finding["check"]
        worst[name] = max(worst.get(name, ""), finding["state"], key=["", "ok", "note", "bad"].index)
    return {name: ANY if HEALTHY.get(name) == ANY else state for name, state in worst.items()}


def _answer_nonsense(holder: socket.socket) -> None:
    connection, _ = holder.accept()
    connection.recv(1000)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    connection.close()


@pytest.mark.parametrize(("secret", "status", "said"), [(KEY, 0, "gpt-4 answers"), ("sk-wrong", 1, "key")])
def test_a_key_can_be_tried(
    home: Mapping[str, str], tmp_path: Path, aimock: Emulator, secret: str, status: int, said: str
) -> None:
    (tmp_path / "openai").write_text(secret)
    environment = {**home, "CREDENTIALS_DIRECTORY": str(tmp_path), "UPCALL_CLOUD__BASE_URL": aimock.base_url("openai")}
    tried = cli(environment, "key", "test")

    assert tried.returncode == status
    assert said in tried.stdout + tried.stderr
    assert secret not in tried.stdout + tried.stderr


def test_a_key_is_not_tried_under_privacy(home: Mapping[str, str]) -> None:
    cli(home, "privacy", "on")
    tried = cli(home, "key", "test")

    assert tried.returncode == 1
    assert "privacy" in tried.stderr
