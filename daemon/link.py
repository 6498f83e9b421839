"""The line between supervisor and gateway: small messages over a SOCK_SEQPACKET pair, some with a worker's socket."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from daemon.config import Settings
from daemon.confine import Confinement
from daemon.prices import Price

WorkerName: TypeAlias = Literal["local", "cloud"]

MAX_MESSAGE = 64 * 2**10


@dataclass(frozen=True, slots=True)
class Listening:
    """The gateway serves; `url` is where."""

    url: str
    confinement: Confinement
    kind: Literal["listening"] = "listening"


@dataclass(frozen=True, slots=True)
class Want:
    """The gateway needs a worker that is not there."""

    worker: WorkerName
    kind: Literal["want"] = "want"


@dataclass(frozen=True, slots=True)
class Answered:
    """A worker has given the first word of its first answer."""

    worker: WorkerName
    kind: Literal["answered"] = "answered"


@dataclass(frozen=True, slots=True)
class SetPrivacy:
    """The supervisor is to answer with `PrivacySet`, behind the `Standing` that it comes to."""

    on: bool
    kind: Literal["set_privacy"] = "set_privacy"


@dataclass(frozen=True, slots=True)
class PrivacySet:
    trouble: str
    """Why it does not hold, or only until the next start: a sentence for people, or nothing."""
    kind: Literal["privacy_set"] = "privacy_set"


@dataclass(frozen=True, slots=True)
class SetShare:
    """The supervisor is to keep this share of prompts that may go up, and to reload."""

    cloud_share: float
    kind: Literal["set_share"] = "set_share"


@dataclass(frozen=True, slots=True)
class Measure:
    """The supervisor is to answer with `Memory`."""

    kind: Literal["measure"] = "measure"


@dataclass(frozen=True, slots=True)
class Memory:
    """What the processes take, in bytes by their names."""

    resident: dict[str, int]
    kind: Literal["memory"] = "memory"


@dataclass(frozen=True, slots=True)
class CheckKey:
    """The supervisor is to look again whether there is a key, and to answer with `Standing`."""

    kind: Literal["check_key"] = "check_key"


@dataclass(frozen=True, slots=True)
class WorkerUp:
    """A worker runs; its socket travels with this message."""

    worker: WorkerName
    kind: Literal["worker_up"] = "worker_up"


@dataclass(frozen=True, slots=True)
class WorkerDown:
    """A worker does not run, and why: one line for people."""

    worker: WorkerName
    why: str
    kind: Literal["worker_down"] = "worker_down"


@dataclass(frozen=True, slots=True)
class CloudKey:
    """Whether the key of one cloud model is there."""

    model: str
    there: bool
    detail: str
    """The sentence for people."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the supervisor alone knows and decides."""

    privacy: bool
    pinned: bool
    """Privacy mode is set in the config, and cannot be switched off by a request."""
    has_key: bool
    """Of one cloud model at least."""
    key: str
    """The sentence for people about that key."""
    keys: tuple[CloudKey, ...] = ()
    """Of every cloud model, in order of preference, once they were looked for."""
    confined: dict[str, Confinement] = field(default_factory=dict)
    """What the kernel holds the gateway and the local worker to, by their names."""
    token_sha256: str | None = None
    """Of the token that every request must carry, where the settings ask for one."""
    kind: Literal["standing"] = "standing"


@dataclass(frozen=True, slots=True)
class Priced:
    """The cloud models' prices have been looked up, in their order; `None` where nobody knows it."""

    prices: tuple[Price | None, ...]
    kind: Literal["priced"] = "priced"


@dataclass(frozen=True, slots=True)
class Reload:
    """The gateway is to serve by these settings from now on, and to answer with `Reloaded`."""

    settings: Settings
    cloud_changed: bool
    """Also where it is only a proxy, which `settings` do not name to the gateway."""
    prices_changed: bool
    """Those that it knows are void, and `Priced` follows."""
    kind: Literal["reload"] = "reload"


@dataclass(frozen=True, slots=True)
class Reloaded:
    refusal: str
    """Why the gateway keeps the old settings: one line for people, or nothing."""
    kind: Literal["reloaded"] = "reloaded"


@dataclass(frozen=True, slots=True)
class Beat:
    """The supervisor asks whether requests are served; the gateway's event loop sends it back."""

    kind: Literal["beat"] = "beat"


Message: TypeAlias = (
    Listening
    | Want
    | Answered
    | SetPrivacy
    | PrivacySet
    | SetShare
    | CheckKey
    | Measure
    | Memory
    | WorkerUp
    | WorkerDown
    | Standing
    | Priced
    | Reload
    | Reloaded
    | Beat
)
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


class Link:
    """One end of the line. `on_message` is called in order; with `None` once the other end is gone."""

    def __init__(self, sock: socket.socket, on_message: Callable[[Message | None, socket.socket | None], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_message = on_message
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._read)

    def send(self, message: Message, worker: socket.socket | None = None) -> None:
        """Send `message`, and with it a duplicate of `worker`. A peer that is gone is noticed by reading, not here."""
        if self._closed:
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            fds = [] if worker is None else [worker.fileno()]
            socket.send_fds(self._sock, [_MESSAGE.dump_json(message)], fds)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._sock)
            self._sock.close()

    def _read(self) -> None:
        try:
            body, fds, _, _ = socket.recv_fds(self._sock, MAX_MESSAGE, 1)
        except BlockingIOError:
            return
        except ConnectionResetError:
            body, fds = b"", []
        worker = socket.socket(fileno=fds[0]) if fds else None
        if not body:
            self.close()
            self._on_message(None, None)
        else:
            self._on_message(_MESSAGE.validate_json(body), worker)
