"""The service under a real `systemd --user`, of a user who is not root, with the units that upcall installs."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from daemon import service
from daemon.client import call
from daemon.config import Server
from models.store import Store
from tests.conftest import Require
from tests.daemon.harness import UPCALL, wait_until
from tests.daemon.systemd.user import NAME, REPOSITORY, UID, User, missing, user_with_systemd
from tests.emulators.servers import free_port

SERVICE, SOCKET = "upcall.service", "upcall.socket"
HOME = Path("/home", NAME)
UNITS = HOME / ".config/systemd/user"
PROBE = REPOSITORY / "tests/daemon/systemd/probe.py"
SEEN = "\n".join(
    f"BindReadOnlyPaths={path}"
    for path in sorted({REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)})
    if path.is_relative_to("/tmp")
)
"""PrivateTmp hides a checkout under /tmp from the service, where nobody but a test would run it from."""
SECRET = "quokka-9931-velvet"


@pytest.fixture(scope="module")
def server() -> Server:
    return Server(port=free_port())


@pytest.fixture(scope="module")
def user(require: Require, store: Store, models_ready: Path, server: Server) -> Iterator[User]:
    """With the weak model and the encoder, settings, and the units installed; nothing enabled, nothing started."""
    require(not (lacking := missing()), lacking)
    with user_with_systemd() as user:
        configure(user, server)
        models = HOME / ".local/share/upcall/models"
        user.run("mkdir", "-p", models)
        for name in ("smollm2-135m", "use-multilingual"):
            path = store.path(name)
            for file in (path, path.with_name(f"{path.name}.verified")):
                shutil.copy2(file, user.home / models.relative_to(HOME))
        # Tighter than what is installed, so that the tests need not wait for half a minute.
        user.write(".config/systemd/user/upcall.service.d/test.conf", f"[Service]\nWatchdogSec=20\n{SEEN}\n")
        said = user.run(UPCALL, "service", "install").stdout
        assert f"wrote {UNITS / SERVICE}" in said
        assert user.systemctl("is-enabled", SERVICE, SOCKET, check=False).split() == ["disabled", "disabled"]
        yield user


@pytest.fixture
def running(user: User) -> User:
    """The service runs, whatever a test before has left."""
    start(user)
    return user


@pytest.fixture
def changing(running: User, server: Server) -> Iterator[User]:
    """The same, for a test that changes the settings."""
    yield running
    configure(running, server)
    running.systemctl("stop", SERVICE)


def configure(user: User, server: Server, more: str = "") -> None:
    user.write(
        ".config/upcall/config.toml", f'[server]\nport = {server.port}\n[local]\nmodel = "smollm2-135m"\n{more}\n'
    )


def start(user: User) -> None:
    user.systemctl("reset-failed", check=False)
    user.systemctl("start", SOCKET, SERVICE)


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)


def main_pid(user: User) -> int:
    return int(user.show(SERVICE, "MainPID"))


def process(user: User, role: str) -> str:
    """The pid, in the user's namespace, of a process of the service."""
    return user.run("pgrep", "-f", "--", f"-m daemon[.a-z]*[.]{role}").stdout.split()[0]


def threshold(server: Server) -> float:
    body = {"messages": [{"role": "user", "content": "hello"}]}
    return float(call(server, "POST", "/v1/route", body, timeout=60)["threshold"])


def long_stream(server: Server) -> openai.Stream[Any]:
    """It does not end before its 400 tokens."""
    story: Any = [{"role": "user", "content": "Write a very long story about a river."}]
    return client(server).chat.completions.create(
        model="local", messages=story, max_tokens=400, temperature=0, stream=True, logit_bias={"2": -100}
    )


def test_systemd_finds_nothing_wrong_with_the_installed_units(user: User) -> None:
    verified = user.run("systemd-analyze", "--user", "verify", UNITS / SERVICE, UNITS / SOCKET)

    assert verified.stdout + verified.stderr == ""


