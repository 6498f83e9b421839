"""One daemon for all clients: SmolLM2 here, and an emulator of OpenAI's API as its cloud."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.conftest import models_ready  # noqa: F401 - a fixture
from tests.daemon.harness import Daemon, running_daemon, wait_until
from tests.emulators.servers import KEY, Emulator


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, models_ready: Path, aimock: Emulator) -> Iterator[Daemon]:  # noqa: F811
    home = tmp_path_factory.mktemp("clients")
    (home / "credentials").mkdir()
    (home / "credentials" / "openai").write_text(KEY)
    settings = {
        "CLOUD__BASE_URL": aimock.base_url("openai"),
        "CLOUD__MAX_RETRIES": "0",
        # Where a router keeps a prompt here its answer is doubted; the models `local` and `cloud` ask no router.
        "SECOND_LOOK__ENABLED": "true",
        "SECOND_LOOK__BAND": "1",
        "SECOND_LOOK__MILLISECONDS": "100000",
        "SECOND_LOOK__THRESHOLD": "1",
    }
    with running_daemon(home, models_ready, settings, home / "credentials") as daemon:
        wait_until(lambda: daemon.call("GET", "/healthz")["local"]["state"] == "ready")
        yield daemon
