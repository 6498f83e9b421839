"""Where the API keys are: a systemd credential first, then the desktop's keyring over the Secret Service.

Looking never prompts and never hangs: the keyring is spoken to by a short-lived helper process (this module's `main`)
that is killed when its time is up, because a D-Bus call to a locked keyring may wait for a person for ever. The helper
gets its orders, and a key to store, through a pipe: command lines and environments can be read by others.
"""

import json
import os
import re
import resource
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from daemon.logs import SECRET

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

SERVICE: Final = "upcall"
"""The name that keys are stored under; `username` is the key's own name, as the keyring package has it."""
SERVER_TOKEN: Final = "server"  # noqa: S105 - a name, not a secret
"""The name of the token that clients of this machine's own daemon send."""

_ATTRIBUTES: Final = {"service": SERVICE, "application": "upcall"}
_DEFAULT_COLLECTION: Final = "/org/freedesktop/secrets/aliases/default"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_UNNAMED: Final = re.compile(
    r"(?=[A-Za-z0-9]*[0-9][A-Za-z])[A-Za-z0-9]{20,}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE
)
"""Letters and digits mixed as in keys that have no prefix of their own, or a UUID; nobody calls anything so."""

# All of these keep secrets encrypted behind the user's login. KWallet answers as a Secret Service since 5.97.
_TRUSTED_BACKENDS: Final = {
    "keyring.backends.SecretService.Keyring",
    "keyring.backends.libsecret.Keyring",
    "keyring.backends.kwallet.DBusKeyring",
    "keyring.backends.kwallet.DBusKeyringKWallet4",
}


class KeyState(StrEnum):
    """Whether a key can be had."""

    OK = "ok"
    MISSING = "missing"
    LOCKED = "locked"
    UNAVAILABLE = "unavailable"

    @property
    def sentence(self) -> str:
        """For people; `{name}` stands for the key's name."""
        return _SENTENCES[self]


_SENTENCES: Final = {
    KeyState.OK: "The key {name} is there.",
    KeyState.MISSING: "There is no key {name}: store one with `upcall key set {name}`.",
    KeyState.LOCKED: "The keyring with the key {name} is locked: unlock it, for example by logging in to the desktop.",
    KeyState.UNAVAILABLE: (
        "No keyring can be used here: give the key {name} as a systemd credential instead, or in a file of that name "
        "in a folder that CREDENTIALS_DIRECTORY names."
    ),
}


class KeyUnavailable(LookupError):  # noqa: N818 - a state of the world, rarely an error
    """A key that cannot be had now; its text is one line for people and never holds a key."""

    def __init__(self, name: str, state: KeyState, detail: str = "") -> None:
        sentence = state.sentence.format(name=name)
        super().__init__(f"{sentence[:-1]} ({detail})." if detail else sentence)
        self.state = state


@dataclass(frozen=True, slots=True)
class _Order:
    """What the helper is to do; `prompt` allows the keyring to ask the person for its password."""

    action: str
    name: str
    secret: str = ""
    prompt: bool = False


@dataclass(frozen=True, slots=True)
class _Report:
    state: KeyState
    detail: str = ""
    secret: str = ""


def find(name: str, timeout: float = 5.0) -> str:
    """The key, within `timeout` seconds and without asking anybody.

    Raises KeyUnavailable, and ValueError for a name that no key can have.
    """
    credential = _credential(name)
    if credential is None:
        return _ask(_Order("find", name), timeout).secret
    try:
        secret = credential.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise KeyUnavailable(name, KeyState.UNAVAILABLE, f"{credential}: {error.strerror}") from None
    if not secret:
        raise KeyUnavailable(name, KeyState.MISSING, f"{credential} is empty")
    return secret


def where(name: str, timeout: float = 5.0) -> str:
    """The place that `find` reads the key from, for people. Raises KeyUnavailable."""
    credential = _credential(name)
    if credential is not None:
        find(name, timeout)
        return f"systemd credential {credential}"
    return _ask(_Order("where", name), timeout).detail


def checked_name(name: str) -> str:
    """`name`. Raises ValueError for what is no name of a key, or looks like a key, without repeating it."""
    secret = (SECRET.match(name) and re.search("[0-9]", name)) or _UNNAMED.search(name)
    if not _NAME.fullmatch(name) or secret:
        raise ValueError(
            "this is no name of a key, or looks like a key itself: `upcall key set NAME` stores the key, and only NAME "
            "(letters, digits, dots, dashes and underscores) belongs here"
        )
    return name


def set(name: str, secret: str, timeout: float = 5.0, *, prompt: bool = False) -> None:
    """Store the key in the keyring, in place of one stored before. Raises KeyUnavailable, ValueError for an empty key.

    `prompt` lets the keyring ask for its password or for a new one, so give it a person's `timeout` then.
    """
    if not secret.strip():
        raise ValueError(f"The key {name} is empty; nothing was stored.")
    _ask(_Order("set", name, secret.strip(), prompt), timeout)


def remove(name: str, timeout: float = 5.0, *, prompt: bool = False) -> None:
    """Delete the key from the keyring. Raises KeyUnavailable where it is not there or cannot be deleted."""
    _ask(_Order("remove", name, prompt=prompt), timeout)


