"""The frames between the gateway and a worker: JSON, each behind its length as four big-endian bytes."""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, TypeAlias, TypeVar, cast

from pydantic import Field, TypeAdapter

from models.interface import ChatRequest, Event, FailureCode, Labelled, ModelStatus

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
    code: FailureCode = FailureCode.BAD_REQUEST
    kind: Literal["refused"] = "refused"


ToWorker: TypeAlias = Chat | Cancel | CountTokens | AskLabels | AskStatus
FromWorker: TypeAlias = Emit | End | Counted | Weighed | Status | Refused

TO_WORKER: TypeAdapter[ToWorker] = TypeAdapter(Annotated[ToWorker, Field(discriminator="kind")])
FROM_WORKER: TypeAdapter[FromWorker] = TypeAdapter(Annotated[FromWorker, Field(discriminator="kind")])

Sent = TypeVar("Sent")
Received = TypeVar("Received")


class Channel(asyncio.Protocol, Generic[Sent, Received]):
    """Frames over one connected stream socket. None is read before `listen`."""

    def __init__(self, sent: TypeAdapter[Sent], received: TypeAdapter[Received]) -> None:
        self._sent = sent
        self._received = received
        self._on_frame: Callable[[Received], None] = lambda frame: None
        self._held = bytearray()
        self._may_send = asyncio.Event()
        self._may_send.set()
        self._wrong = ""
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done once nothing more comes: with how the other side broke the protocol, or with nothing."""

    @classmethod
    async def over(
        cls, sock: socket.socket, sent: TypeAdapter[Sent], received: TypeAdapter[Received]
    ) -> "Channel[Sent, Received]":
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_connection(lambda: cls(sent, received), sock=sock)
        return channel

    def listen(self, on_frame: Callable[[Received], None]) -> None:
        """Have `on_frame` called with each frame, in the event loop's own turn: it must not raise."""
        self._on_frame = on_frame
        self._transport.resume_reading()

    def send(self, frame: Sent) -> None:
        """Queue a frame; await `drain` where many follow each other. Raises `ValueError` for one that is too large."""
        body = self._sent.dump_json(frame)
        if len(body) > MAX_FRAME:
            raise ValueError(f"a frame of {len(body)} bytes is over the limit of {MAX_FRAME}")
        if not self._transport.is_closing():
            self._transport.write(len(body).to_bytes(_SIZE, "big") + body)

    async def drain(self) -> None:
        """Wait until the other side has read most of what was sent. Raises `ConnectionError` once it is gone."""
        await self._may_send.wait()
        if self._transport.is_closing():
            raise ConnectionResetError("the other side is gone")

    def hang_up(self) -> None:
        """Have the other side read the end of the stream, behind what was sent."""
        self._transport.close()

    async def close(self) -> None:
        self.hang_up()
        await asyncio.wait([self.ended])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        self._held += data
        begin = 0
        while len(self._held) >= begin + _SIZE:
            size = int.from_bytes(self._held[begin : begin + _SIZE], "big")
            if size > MAX_FRAME:
                self._give_up(f"a frame of {size} bytes was announced; the limit is {MAX_FRAME}")
                break
            end = begin + _SIZE + size
            if len(self._held) < end:
                break
            try:
                frame = self._received.validate_json(self._held[begin + _SIZE : end])
            except ValueError:
                # Its message would quote what was sent.
                self._give_up("the other side sent a frame that is not of the protocol")
                break
            begin = end
            self._on_frame(frame)
        del self._held[:begin]

    def pause_writing(self) -> None:
        self._may_send.clear()

    def resume_writing(self) -> None:
        self._may_send.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._may_send.set()
        self.ended.set_result(self._wrong)

    def _give_up(self, wrong: str) -> None:
        self._wrong = wrong
        self._transport.abort()


_SIZE = 4
"""Bytes that hold the size of the frame behind them."""
