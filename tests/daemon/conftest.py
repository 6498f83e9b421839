"""Fixtures that start daemons."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from models.store import Store
from tests.daemon.harness import Daemon, running_daemon, wait_until

StartDaemon = Callable[..., Daemon]
"""`start_daemon(SECTION__KEY="value", …)`, settings as the environment names them."""


@pytest.fixture(scope="session")
def models_ready(store: Store, smollm2: Path, use_encoder: Path) -> Path:
    """The root of a store that has the weak model and the encoder."""
    return store.root


@pytest.fixture
def start_daemon(tmp_path: Path, models_ready: Path) -> Iterator[StartDaemon]:
    """`start_daemon(SECTION__KEY="value", …)` starts one and waits until its local model is ready."""
    with ExitStack() as stack:

        def start(home: Path = tmp_path, **settings: str) -> Daemon:
            daemon = stack.enter_context(running_daemon(home, models_ready, settings))
            wait_until(lambda: daemon.call("GET", "/healthz")["local"]["state"] == "ready")
            return daemon

        yield start


@pytest.fixture(scope="module")
def upcall(tmp_path_factory: pytest.TempPathFactory, models_ready: Path) -> Iterator[Daemon]:
    """One daemon for a module's tests: no key, privacy mode off."""
    with running_daemon(tmp_path_factory.mktemp("home"), models_ready, {}) as daemon:
        wait_until(lambda: daemon.call("GET", "/healthz")["local"]["state"] == "ready")
        yield daemon
