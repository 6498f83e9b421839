"""Fixtures that start daemons."""

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from models.store import Store
from tests.daemon.harness import Daemon, running_daemon, wait_until
from tests.emulators.servers import KEY

StartDaemon = Callable[..., Daemon]
"""`start_daemon(SECTION__KEY="value", …)`, settings as the environment names them."""
PRICES = json.dumps({name: {"prompt": 10, "completion": 30} for name in ("gpt-4", "claude-3-opus")})
"""Of daemons for tests of something else: a look-up takes a second of processor time. `PRICES="{}"` has it done."""


@pytest.fixture(scope="session")
def models_ready(store: Store, smollm2: Path, use_encoder: Path) -> Path:
    """The root of a store that has the weak model and the encoder."""
    return store.root


@pytest.fixture
def start_daemon(tmp_path: Path, models_ready: Path) -> Iterator[StartDaemon]:
    """`start_daemon(SECTION__KEY="value", …)` starts one and waits until its local model is ready."""
    with ExitStack() as stack:

        def start(credentials: Path | None = None, ready: bool = True, **settings: str) -> Daemon:
            daemon = stack.enter_context(running_daemon(tmp_path, models_ready, settings, credentials))
            if ready:
                wait_until(lambda: daemon.call("GET", "/healthz")["local"]["state"] == "ready")
            return daemon

        yield start


@pytest.fixture(scope="module")
def upcall(tmp_path_factory: pytest.TempPathFactory, models_ready: Path) -> Iterator[Daemon]:
    """One daemon for a module's tests: no key, privacy mode off.

    Its answers end: SmolLM2 says hello in twenty tokens or in all that it may.
    """
    settings = {"LOCAL__MAX_TOKENS": "64", "PRICES": PRICES}
    with running_daemon(tmp_path_factory.mktemp("home"), models_ready, settings) as daemon:
        wait_until(lambda: daemon.call("GET", "/healthz")["local"]["state"] == "ready")
        yield daemon


Escalating = Callable[..., Daemon]
"""`escalating(base_url, provider="openai", **settings)`."""


@pytest.fixture
def escalating(start_daemon: StartDaemon, tmp_path: Path) -> Escalating:
    """A daemon with a key, whose cloud is at the given address."""

    def start(base_url: str, provider: str = "openai", **settings: Any) -> Daemon:
        return start_daemon(credentials=_credentials(tmp_path, provider), **{**_cloud(base_url, provider), **settings})

    return start


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory, models_ready: Path) -> Iterator[Callable[..., Daemon]]:
    """Daemons that run until the module's tests are over, one for each choice of settings."""
    running: dict[tuple[tuple[str, str], ...], Daemon] = {}
    with ExitStack() as stack:

        def start(provider: str, settings: dict[str, str]) -> Daemon:
            key = tuple(sorted(settings.items()))
            if key not in running:
                home = tmp_path_factory.mktemp("home")
                context = running_daemon(home, models_ready, settings, _credentials(home, provider))
                daemon = running[key] = stack.enter_context(context)
                wait_until(lambda: daemon.call("GET", "/healthz")["local"]["state"] == "ready")
            return running[key]

        yield start


@pytest.fixture
def shared(lasting: Callable[..., Daemon]) -> Escalating:
    """As `escalating`, but one daemon for all tests of the module with the same settings.

    For tests that leave its switches as they were. The ledger goes on, and so does what is known of the cloud's faults.
    """

    def start(base_url: str, provider: str = "openai", **settings: Any) -> Daemon:
        return lasting(provider, {**_cloud(base_url, provider), **settings})

    return start


def _credentials(home: Path, provider: str) -> Path:
    """A folder with the provider's key."""
    folder = home / "credentials"
    folder.mkdir(exist_ok=True)
    (folder / provider).write_text(KEY)
    return folder


def _cloud(base_url: str, provider: str) -> dict[str, str]:
    return {
        "CLOUD__MODEL": "claude-3-opus" if provider == "anthropic" else "gpt-4",
        "CLOUD__BASE_URL": base_url,
        "CLOUD__MAX_RETRIES": "0",
        "PRICES": PRICES,
    }


@pytest.fixture
def targets(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Something worth reaching behind every attempt of `hostile.attack`, what is upcall's own in its usual places."""
    for name in ("home", "models", "conversations", "credentials", "config/upcall", "state/upcall"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("key", "models/weak.gguf", "models/other.gguf", "credentials/openai"):
        (tmp_path / name).write_text("secret")
    (tmp_path / "config/upcall/config.toml").write_text("# secret")
    (tmp_path / "state/upcall/privacy").write_text("off")
    with ExitStack() as stack:
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        for address, kind in (
            (str(tmp_path / "bus"), socket.SOCK_STREAM),
            (str(tmp_path / "notify"), socket.SOCK_DGRAM),
            (f"\0{tmp_path}", socket.SOCK_STREAM),
        ):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            sock.bind(address)
            if kind is socket.SOCK_STREAM:
                sock.listen()
        victim = stack.enter_context(subprocess.Popen(["/bin/sleep", "600"], stdin=subprocess.DEVNULL))
        stack.callback(victim.kill)
        yield {
            "port": port.getsockname()[1],
            "unix_socket": str(tmp_path / "bus"),
            "unix_datagrams": str(tmp_path / "notify"),
            "abstract_socket": str(tmp_path),
            "key": str(tmp_path / "key"),
            "credentials": str(tmp_path / "credentials"),
            "settings": str(tmp_path / "config/upcall"),
            "state": str(tmp_path / "state/upcall"),
            "model": str(tmp_path / "models/weak.gguf"),
            "other_model": str(tmp_path / "models/other.gguf"),
            "conversations": str(tmp_path / "conversations"),
            "home": str(tmp_path / "home"),
            "victim": victim.pid,
        }
    Path("/tmp", f"leak-{victim.pid}").unlink(missing_ok=True)
