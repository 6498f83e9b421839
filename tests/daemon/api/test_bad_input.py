"""Bad input: a 4xx in OpenAI's error shape that says what to do, and a daemon that stays up."""

import http.client
import json
import socket
from typing import Any

import pytest

from tests.daemon.harness import Daemon

HELLO = [{"role": "user", "content": "Say hello."}]
JSON = {"Content-Type": "application/json"}


def post(
    daemon: Daemon, body: bytes, headers: dict[str, str] | None = None, path: str = "/v1/chat/completions"
) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.server.port, timeout=60)
    try:
        connection.request("POST", path, body, JSON if headers is None else headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "JSON object"),
        (b'{"messages": ' + b"[" * 100_000, "not valid JSON"),
        (b'{"messages": [{"role": "user", "content": "x", "deep": ' + b"[" * 197 + b"]" * 197 + b"}]}", "nested"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "not valid JSON"),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', "not valid JSON"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "not valid JSON"),
        (b"{}", "messages"),
        (b'{"messages": []}', "messages"),
        (b'{"messages": "hello"}', "messages"),
        (b'{"messages": [{"role": "user"}]}', "content"),
        (b'{"messages": [{"role": "user", "content": 5}]}', "messages.0.content"),
        (b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', "text"),
        (b'{"messages": [{"role": "wizard", "content": "x"}]}', "messages.0.role"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": 9}', "temperature"),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}', "max_tokens"),
        (b'{"messages": [{"role": "user", "content": "x"}], "n": 100}', "n:"),
        (b'{"messages": [{"role": "user", "content": "x"}], "stream": "maybe"}', "stream"),
        (b'{"messages": [{"role": "user", "content": "x"}], "model": 5}', "model"),
        (b'{"messages": [{"role": "user", "content": "x"}], "model": "router-mf-7"}', "probability"),
        (b'{"messages": [{"role": "user", "content": "x"}], "seed": 1e400}', "seed"),
        (b'{"messages": [{"role": "user", "content": "x"}], "logit_bias": {"5": 1e999}}', "logit_bias"),
        (b'{"messages": [{"role": "user", "content": "x"}], "logit_bias": {"5": "NaN"}}', "logit_bias"),
    ],
)
def test_a_malformed_body_is_a_400_that_names_the_mistake(upcall: Daemon, body: bytes, hint: str) -> None:
    status, answer = post(upcall, body)

    assert status == 400
    assert hint in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"
    assert "\n" not in answer["error"]["message"]
    assert upcall.call("GET", "/healthz")["local"]["state"] == "ready"


@pytest.mark.parametrize(
    ("path", "body", "hint"),
    [
        ("/v1/completions", {"prompt": ["a"] * 129}, "prompt: send 1 to 128 prompts"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, "input: send 1 to 2048 strings"),
        ("/api/embed", {"input": ["a"] * 2049}, "input: send at most 2048 texts"),
        ("/v1/responses", {"input": "x", "n": 16}, "n: "),
        ("/v1/responses", {"input": "x", "max_tokens": 90_000}, "max_output_tokens"),
        ("/v1/responses", {"input": "x", "max_completion_tokens": 90_000}, "max_output_tokens"),
    ],
)
def test_one_request_cannot_ask_for_more_than_is_weighed(
    upcall: Daemon, path: str, body: dict[str, object], hint: str
) -> None:
    status, answer = post(upcall, json.dumps(body).encode(), path=path)

    assert status == 400
    assert hint in str(answer["error"])


def test_an_unknown_router_is_a_404_that_lists_the_known_ones(upcall: Daemon) -> None:
    status, answer = post(upcall, json.dumps({"model": "router-oracle-0.5", "messages": HELLO}).encode())

    assert status == 404
    assert "mf" in answer["error"]["message"]


def test_ten_megabytes_are_refused_and_the_daemon_stays_up(upcall: Daemon) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 10 * 2**20}]}).encode()
    status, answer = post(upcall, body)

    assert status == 413
    assert "max_body_bytes" in answer["error"]["message"]
    assert post(upcall, json.dumps({"messages": HELLO, "max_tokens": 1}).encode())[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_longer_than_the_context_is_refused_and_never_cut(upcall: Daemon, stream: bool) -> None:
    words = " ".join(f"word{number}" for number in range(9000))
    body = {"model": "local", "messages": [{"role": "user", "content": words}], "stream": stream}
    status, answer = post(upcall, json.dumps(body).encode())

    assert status == 400
    assert answer["error"]["code"] == "context_length_exceeded"


def test_a_long_prompt_that_cannot_be_rendered_is_refused_and_does_not_hang(upcall: Daemon) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 20_000}}
    status, answer = post(upcall, json.dumps({"messages": [{"role": "user", "content": [picture]}]}).encode())

    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {},
        {**JSON, "Content-Encoding": "gzip"},
    ],
)
def test_what_a_web_page_can_send_without_preflight_is_refused(upcall: Daemon, headers: dict[str, str]) -> None:
    status, answer = post(upcall, json.dumps({"messages": HELLO}).encode(), headers)

    assert status == 415
    assert answer["error"]["message"]


@pytest.mark.parametrize("path", ["/healthz", "/v1/models", "/v1/route", "/nothing-here"])
@pytest.mark.parametrize(
    "host", ["attacker.example", "attacker.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "a@localhost:{port}", None]
)
def test_a_foreign_host_header_is_refused_on_every_path(upcall: Daemon, host: str | None, path: str) -> None:
    line = "" if host is None else f"Host: {host.format(port=upcall.server.port)}\r\n"
    assert raw(upcall, f"GET {path} HTTP/1.1\r\n{line}Connection: close\r\n\r\n") in (403, 400)


def test_two_host_headers_are_refused(upcall: Daemon) -> None:
    good = f"Host: 127.0.0.1:{upcall.server.port}\r\n"
    assert raw(upcall, f"GET /healthz HTTP/1.1\r\n{good}Host: attacker.example\r\nConnection: close\r\n\r\n") in (
        403,
        400,
    )


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:{port}", "[::1]:{port}"])
def test_loopback_names_are_served(upcall: Daemon, host: str) -> None:
    host = host.format(port=upcall.server.port)
    assert raw(upcall, f"GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n") == 200


def test_no_answer_grants_another_origin_anything(upcall: Daemon) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", upcall.server.port, timeout=60)
    connection.request("OPTIONS", "/v1/chat/completions", headers={"Origin": "https://attacker.example"})
    response = connection.getresponse()

    assert response.status == 403
    assert not [name for name in response.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-upcall-route", "mars"),
        ("x-upcall-threshold", "2"),
        ("x-upcall-threshold", "x"),
        ("x-upcall-privacy", "maybe"),
    ],
)
def test_a_routing_header_that_means_nothing_is_refused(upcall: Daemon, header: str, value: str) -> None:
    status, answer = post(upcall, json.dumps({"messages": HELLO}).encode(), {**JSON, header: value})

    assert status == 400
    assert header in answer["error"]["message"]


def raw(daemon: Daemon, request: str) -> int:
    """The status of the answer to these very bytes."""
    with socket.create_connection(("127.0.0.1", daemon.server.port), timeout=30) as connection:
        connection.sendall(request.encode())
        return int(connection.recv(65536).split()[1])
