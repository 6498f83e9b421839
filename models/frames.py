"""The frames between the gateway and a worker: JSON, each behind its length as four big-endian bytes."""

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, TypeAlias, TypeVar

from pydantic import Field, TypeAdapter

from models.interface import ChatRequest, Event, Labelled, ModelStatus

MAX_FRAME = 64 * 2**20
"""Bytes. Images inside a request are the largest thing that travels."""


@dataclass(frozen=True, slots=True)
class Chat:
    id: int
    request: ChatRequest
    model: int = 0
    """Which of the models that the worker hosts is to answer."""
    kind: Literal["chat"] = "chat"


@dataclass(frozen=True, slots=True)
class Cancel:
    """Of what was asked with the same id."""

    id: int
    kind: Literal["cancel"] = "cancel"


@dataclass(frozen=True, slots=True)
class CountTokens:
    id: int
    request: ChatRequest
    kind: Literal["count_tokens"] = "count_tokens"


@dataclass(frozen=True, slots=True)
class AskStatus:
    id: int
    model: int = 0
    """As for `Chat`."""
    kind: Literal["ask_status"] = "ask_status"


@dataclass(frozen=True, slots=True)
class AskLabels:
    """How likely each of the labels is to follow the text."""

    id: int
    text: str
    labels: tuple[str, ...]
    kind: Literal["ask_labels"] = "ask_labels"


@dataclass(frozen=True, slots=True)
class Emit:
    id: int
    event: Annotated[Event, Field(discriminator="kind")]
    kind: Literal["emit"] = "emit"


@dataclass(frozen=True, slots=True)
class End:
    """No more events for this id."""

    id: int
    kind: Literal["end"] = "end"


@dataclass(frozen=True, slots=True)
class Counted:
    id: int
    tokens: int
    kind: Literal["counted"] = "counted"


@dataclass(frozen=True, slots=True)
class Status:
    id: int
    status: ModelStatus
    kind: Literal["status"] = "status"


@dataclass(frozen=True, slots=True)
class Weighed:
    id: int
    labelled: Labelled
    kind: Literal["weighed"] = "weighed"


@dataclass(frozen=True, slots=True)
class Refused:
    """A count or labels that could not be given; the message is for people."""

    id: int
    message: str
    kind: Literal["refused"] = "refused"


ToWorker: TypeAlias = Chat | Cancel | CountTokens | AskLabels | AskStatus
FromWorker: TypeAlias = Emit | End | Counted | Weighed | Status | Refused

TO_WORKER: TypeAdapter[ToWorker] = TypeAdapter(Annotated[ToWorker, Field(discriminator="kind")])
FROM_WORKER: TypeAdapter[FromWorker] = TypeAdapter(Annotated[FromWorker, Field(discriminator="kind")])

Sent = TypeVar("Sent")
Received = TypeVar("Received")


class Channel(Generic[Sent, Received]):
    """Frames over one connected stream socket. Raises `ConnectionError` where the other side broke the protocol."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        sent: TypeAdapter[Sent],
        received: TypeAdapter[Received],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._sent = sent
        self._received = received

    @classmethod
    async def over(
        cls, sock: socket.socket, sent: TypeAdapter[Sent], received: TypeAdapter[Received]
    ) -> "Channel[Sent, Received]":
        reader, writer = await asyncio.open_connection(sock=sock)
        return cls(reader, writer, sent, received)

    def send(self, frame: Sent) -> None:
        """Queue a frame; await `drain` where many follow each other."""
        body = self._sent.dump_json(frame)
        if len(body) > MAX_FRAME:
            raise ValueError(f"a frame of {len(body)} bytes is over the limit of {MAX_FRAME}")
        if not self._writer.is_closing():
            self._writer.write(len(body).to_bytes(4, "big") + body)

    async def drain(self) -> None:
        await self._writer.drain()

    async def receive(self) -> Received | None:
        """The next frame, or `None` once the other side is gone."""
        try:
            size = int.from_bytes(await self._reader.readexactly(4), "big")
            if size > MAX_FRAME:
                raise ConnectionError(f"a frame of {size} bytes was announced; the limit is {MAX_FRAME}")
            body = await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionResetError, BrokenPipeError):
            return None
        try:
            return self._received.validate_json(body)
        except ValueError as error:
            raise ConnectionError("the other side sent a frame that is not of the protocol") from error

    def hang_up(self) -> None:
        """Have the other side read the end of the stream, behind what was sent."""
        self._writer.close()

    async def close(self) -> None:
        self.hang_up()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
