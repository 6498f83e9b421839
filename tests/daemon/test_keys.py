"""Keys, against a real gnome-keyring on a D-Bus session of its own."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from daemon import keys
from daemon.keys import KeyState, KeyUnavailable

PASSWORD = "correct horse"  # of the test's own throw-away keyring
USUAL, PATIENT = 5.0, 60.0
"""Seconds that the helper gets from callers who name none, and that it gets here: it may take long to start."""


@dataclass
class Session:
    """A login of its own: home, runtime directory and D-Bus session."""

    home: Path
    monkeypatch: pytest.MonkeyPatch
    bus: subprocess.Popen[str] | None = None
    daemon: subprocess.Popen[bytes] | None = None

    def start_bus(self, *, services: bool = True) -> None:
        config = self.home / "bus.conf"
        # Without service directories nothing can be activated: a bus as on a bare server.
        folders = "<standard_session_servicedirs/>" if services else ""
        config.write_text(
            f"""<busconfig><type>session</type><listen>unix:tmpdir={self.home}</listen>{folders}
            <policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/>
            <allow own="*"/></policy></busconfig>"""
        )
        self.bus = subprocess.Popen(
            ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address"], stdout=subprocess.PIPE, text=True
        )
        assert self.bus.stdout is not None
        self.monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", self.bus.stdout.readline().strip())

    def start_keyring(self) -> None:
        """With an unlocked default collection, which the first start creates."""
        self.daemon = subprocess.Popen(
            ["gnome-keyring-daemon", "--foreground", "--unlock", "--components=secrets"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert self.daemon.stdin is not None
        self.daemon.stdin.write(PASSWORD.encode())
        self.daemon.stdin.close()
        self.wait_until_unlocked()

    def wait_until_unlocked(self) -> None:
        deadline = time.monotonic() + 240
        # Asking before the daemon owns the name would have the bus start another one, which nobody unlocks.
        while not (self.owned() and self.call("org.freedesktop.Secret.Collection", "Locked") == "false"):
            assert time.monotonic() < deadline, "gnome-keyring did not come up"
            time.sleep(0.05)

    def lock(self) -> None:
        collection = "/org/freedesktop/secrets/aliases/default"
        subprocess.run(
            ["dbus-send", "--session", "--print-reply", "--dest=org.freedesktop.secrets", "/org/freedesktop/secrets",
             "org.freedesktop.Secret.Service.Lock", f"array:objpath:{collection}"],
            check=True, capture_output=True,
        )  # fmt: skip
        assert self.call("org.freedesktop.Secret.Collection", "Locked") == "true"

    def call(self, interface: str, property: str) -> str:
        done = subprocess.run(
            ["dbus-send", "--session", "--print-reply=literal", "--dest=org.freedesktop.secrets",
             "/org/freedesktop/secrets/aliases/default", "org.freedesktop.DBus.Properties.Get",
             f"string:{interface}", f"string:{property}"],
            capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.split()[-1] if done.returncode == 0 else ""

    def owned(self) -> bool:
        done = subprocess.run(
            ["dbus-send", "--session", "--print-reply=literal", "--dest=org.freedesktop.DBus", "/org/freedesktop/DBus",
             "org.freedesktop.DBus.NameHasOwner", "string:org.freedesktop.secrets"],
            capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.split()[-1:] == ["true"]

    def stop(self) -> None:
        for process in (self.daemon, self.bus):
            if process is not None:
                process.terminate()
                process.wait()


def state(name: str, timeout: float = PATIENT) -> KeyState:
    """Whether the key can be had."""
    try:
        keys.where(name, timeout)
    except KeyUnavailable as error:
        return error.state
    return KeyState.OK


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, require) -> Iterator[Session]:
    require(shutil.which("dbus-daemon"), "needs dbus-daemon (make test-deps)")
    ask = keys._ask
    monkeypatch.setattr(keys, "_ask", lambda order, timeout: ask(order, PATIENT if timeout == USUAL else timeout))
    # Sockets have short paths, so no tmp_path.
    with tempfile.TemporaryDirectory(prefix="upcall-") as home:
        for name in ("DBUS_SESSION_BUS_ADDRESS", "DISPLAY", "WAYLAND_DISPLAY", "CREDENTIALS_DIRECTORY"):
            monkeypatch.delenv(name, raising=False)
        for name in ("HOME", "XDG_RUNTIME_DIR"):
            monkeypatch.setenv(name, home)
        for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "PYTHON_KEYRING_BACKEND"):
            monkeypatch.delenv(name, raising=False)
        session = Session(Path(home), monkeypatch)
        yield session
        session.stop()


@pytest.fixture
def keyring(session: Session, require) -> Session:
    """An unlocked gnome-keyring."""
    require(shutil.which("gnome-keyring-daemon"), "needs gnome-keyring (make test-deps)")
    # A bus that can activate services would start a second, locked keyring for whoever asks before this one is up.
    session.start_bus(services=False)
    session.start_keyring()
    return session


def test_a_stored_key_is_found_replaced_and_removed(keyring: Session) -> None:
    keys.set("openai", "sk-first\n")
    assert keys.find("openai") == "sk-first"
    keys.set("openai", "sk-second")
    assert keys.find("openai") == "sk-second"
    assert state("openai") is KeyState.OK
    assert "Secret Service" in keys.where("openai")
    keys.remove("openai")
    assert state("openai") is KeyState.MISSING


def test_one_key_is_not_taken_for_another(keyring: Session) -> None:
    keys.set("openai", "sk-openai")
    keys.set("anthropic", "sk-anthropic")
    assert (keys.find("openai"), keys.find("anthropic")) == ("sk-openai", "sk-anthropic")


def test_a_key_stored_with_the_keyring_command_is_found_and_replaced_not_shadowed(keyring: Session) -> None:
    subprocess.run(
        [sys.executable, "-m", "keyring", "set", "upcall", "openai"], input="sk-by-keyring", text=True, check=True
    )
    assert keys.find("openai") == "sk-by-keyring"
    keys.set("openai", "sk-ours")
    assert keys.find("openai") == "sk-ours"


@pytest.mark.parametrize("look", [keys.find, keys.where])
def test_an_empty_key_that_another_program_stored_is_none(keyring: Session, look: Callable[[str], str]) -> None:
    subprocess.run([sys.executable, "-m", "keyring", "set", "upcall", "openai"], input=" ", text=True, check=True)
    with pytest.raises(KeyUnavailable) as missing:
        look("openai")
    assert missing.value.state is KeyState.MISSING


def test_a_missing_key_names_the_command_that_stores_one(keyring: Session) -> None:
    with pytest.raises(KeyUnavailable, match="upcall key set openai") as caught:
        keys.find("openai")
    assert caught.value.state is KeyState.MISSING
    with pytest.raises(KeyUnavailable) as caught:
        keys.remove("openai")
    assert caught.value.state is KeyState.MISSING


@pytest.mark.parametrize("action", ["find", "state", "where", "set", "remove"])
def test_a_locked_keyring_is_said_to_be_locked_without_a_prompt_and_in_time(keyring: Session, action: str) -> None:
    keys.set("openai", "sk-secret")
    keyring.lock()
    if action == "state":
        assert state("openai") is KeyState.LOCKED
        return
    arguments = ("openai", "sk-other") if action == "set" else ("openai",)
    with pytest.raises(KeyUnavailable, match="locked: unlock it") as caught:
        getattr(keys, action)(*arguments)
    assert caught.value.state is KeyState.LOCKED
    assert "did not answer" not in str(caught.value)


def test_an_unlocked_keyring_is_found_again_without_a_restart(keyring: Session) -> None:
    keys.set("openai", "sk-secret")
    keyring.lock()
    assert state("openai") is KeyState.LOCKED
    subprocess.run(
        ["gnome-keyring-daemon", "--replace", "--unlock", "--components=secrets", "--daemonize"],
        input=PASSWORD, text=True, check=True, capture_output=True,
    )  # fmt: skip
    keyring.wait_until_unlocked()
    assert keys.find("openai") == "sk-secret"


def test_a_keyring_that_never_answers_costs_no_more_than_the_timeout(keyring: Session) -> None:
    keys.set("openai", "sk-secret")
    assert keyring.daemon is not None
    keyring.daemon.send_signal(19)  # SIGSTOP: it accepts the call and stays silent, as one waiting for a person does
    try:
        with pytest.raises(KeyUnavailable, match="did not answer within 2 s"):
            keys.find("openai", timeout=2)
    finally:
        keyring.daemon.send_signal(18)


def test_no_session_bus_is_said(session: Session) -> None:
    with pytest.raises(KeyUnavailable, match="no D-Bus session") as caught:
        keys.find("openai")
    assert caught.value.state is KeyState.UNAVAILABLE
    assert "systemd credential" in str(caught.value)


def test_a_bus_without_a_keyring_is_said(session: Session) -> None:
    session.start_bus(services=False)
    with pytest.raises(KeyUnavailable, match="no Secret Service"):
        keys.find("openai")
    assert state("openai") is KeyState.UNAVAILABLE


def test_a_keyring_without_a_default_collection_is_not_made_to_prompt_for_one(session: Session, require) -> None:
    require(shutil.which("gnome-keyring-daemon"), "needs gnome-keyring (make test-deps)")
    session.start_bus()
    with pytest.raises(KeyUnavailable, match="no default keyring"):
        keys.set("openai", "sk-secret")


@pytest.mark.parametrize("backend", ["keyring.backends.null.Keyring", "keyring.backends.fail.Keyring"])
def test_a_backend_that_keeps_nothing_is_refused_by_name(
    keyring: Session, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", backend)
    for attempt in (lambda: keys.find("openai"), lambda: keys.set("openai", "sk-secret")):
        with pytest.raises(KeyUnavailable, match=backend.replace(".", r"\.")) as caught:
            attempt()
        assert caught.value.state is KeyState.UNAVAILABLE


def test_a_plain_text_backend_is_refused_alone_and_in_a_chain(
    keyring: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "plainstore.py").write_text(
        "from keyring.backend import KeyringBackend\n"
        "from keyring.backends.chainer import ChainerBackend\n"
        "from keyring.backends.SecretService import Keyring as Safe\n"
        "class Plain(KeyringBackend):\n"
        "    priority = 1\n"
        "    def get_password(self, service, username): return 'sk-from-plain-text'\n"
        "    def set_password(self, service, username, password): raise SystemExit('wrote plain text')\n"
        "class Chain(ChainerBackend):\n"
        "    priority = 1\n"
        "    backends = (Safe(), Plain())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for backend in ("plainstore.Plain", "plainstore.Chain"):
        monkeypatch.setenv("PYTHON_KEYRING_BACKEND", backend)
        with pytest.raises(KeyUnavailable, match=r"plainstore\.Plain does not keep keys safe"):
            keys.find("openai")


def test_a_credential_of_systemd_goes_before_the_keyring(keyring: Session, tmp_path: Path) -> None:
    keys.set("openai", "sk-from-keyring")
    keyring.monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert keys.find("openai") == "sk-from-keyring"
    (tmp_path / "openai").write_text("sk-from-systemd\n")
    assert keys.find("openai") == "sk-from-systemd"
    assert keys.where("openai") == f"systemd credential {tmp_path / 'openai'}"


def test_a_credential_needs_no_keyring(session: Session, tmp_path: Path) -> None:
    session.monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "openai").write_text("sk-from-systemd\n")
    assert keys.find("openai") == "sk-from-systemd"
    assert state("openai") is KeyState.OK
    assert state("anthropic") is KeyState.UNAVAILABLE


@pytest.mark.parametrize("look", [keys.find, keys.where])
def test_an_empty_credential_is_no_key(session: Session, tmp_path: Path, look: Callable[[str], str]) -> None:
    session.monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "server").write_text(" \n")
    with pytest.raises(KeyUnavailable, match="is empty") as missing:
        look("server")
    assert missing.value.state is KeyState.MISSING


@pytest.mark.parametrize("name", ["", "../openai", "a/b", ".hidden", "two words", "x" * 101])
def test_a_name_cannot_leave_the_credentials_directory(session: Session, tmp_path: Path, name: str) -> None:
    (tmp_path / "credentials").mkdir()
    (tmp_path / "openai").write_text("not a credential")
    session.monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    with pytest.raises(ValueError, match="no key name"):
        keys.find(name)


def test_an_empty_key_is_not_stored(keyring: Session) -> None:
    with pytest.raises(ValueError, match="is empty"):
        keys.set("openai", " \n")
    assert state("openai") is KeyState.MISSING


def test_the_key_shows_in_no_command_line_environment_or_file_while_it_is_stored_and_read(keyring: Session) -> None:
    secret = f"sk-{secrets.token_hex(16)}"
    seen: list[bytes] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for process in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    try:
                        seen.append((process / name).read_bytes())
                    except OSError:
                        continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(3):
            keys.set("openai", secret)
            assert keys.find("openai") == secret
    finally:
        done.set()
        watcher.join()
    assert any(b"daemon.keys" in text for text in seen), "the watcher never saw the helper"
    assert not any(secret.encode() in text for text in seen)
    assert secret not in "".join(f"{name}={value}" for name, value in os.environ.items())
    written = [path for path in keyring.home.rglob("*") if path.is_file()]
    assert "login.keyring" in {path.name for path in written}
    assert [path for path in written if secret.encode() in path.read_bytes()] == []