def _credential(name: str) -> Path | None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no key name: use letters, digits, dots, dashes and underscores.")
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(folder, name) if folder else None
    return path if path and path.exists() else None


def _ask(order: _Order, timeout: float) -> _Report:
    if not _NAME.fullmatch(order.name):
        raise ValueError(f"{order.name!r} is no key name: use letters, digits, dots, dashes and underscores.")
    message = json.dumps([order.action, order.name, order.secret, order.prompt])
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "daemon.keys"],
            input=message,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            timeout=timeout,
            check=True,
        )
    except subprocess.TimeoutExpired:
        detail = f"the keyring did not answer within {timeout:g} s; it may be waiting for somebody to unlock it"
        raise KeyUnavailable(order.name, KeyState.LOCKED, detail) from None
    except (OSError, subprocess.CalledProcessError) as error:
        raise KeyUnavailable(order.name, KeyState.UNAVAILABLE, f"the keyring helper failed: {error}") from None
    values = json.loads(done.stdout)
    report = _Report(KeyState(values["state"]), values["detail"], values["secret"])
    if report.state is not KeyState.OK:
        raise KeyUnavailable(order.name, report.state, report.detail)
    return report


def main() -> None:
    """The helper: one order on standard input, one report on standard output."""
    # A crash must not leave a key in a core file.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    report = _carry_out(_Order(*json.load(sys.stdin)))
    json.dump({"state": report.state, "detail": report.detail, "secret": report.secret}, sys.stdout)


def _carry_out(order: _Order) -> _Report:
    import keyring
    import secretstorage

    refused = _untrusted(keyring.get_keyring())
    if refused:
        return _Report(KeyState.UNAVAILABLE, f"{refused} does not keep keys safe, so upcall does not use it")
    try:
        bus = secretstorage.dbus_init()
    except secretstorage.SecretServiceNotAvailableException:
        return _Report(KeyState.UNAVAILABLE, "there is no D-Bus session here")
    try:
        if not secretstorage.check_service_availability(bus):
            return _Report(KeyState.UNAVAILABLE, "no Secret Service such as GNOME Keyring or KWallet runs here")
        match order.action:
            case "set":
                return _store(bus, order)
            case "remove":
                return _delete(bus, order)
            case _:
                return _look(bus, order)
    except secretstorage.exceptions.PromptDismissedException:
        return _Report(KeyState.LOCKED, "the question for the keyring's password was not answered")
    except secretstorage.LockedException:
        return _Report(KeyState.LOCKED)
    except secretstorage.SecretStorageException as error:
        return _Report(KeyState.UNAVAILABLE, f"the keyring answered with {type(error).__name__}")
    finally:
        bus.close()


def _untrusted(backend: "KeyringBackend") -> str:
    """The name of a backend that must not be used, alone or in a chain; empty where all is well."""
    from keyring.backends.chainer import ChainerBackend
    from keyring.backends.fail import Keyring as NoKeyring

    if isinstance(backend, NoKeyring) and not os.environ.get("PYTHON_KEYRING_BACKEND"):
        # Found none: what is missing is said better by asking the bus.
        return ""
    if isinstance(backend, ChainerBackend):
        return next((name for name in map(_untrusted, backend.backends) if name), "")
    name = f"{type(backend).__module__}.{type(backend).__qualname__}"
    return "" if name in _TRUSTED_BACKENDS else f"the keyring backend {name}"


def _look(bus: Any, order: _Order) -> _Report:
    import secretstorage

    locked = False
    # Searching finds items while their collection is locked, and unlike opening it, never prompts.
    for item in secretstorage.search_items(bus, {"service": SERVICE, "username": order.name}):
        if item.is_locked():
            locked = True
            continue
        secret = item.get_secret().decode()
        if not secret.strip():
            continue
        place = f"keyring item {item.get_label()!r} (Secret Service)"
        return _Report(KeyState.OK, place, secret if order.action == "find" else "")
    return _Report(KeyState.LOCKED if locked else KeyState.MISSING)


def _store(bus: Any, order: _Order) -> _Report:
    import secretstorage

    try:
        collection = secretstorage.Collection(bus, _DEFAULT_COLLECTION)
    except secretstorage.ItemNotFoundException:
        if not order.prompt:
            return _Report(KeyState.UNAVAILABLE, "there is no default keyring yet")
        collection = secretstorage.get_default_collection(bus)
    if collection.is_locked() and (not order.prompt or collection.unlock()):
        return _Report(KeyState.LOCKED)
    stored = collection.create_item(
        f"upcall: API key {order.name}", {**_ATTRIBUTES, "username": order.name}, order.secret.encode(), replace=True
    )
    for item in secretstorage.search_items(bus, {"service": SERVICE, "username": order.name}):
        # One stored by other means, with other attributes, would be found first.
        if item.item_path != stored.item_path and not item.is_locked():
            item.delete()
    return _Report(KeyState.OK)


def _delete(bus: Any, order: _Order) -> _Report:
    import secretstorage

    items = list(secretstorage.search_items(bus, {"service": SERVICE, "username": order.name}))
    for item in items:
        if item.is_locked() and (not order.prompt or item.unlock()):
            return _Report(KeyState.LOCKED)
        item.delete()
    return _Report(KeyState.OK if items else KeyState.MISSING)


if __name__ == "__main__":
    main()