def test_a_port_that_another_program_holds_is_named_before_anything_is_enabled(user: User, server: Server) -> None:
    with socket.create_server(("127.0.0.1", server.port)):
        refused = user.run(UPCALL, "service", "enable", check=False)

    assert refused.returncode == 1
    assert f"cannot listen on 127.0.0.1:{server.port}: another program holds the port; stop it" in refused.stderr
    assert user.systemctl("is-enabled", SOCKET, check=False) == "disabled"


def test_the_first_request_starts_the_daemon_and_is_answered(user: User, server: Server) -> None:
    said = user.run(UPCALL, "service", "enable").stdout
    before = user.show(SERVICE, "ActiveState")
    answer = client(server).chat.completions.create(
        model="local", messages=[{"role": "user", "content": "hello"}], max_tokens=2, timeout=120
    )

    assert "loginctl enable-linger" in said
    assert before == "inactive"
    assert answer.model == "smollm2-135m"
    assert user.show(SERVICE, "StatusText") == f"Listening on http://127.0.0.1:{server.port}"


def test_requests_that_come_during_a_restart_wait_and_are_answered(running: User, server: Server) -> None:
    statuses: list[str] = []
    restarted = threading.Event()

    def ask() -> None:
        last = False
        while not last:
            # One more is asked of the new daemon, however long the restart took.
            last = restarted.is_set()
            statuses.append(call(server, "GET", "/healthz", timeout=60)["status"])

    before = main_pid(running)
    # So many that some may just have been let in when the daemon is told to stop.
    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask) for _ in range(8)]
        try:
            wait_until(lambda: len(statuses) > 80 or all(each.done() for each in asking))
            running.systemctl("restart", SERVICE)
        finally:
            restarted.set()
        refused = [str(each.exception()) for each in asking if each.exception()]

    assert refused == []
    assert main_pid(running) != before
    assert set(statuses) <= {"ok", "degraded"}


@pytest.mark.parametrize("role", ["supervisor", "gateway"])
def test_a_daemon_that_hangs_is_replaced(running: User, server: Server, role: str) -> None:
    before = main_pid(running)
    running.run("kill", "-STOP", str(before) if role == "supervisor" else process(running, "gateway"))

    wait_until(lambda: main_pid(running) not in (0, before))
    assert call(server, "GET", "/healthz", timeout=60)["status"] in ("ok", "degraded")
    assert "watchdog" in running.run("journalctl", "--user", "--unit", SERVICE, "--lines=30").stdout.lower()


def test_a_killed_daemon_is_started_again(running: User, server: Server) -> None:
    before = main_pid(running)
    running.run("kill", "-KILL", str(before))

    wait_until(lambda: main_pid(running) not in (0, before))
    assert call(server, "GET", "/healthz", timeout=60)["status"] in ("ok", "degraded")


def test_a_reload_takes_new_settings_over_and_drops_no_running_stream(changing: User, server: Server) -> None:
    # Or decisions would ask the local worker, which is to stand still, how it is.
    wait_until(lambda: call(server, "GET", "/healthz", timeout=60)["local"]["state"] == "ready")
    before, pid = threshold(server), main_pid(changing)
    arrivals: list[tuple[float, Any]] = []
    stream = long_stream(server)
    reading = threading.Thread(target=lambda: arrivals.extend((time.monotonic(), chunk) for chunk in stream))
    reading.start()
    wait_until(lambda: arrivals)
    # However long the reload takes, the stream runs for longer.
    worker = process(changing, "worker")
    changing.run("kill", "-STOP", worker)
    configure(changing, server, '[routing]\ncloud_share = 0.9\n[log]\nlevel = "debug"')
    changing.systemctl("reload", SERVICE)
    wait_until(lambda: threshold(server) < before)
    reloaded = time.monotonic()
    changing.run("kill", "-CONT", worker)
    reading.join()

    ended, last = arrivals[-1]
    assert ended > reloaded
    assert last.choices[0].finish_reason == "length"
    assert main_pid(changing) == pid  # The watchdog had its beats, too.
    assert changing.show(SERVICE, "StatusText") == f"Listening on http://127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    ("mistake", "said"),
    [("[routing]\ncloud_shar = 0.9", "did you mean routing.cloud_share"), ('[routing]\nrouter = "x"', "no router 'x'")],
)
def test_a_reload_of_wrong_settings_keeps_the_old_and_says_why(
    changing: User, server: Server, mistake: str, said: str
) -> None:
    before, pid = threshold(server), main_pid(changing)
    configure(changing, server, mistake)
    changing.systemctl("reload", SERVICE)

    wait_until(lambda: said in changing.show(SERVICE, "StatusText"))
    assert threshold(server) == before
    assert (main_pid(changing), changing.show(SERVICE, "ActiveState")) == (pid, "active")


