"""The line between supervisor and gateway: small messages over a SOCK_SEQPACKET pair, some with a worker's socket."""

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from daemon.accounts.prices import Price
from daemon.config import Settings
from daemon.confine import Confinement

WorkerName: TypeAlias = Literal["local", "cloud"]

MAX_MESSAGE = 32 * 2**10
"""Bytes. What is longer, as settings with thousands of keywords are, travels as a file in memory beside `_LONG`."""
_LONG = b"long"


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
    """The supervisor is to keep this share of prompts that may go up, to reload, and to answer with `ShareSet`."""

    cloud_share: float
    kind: Literal["set_share"] = "set_share"


@dataclass(frozen=True, slots=True)
class ShareSet:
    """What became of the earliest `SetShare` that has no answer yet."""

    trouble: str
    """Why the share is as it was: on one line, or nothing."""
    kind: Literal["share_set"] = "share_set"


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
    ended: bool = False
    """One that ran: what is started in its place is on its way already, where it was asked for."""
    kind: Literal["worker_down"] = "worker_down"


@dataclass(frozen=True, slots=True)
class Retired:
    """The worker that ran until now has settings of before a reload, and is to finish what it has begun."""

    worker: WorkerName
    kind: Literal["retired"] = "retired"


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
    looks: int = 0
    """How often they were."""
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
    | ShareSet
    | CheckKey
    | Measure
    | Memory
    | WorkerUp
    | WorkerDown
    | Retired
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
        self._unsent = deque[tuple[bytes, list[int]]]()
        """Bodies with the file descriptors that travel with them, while the other end reads nothing."""
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._read)

    def send(self, message: Message, worker: socket.socket | None = None) -> None:
        """Send `message`, and with it a duplicate of `worker`. A peer that is gone is noticed by reading, not here."""
        if self._closed:
            return
        body = _MESSAGE.dump_json(message)
        fds = [] if worker is None else [os.dup(worker.fileno())]
        if len(body) > MAX_MESSAGE:
            body, fds = _LONG, [_in_memory(body), *fds]
        self._unsent.append((body, fds))
        self._flush()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()
            for _, fds in self._unsent:
                _close(fds)
            self._unsent.clear()

    def _flush(self) -> None:
        while self._unsent:
            body, fds = self._unsent[0]
            try:
                socket.send_fds(self._sock, [body], fds)
            except BlockingIOError:
                self._loop.add_writer(self._sock, self._flush)
                return
            except (BrokenPipeError, ConnectionResetError):
                pass
            self._unsent.popleft()
            _close(fds)
        self._loop.remove_writer(self._sock)

    def _read(self) -> None:
        try:
            body, fds, _, _ = socket.recv_fds(self._sock, MAX_MESSAGE, 2)
        except BlockingIOError:
            return
        except ConnectionResetError:
            body, fds = b"", []
        if body == _LONG:
            with open(fds.pop(0), "rb") as file:
                body = file.read()
        worker = socket.socket(fileno=fds[0]) if fds else None
        if not body:
            self.close()
            self._on_message(None, None)
        else:
            self._on_message(_MESSAGE.validate_json(body), worker)


def _in_memory(body: bytes) -> int:
    """A file in memory with `body`, to be read from its start."""
    fd = os.memfd_create("message")
    with open(fd, "wb", closefd=False) as file:
        file.write(body)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
