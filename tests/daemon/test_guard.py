"""The door: tokens, origins, slow and greedy clients, and requests that two readers could read differently."""

import contextlib
import http.client
import os
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.api.dashboard import PATHS
from tests.conftest import Require
from tests.daemon.conftest import StartDaemon
from tests.daemon.harness import UPCALL, Daemon, cli, running_daemon, user_environment, wait_until

TOKEN = "a-token-of-more-than-enough-characters"
BODY = b'{"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}'
JSON = {"Content-Type": "application/json"}
METHODS = ("GET", "POST", "PUT", "DELETE")


def asked(
    daemon: Daemon, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.server.port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        response.read()
        return response.status, {name.lower(): value for name, value in response.headers.items()}


def sent(daemon: Daemon, request: bytes) -> bytes:
    """The answer to these very bytes, until the server closes."""
    with socket.create_connection(("127.0.0.1", daemon.server.port), timeout=240) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, models_ready: Path) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("guarded")
    (home / "credentials").mkdir()
    (home / "credentials" / "server").write_text(TOKEN)
    settings = {
        "SERVER__TOKEN": "true",
        "SERVER__ALLOWED_ORIGINS": '["https://chat.example.org"]',
        "SERVER__ALLOWED_HOSTS": '["box.example.org"]',
    }
    with running_daemon(home, models_ready, settings, home / "credentials") as daemon:
        yield daemon


@pytest.mark.parametrize("path", ["/healthz", "/v1/models", "/v1/route", "/nothing"])
@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], TOKEN + "x", "\u00e9"])
def test_without_the_token_nothing_is_served(guarded: Daemon, path: str, token: str | None) -> None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    status, answered = asked(guarded, "GET", path, **headers)

    assert status == 401
    assert answered["www-authenticate"] == "Bearer"


def test_of_all_paths_the_dashboard_s_files_alone_are_served_without_the_token(guarded: Daemon, upcall: Daemon) -> None:
    served = {
        path
        for path in upcall.paths()
        if any(asked(guarded, method, path, b"{}", **JSON)[0] != 401 for method in METHODS)
    }

    assert served == set(PATHS)


def test_no_path_is_served_to_another_host(upcall: Daemon) -> None:
    name = f"attacker.example:{upcall.server.port}"
    answers = {
        (method, path): asked(upcall, method, path, b"{}", Host=name, **JSON)[0]
        for path in upcall.paths()
        for method in METHODS
    }

    assert len(answers) > 100
    assert {each: status for each, status in answers.items() if status != 403} == {}


@pytest.mark.parametrize("path", ["/upcall/privacy", "/upcall/routing"])
@pytest.mark.parametrize("origin", ["https://chat.example.org", "its own"])
def test_a_page_changes_nothing_without_the_header_that_a_form_cannot_send(
    guarded: Daemon, path: str, origin: str
) -> None:
    page = f"http://127.0.0.1:{guarded.server.port}" if origin == "its own" else origin
    headers = {**JSON, "Authorization": f"Bearer {TOKEN}", "Origin": page}

    assert asked(guarded, "PUT", path, b"{}", **headers)[0] == 403
    # It gets in, and is told that the body says nothing.
    assert asked(guarded, "PUT", path, b"{}", **headers, x_upcall_control="")[0] == 400


@pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {TOKEN}"}, {"x_api_key": TOKEN}])
def test_the_token_opens_in_the_header_of_either_api(guarded: Daemon, headers: dict[str, str]) -> None:
    assert asked(guarded, "GET", "/v1/models", **headers)[0] == 200


def test_the_command_line_finds_the_token_by_itself(guarded: Daemon) -> None:
    environment = {
        **guarded.environment,
        "CREDENTIALS_DIRECTORY": str(Path(guarded.environment["HOME"], "credentials")),
    }
    port = str(guarded.server.port)
    status = cli({**environment, "UPCALL_SERVER__TOKEN": "true", "UPCALL_SERVER__PORT": port}, "privacy", "status")

    assert status.stdout == "privacy mode is off\n"
    unasked = cli({**environment, "UPCALL_SERVER__TOKEN": "false", "UPCALL_SERVER__PORT": port}, "privacy", "status")
    assert unasked.returncode == 1
    assert "a token is needed" in unasked.stderr.lower()
    assert "Traceback" not in unasked.stderr


def test_a_token_that_is_asked_for_and_not_stored_stops_the_start(tmp_path: Path) -> None:
    refused = cli({**user_environment(tmp_path), "UPCALL_SERVER__TOKEN": "true"}, "serve", "--port", "0")

    assert refused.returncode == 2
    assert "server" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_origin_from_the_settings_gets_in_and_its_preflight_is_answered(guarded: Daemon) -> None:
    origin = "https://chat.example.org"
    status, answered = asked(guarded, "OPTIONS", "/v1/chat/completions", Origin=origin)
    assert (status, answered["access-control-allow-origin"]) == (204, origin)
    assert "access-control-allow-credentials" not in answered

    status, answered = asked(guarded, "GET", "/v1/models", Origin=origin, Authorization=f"Bearer {TOKEN}")
    assert (status, answered["access-control-allow-origin"]) == (200, origin)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("box.example.org", 200),
        ("Box.example.org:443", 200),
        ("box.example.org.attacker.example", 403),
        ("box.example.org:443@attacker.example", 403),
    ],
)
def test_a_name_from_the_settings_is_served_at_whatever_port_a_proxy_has(
    guarded: Daemon, host: str, status: int
) -> None:
    assert asked(guarded, "GET", "/v1/models", Host=host, Authorization=f"Bearer {TOKEN}")[0] == status