def test_a_reload_names_what_only_a_restart_applies(changing: User, server: Server) -> None:
    configure(changing, Server(port=server.port + 1))
    changing.systemctl("reload", SERVICE)

    wait_until(lambda: "server.port changed" in changing.run(UPCALL, "service", "logs", "-n", "5").stdout)
    assert threshold(server) > 0


def test_a_stop_ends_every_process_in_time_even_with_a_stream_running(running: User, server: Server) -> None:
    assert running.show(SERVICE, "TimeoutStopUSec") == "5s"
    results: list[str] = []
    # systemd itself holds the time (TimeoutStopSec=5), and on a loaded machine it can run out without a fault of ours.
    while "success" not in results:
        assert len(results) < 3, results
        start(running)
        next(iter(long_stream(server)))
        running.systemctl("stop", SOCKET, SERVICE)
        results.append(running.show(SERVICE, "Result"))
        assert running.run("pgrep", "-f", "--", "-m daemon.", check=False).stdout == ""
    assert set(results) <= {"success", "timeout"}, results


def test_the_journal_has_a_line_per_request_with_its_priority_and_without_a_word_of_it(
    running: User, server: Server
) -> None:
    client(server).chat.completions.create(
        model="local", messages=[{"role": "user", "content": f"Repeat: {SECRET}"}], max_tokens=8, timeout=120
    )

    def lines() -> list[dict[str, Any]]:
        said = running.run("journalctl", "--user", "--unit", SERVICE, "--output=json", "--lines=20").stdout
        return [json.loads(line) for line in said.splitlines()]

    wait_until(lambda: any("outcome=ok" in line["MESSAGE"] for line in lines()))
    (line, *_) = [line for line in lines() if "outcome=ok" in line["MESSAGE"]]
    assert line["PRIORITY"] == "6"
    assert "outcome=ok route=local" in running.run(UPCALL, "service", "logs").stdout
    assert SECRET not in running.run("journalctl", "--user").stdout


def test_a_key_in_the_keyring_can_be_used_from_within_the_sandbox(running: User, server: Server) -> None:
    unlock = ["gnome-keyring-daemon", "--replace", "--unlock", "--components=secrets", "--daemonize"]
    running.run(*unlock, stdin="password of a throw-away keyring")
    running.run(UPCALL, "key", "set", "openai", stdin="sk-of-nobody\n")
    running.systemctl("restart", SERVICE)

    def found() -> bool:
        # Has the key looked for again, should the look at the start have taken too long.
        decision = {"model": "cloud", "messages": [{"role": "user", "content": "hello"}]}
        call(server, "POST", "/v1/route", decision, timeout=60)
        return bool(call(server, "GET", "/healthz", timeout=60)["cloud"]["has_key"])

    wait_until(found)


FORBIDDEN = [
    "write the home",
    "write the settings",
    "write elsewhere",
    "see others' /tmp",
    "see devices",
    "write its control group",
    "listen to the kernel",
    "map memory to write and run",
    "change the personality",
    "make a setuid file",
    "be traced",
    "dump core",
    "gain privileges",
]
NEEDED = [
    "write its state",
    "write the models",
    "write /tmp",
    "make an internet socket",
    "leave the network",
    "use Landlock",
]
"""What upcall does, the last two to confine its own processes further."""


