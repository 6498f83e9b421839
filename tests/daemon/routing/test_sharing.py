"""How much may go up, changed while the daemon runs."""

import http.client
import json
import socket
import threading

import pytest

from daemon.client import DaemonError
from tests.daemon.conftest import StartDaemon
from tests.daemon.harness import Daemon, client

SECONDS = 60.0
"""A deadline that only a hang can reach."""
RELOADS = 15


def test_a_share_holds_until_the_settings_name_another(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    before = daemon.call("GET", "/upcall/routing")

    daemon.call("PUT", "/upcall/routing", {"cloud_share": 0.6})

    after = daemon.call("GET", "/upcall/routing")
    assert after["cloud_share"] == 0.6
    assert after["threshold"] < before["threshold"]
    decided = client(daemon).chat.completions.with_raw_response.create(
        model="auto", messages=[{"role": "user", "content": "Hi"}], max_tokens=1
    )
    assert float(decided.headers["x-upcall-threshold"]) == pytest.approx(after["threshold"], abs=1e-4)
    assert start_daemon().call("GET", "/upcall/routing")["cloud_share"] == 0.6
    assert start_daemon(ROUTING__CLOUD_SHARE="0.1").call("GET", "/upcall/routing")["cloud_share"] == 0.1


def test_a_share_that_was_refused_does_not_come_to_hold_later(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ROUTING__ROUTER="no-such-router")
    with pytest.raises(DaemonError, match="The share is as it was"):
        daemon.call("PUT", "/upcall/routing", {"cloud_share": 1.0})
    assert start_daemon(ROUTING__CLOUD_SHARE="0.3").call("GET", "/upcall/routing")["cloud_share"] == 0.3
    assert start_daemon().call("GET", "/upcall/routing")["cloud_share"] != 1.0


def test_connections_on_which_nothing_was_asked_yet_are_not_left_deaf(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    idle = socket.create_connection(("127.0.0.1", daemon.server.port), SECONDS)
    kept = http.client.HTTPConnection("127.0.0.1", daemon.server.port, timeout=SECONDS)
    kept.request("GET", "/healthz")
    kept.getresponse().read()

    daemon.call("PUT", "/upcall/routing", {"cloud_share": 0.3})

    assert idle.recv(1) == b"", "it was closed, so that its owner connects again"
    try:
        kept.request("GET", "/upcall/routing")
        answer = kept.getresponse()
    except ConnectionError:
        kept.close()
        kept.request("GET", "/upcall/routing")
        answer = kept.getresponse()
    assert json.loads(answer.read())["cloud_share"] == 0.3


@pytest.mark.parametrize("body", [{}, {"cloud_share": 2}, {"cloud_share": "much"}, {"cloud_share": 0.5, "more": 1}])
def test_a_share_that_is_none_is_refused(upcall: Daemon, body: dict[str, object]) -> None:
    with pytest.raises(DaemonError, match="from 0 to 1"):
        upcall.call("PUT", "/upcall/routing", body)


def test_a_fixed_threshold_is_not_moved(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ROUTING__THRESHOLD="0.7")

    told = daemon.call("GET", "/upcall/routing")
    assert (told["cloud_share"], told["threshold"], told["expected_share"]) == (None, 0.7, None)
    with pytest.raises(DaemonError, match=r"routing\.threshold"):
        daemon.call("PUT", "/upcall/routing", {"cloud_share": 0.5})


def test_connections_that_are_made_while_it_reloads_are_answered(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    reloaded = threading.Event()
    refused: list[object] = []

    def ask() -> None:
        while not reloaded.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", daemon.server.port, timeout=SECONDS)
            try:
                connection.request("GET", "/healthz")
                refused.extend([status] if (status := connection.getresponse().status) != 200 else [])
            except OSError as error:
                refused.append(error)
            finally:
                connection.close()

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    for number in range(RELOADS):
        daemon.call("PUT", "/upcall/routing", {"cloud_share": 0.1 + 0.01 * number})
    reloaded.set()
    for thread in asking:
        thread.join()

    assert not refused