def test_a_page_at_another_port_of_that_name_is_another_origin(guarded: Daemon) -> None:
    page = {"Host": "box.example.org:443", "Origin": "http://box.example.org:443"}
    assert asked(guarded, "GET", "/v1/models", Authorization=f"Bearer {TOKEN}", **page)[0] == 403


@pytest.mark.parametrize(
    "origin", ["https://attacker.example", "null", "http://127.0.0.1:1", "https://chat.example.org.x"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_any_other_origin_is_refused(upcall: Daemon, origin: str, method: str) -> None:
    status, answered = asked(upcall, method, "/v1/models", Origin=origin)

    assert status == 403
    assert "access-control-allow-origin" not in answered


def test_its_own_origin_is_served(upcall: Daemon) -> None:
    assert asked(upcall, "GET", "/healthz", Origin=f"http://127.0.0.1:{upcall.server.port}")[0] == 200


@pytest.mark.parametrize(
    "smuggled",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length : 5\r\n",
        b"X: a\x00b\r\n",
    ],
)
def test_a_request_that_two_readers_could_read_differently_is_refused(upcall: Daemon, smuggled: bytes) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{upcall.server.port}\r\n".encode()
    answer = sent(
        upcall, head + b"Content-Type: application/json\r\nConnection: close\r\n" + smuggled + b"\r\n0\r\n\r\n"
    )

    assert answer.split()[1][:1] == b"4"


def test_an_absolute_target_must_name_the_host_that_the_header_names(upcall: Daemon) -> None:
    host = f"127.0.0.1:{upcall.server.port}"
    end = f" HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"

    assert sent(upcall, f"GET http://attacker.example/healthz{end}".encode()).split()[1] == b"403"
    assert sent(upcall, f"GET http://{host}/healthz{end}".encode()).split()[1] == b"200"


def test_oversized_heads_are_refused(upcall: Daemon) -> None:
    host = f"Host: 127.0.0.1:{upcall.server.port}\r\nConnection: close\r\n"
    assert sent(upcall, f"GET /healthz HTTP/1.1\r\n{host}X: {'x' * 100_000}\r\n\r\n".encode()).split()[1] == b"400"
    assert sent(upcall, f"GET /{'x' * 100_000} HTTP/1.1\r\n{host}\r\n".encode()).split()[1] in (b"400", b"414")


def test_slow_clients_are_hung_up_on_and_others_do_not_wait(upcall: Daemon) -> None:
    with contextlib.ExitStack() as stack:
        address = ("127.0.0.1", upcall.server.port)
        slow = [stack.enter_context(socket.create_connection(address, timeout=60)) for _ in range(100)]
        for connection in slow:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1")
        assert asked(upcall, "GET", "/healthz")[0] == 200
        assert [connection.recv(1) for connection in slow] == [b""] * 100


def test_one_client_cannot_hold_more_than_its_share(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(SERVER__MAX_CONCURRENT="2")
    head = f"POST /v1/route HTTP/1.1\r\nHost: 127.0.0.1:{daemon.server.port}\r\nContent-Type: application/json\r\n"
    long = (
        b'{"messages": [{"role": "user", "content": "Tell a long story."}], "max_tokens": 4000, "model": "local", '
        b'"logit_bias": {"2": -100}}'
    )
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.server.port)))
            request = head.replace("/v1/route", "/v1/chat/completions") + f"Content-Length: {len(long)}\r\n\r\n"
            connection.sendall(request.encode() + long)
        wait_until(lambda: asked(daemon, "GET", "/healthz")[0] == 429)
        status, answered = asked(daemon, "GET", "/healthz")
        assert status == 429
        assert int(answered["retry-after"]) >= 1
    wait_until(lambda: asked(daemon, "GET", "/healthz")[0] == 200)


def test_another_address_than_loopback_needs_a_token(tmp_path: Path) -> None:
    environment = {**user_environment(tmp_path), "UPCALL_SERVER__HOST": "0.0.0.0"}
    refused = cli(environment, "serve", "--port", "0")

    assert refused.returncode == 2
    assert "server.token" in refused.stderr


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_unix_socket_serves_its_user_and_nobody_else(tmp_path: Path, open_folder: Path, require: Require) -> None:
    path = open_folder / "upcall.sock"
    environment = {**user_environment(tmp_path), "UPCALL_SERVER__SOCKET": str(path)}
    with subprocess.Popen([UPCALL, "serve"], env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(path.is_socket)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            wait_until(lambda: cli(environment, "privacy", "status").stdout == "privacy mode is off\n")
            assert _status_over(path) == b"200"
            require(os.geteuid() == 0, "needs root to become another user")
            # Careless permissions let another user in.
            path.chmod(0o666)
            assert _status_as_nobody(path) == b"403"
        finally:
            process.terminate()


def _status_over(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: anything\r\nConnection: close\r\n\r\n")
        return connection.recv(65536).split()[1]


def _status_as_nobody(path: Path) -> bytes:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            os.write(writer, _status_over(path))
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as answer:
        return answer.read()