LIMITS = ("cpu.weight", "memory.high", "memory.swap.max")


@pytest.fixture(scope="module")
def probed(user: User) -> Iterator[tuple[Mapping[str, str], Mapping[str, str]]]:
    """What a service of the user can do without the unit's directives, and with them."""
    elsewhere = Path(f"/var/log/{NAME}")
    for folder in (elsewhere, Path("/tmp", elsewhere.name)):
        inside = Path(f"/proc/{user.leader}/root{folder}")
        inside.mkdir(exist_ok=True)
        os.chown(inside, UID, UID)
    user.run("mkdir", "-p", HOME / ".local/state/upcall")
    python, seen = Path(sys.executable), []
    for name in ("free", "boxed"):
        unit = user.run("cat", UNITS / SERVICE).stdout if name == "boxed" else "[Service]\n"
        dropped = ("ExecStart=", "ExecReload=", "Type=", "Restart=", "WatchdogSec=", "Also=")
        kept = [line for line in unit.splitlines() if not line.startswith(dropped)]
        result = HOME / f".local/state/upcall/{name}.json"
        probe = f"Type=oneshot\nExecStart={python} {PROBE} {elsewhere} {result}"
        kept.insert(kept.index("[Service]") + 1, f"{probe}\n{SEEN}" if name == "boxed" else probe)
        user.write(f".config/systemd/user/probe-{name}.service", "\n".join(kept) + "\n")
        user.systemctl("daemon-reload")
        user.systemctl("start", f"probe-{name}.service")
        seen.append(json.loads(user.run("cat", result).stdout))
    yield seen[0], seen[1]
    Path(f"/proc/{user.leader}/root/tmp/{elsewhere.name}").rmdir()


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_sandbox_has_effect_and_forbids_to(probed: tuple[Mapping[str, str], Mapping[str, str]], what: str) -> None:
    free, boxed = probed

    assert free[what] == ""
    assert boxed[what] != ""


@pytest.mark.parametrize("what", NEEDED)
def test_the_sandbox_leaves_upcall_to(probed: tuple[Mapping[str, str], Mapping[str, str]], what: str) -> None:
    assert probed[1][what] == ""


def test_upcall_confines_its_processes_within_the_sandbox_as_well(running: User, server: Server) -> None:
    kernel = call(server, "GET", "/healthz", timeout=60)["kernel"]

    assert kernel["barrier"] == "netns", kernel


def test_the_limits_are_in_force_wherever_their_controllers_are_delegated(running: User) -> None:
    group = Path(f"/proc/{running.leader}/root/sys/fs/cgroup{running.show(SERVICE, 'ControlGroup')}")
    limit = int(running.show(SERVICE, "MemoryHigh"))

    assert running.show(SERVICE, "CPUWeight") == "50"
    assert limit == pytest.approx(0.8 * psutil.virtual_memory().total, rel=0.01)
    assert running.show(SERVICE, "MemorySwapMax") == "0"
    in_force = {file.name: file.read_text().strip() for file in map(group.joinpath, LIMITS) if file.exists()}
    assert in_force.get("cpu.weight", "50") == "50"
    assert int(in_force.get("memory.high", limit)) == limit
    assert in_force.get("memory.swap.max", "0") == "0"
    delegated = (group / "cgroup.controllers").read_text().split()
    assert set(in_force) >= {file for file in LIMITS if file.split(".")[0] in delegated}, delegated


def test_status_says_what_happens_after_logout_and_how_to_change_it(running: User) -> None:
    before = running.run(UPCALL, "service", "status").stdout
    lingering = Path(f"/proc/{running.leader}/root/var/lib/systemd/linger/{NAME}")
    lingering.touch()
    after = running.run(UPCALL, "service", "status").stdout
    lingering.unlink()

    assert "upcall runs while you are logged in" in before
    assert "loginctl enable-linger" in before
    assert "linger is on: upcall is here from boot on" in after
    assert "enable-linger" not in after


