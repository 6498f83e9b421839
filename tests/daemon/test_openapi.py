"""upcall's own description of itself: true, and no request that it allows or forbids breaks the daemon."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.api.openapi import document
from tests.daemon.conftest import Escalating
from tests.daemon.harness import Daemon
from tests.emulators.servers import Emulator

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
EXAMPLES = os.environ.get("UPCALL_TEST_EXAMPLES", "60")
"""Of each operation; 2000 make over 10,000 requests in all, and take some ten minutes to think up."""


def test_the_document_names_every_route_that_is_served(upcall: Daemon) -> None:
    served = upcall.call("GET", "/openapi.json")

    assert served == document()
    assert set(served["paths"]) == set(upcall.paths())


@pytest.mark.timeout(3600)
def test_no_request_of_thousands_is_a_server_error(escalating: Escalating, aimock: Emulator, tmp_path: Path) -> None:
    # Chats that are valid go to an emulator that knows none of them, so that generating text does not take the time.
    daemon = escalating(aimock.base_url("openai"), ROUTING__THRESHOLD="0", LOCAL__MAX_TOKENS="4")
    run = subprocess.run(
        [
            SCHEMATHESIS, "run", f"{daemon.url}/openapi.json", "--checks", "not_a_server_error",
            "--phases", "coverage,fuzzing", "--max-examples", EXAMPLES, "--exclude-path", "/upcall/privacy",
            "--generation-deterministic", "--request-timeout", "120",
        ],
        capture_output=True, text=True, cwd=tmp_path, timeout=3600,
    )  # fmt: skip

    assert run.returncode == 0, run.stdout[-4000:]
    assert daemon.call("GET", "/healthz")["local"]["state"] == "ready"