def test_the_exposure_is_not_above_the_one_documented(user: User) -> None:
    user.run("systemd-analyze", "--user", "security", "--no-pager", "--threshold=35", SERVICE)


def test_the_unit_of_an_installation_at_an_odd_path_starts_that_one(
    require: Require, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(shutil.which("systemd-analyze"), "needs systemd-analyze")
    command = tmp_path / "My Projects 100%s" / "upcall"
    command.parent.mkdir()
    command.symlink_to(UPCALL)
    monkeypatch.setattr(sys, "executable", str(command.with_name("python")))
    monkeypatch.setenv("HOME", str(tmp_path))
    installed, _ = service.install(Server()).units
    (start,) = [line for line in installed.read_text().splitlines() if line.startswith("ExecStart=")]
    unit = tmp_path / "odd.service"
    unit.write_text(f"[Service]\n{start}\n")

    def verified() -> str:
        return subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True).stderr

    assert verified() == ""
    command.unlink()
    assert f"Command {command} is not executable" in verified()
    monkeypatch.setattr(shutil, "which", lambda name: f'/opt/"quoted"/{name}')
    with pytest.raises(service.ServiceError, match="quotation marks"):
        service.install(Server())


def test_the_unit_knows_the_base_directories_that_are_set_where_it_is_installed(
    require: Require, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(shutil.which("systemd-analyze"), "needs systemd-analyze")
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    shipped = service.install(Server()).units[0].read_text()
    assert "Environment=" not in shipped

    disk = tmp_path / "Big Disk 100%s"
    monkeypatch.setenv("XDG_STATE_HOME", "not/absolute")
    monkeypatch.setenv("XDG_DATA_HOME", str(disk))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    moved = service.install(Server()).units[0]
    assert moved == tmp_path / ".config/systemd/user" / SERVICE, (
        "where systemd looks, which knows nothing of this shell"
    )
    added = set(moved.read_text().splitlines()) - set(shipped.splitlines())
    written = str(disk).replace("%", "%%")
    assert added == {
        f'Environment=XDG_CONFIG_HOME={tmp_path}/elsewhere "XDG_DATA_HOME={written}"',
        f'ExecStartPre=+/bin/mkdir -p -m 0700 {tmp_path}/.local/state/upcall "{written}/upcall/models"',
        f'ReadWritePaths={tmp_path}/.local/state/upcall "{written}/upcall/models"',
    }
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    verified = subprocess.run(["systemd-analyze", "--user", "verify", moved], capture_output=True, text=True)
    assert verified.stderr == ""


def test_the_system_unit_is_valid_and_its_exposure_not_above_the_one_documented(
    require: Require, tmp_path: Path
) -> None:
    require(shutil.which("systemd-analyze"), "needs systemd-analyze")
    unit = tmp_path / "upcall-system.service"
    unit.write_text((REPOSITORY / "systemd" / unit.name).read_text().replace("/usr/bin/upcall", str(UPCALL)))
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    security = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=25", unit]
    judged = subprocess.run(security, capture_output=True, text=True)

    assert (verified.returncode, verified.stderr) == (0, "")
    assert judged.returncode == 0, judged.stdout


def test_system_users_are_refused(user: User) -> None:
    condition = next(line for line in (REPOSITORY / "systemd" / SERVICE).read_text().splitlines() if "User=!" in line)
    by_root = subprocess.run(["systemd-analyze", "condition", condition], capture_output=True)

    assert user.run("systemd-analyze", "condition", condition, check=False).returncode == 0
    assert by_root.returncode != 0


def test_uninstall_stops_the_service_and_leaves_no_unit(running: User) -> None:
    running.run(UPCALL, "service", "uninstall")

    assert running.systemctl("is-active", SERVICE, SOCKET, check=False).split() == ["inactive", "inactive"]
    assert running.run("find", UNITS, "-name", "upcall.s*", "-type", "f,l").stdout == ""
    assert running.run("pgrep", "-f", "--", "-m daemon.", check=False).stdout == ""
