"""A `ChatModel` that lives in a worker process: the near side of `models.worker.serve`."""

import asyncio
import itertools
import socket
from collections.abc import AsyncGenerator, Callable

from models.frames import (
    FROM_WORKER,
    TO_WORKER,
    AskStatus,
    Cancel,
    Channel,
    Chat,
    Counted,
    CountTokens,
    Emit,
    FromWorker,
    Refused,
    Status,
    ToWorker,
)
from models.interface import ChatRequest, Event, Failure, FailureCode, ModelStatus


class WorkerGoneError(Exception):
    """The worker process ended, and with it what it was asked."""


class WorkerClient:
    """Many requests over one connection to a worker. When the worker dies every open one ends in a `Failure`."""

    def __init__(self, name: str, channel: Channel[ToWorker, FromWorker]) -> None:
        self.name = name
        self._channel = channel
        self._ids = itertools.count(1)
        self._replies: dict[int, asyncio.Queue[FromWorker | None]] = {}
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def over(cls, name: str, sock: socket.socket) -> "WorkerClient":
        return cls(name, await Channel.over(sock, TO_WORKER, FROM_WORKER))

    async def chat(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        id, replies = self._open()
        ended = False
        try:
            try:
                self._channel.send(Chat(id, request))
            except ValueError as error:
                yield Failure(FailureCode.BAD_REQUEST, f"The request is too large: {error}.")
                return
            while not ended:
                match await replies.get():
                    case Emit(event=event):
                        yield event
                    case None:
                        ended = True
                        yield Failure(
                            FailureCode.UNAVAILABLE, f"The {self.name} model stopped while answering; try again."
                        )
                    case _:
                        ended = True
        finally:
            del self._replies[id]
            if not ended:
                self._channel.send(Cancel(id))

    async def count_tokens(self, request: ChatRequest) -> int:
        """Raises `ValueError` where the model cannot render the request, `WorkerGoneError` where the worker ended."""
        match await self._ask(lambda id: CountTokens(id, request)):
            case Counted(tokens=tokens):
                return tokens
            case Refused(message=message):
                raise ValueError(message)
        raise WorkerGoneError(self.name)

    async def status(self) -> ModelStatus:
        """Raises `WorkerGoneError` where the worker ended."""
        reply = await self._ask(AskStatus)
        if isinstance(reply, Status):
            return reply.status
        raise WorkerGoneError(self.name)

    async def close(self) -> None:
        self._reading.cancel()
        await self._channel.close()

    def _open(self) -> tuple[int, asyncio.Queue[FromWorker | None]]:
        id, replies = next(self._ids), asyncio.Queue[FromWorker | None]()
        self._replies[id] = replies
        if self._reading.done():
            replies.put_nowait(None)
        return id, replies

    async def _ask(self, frame: Callable[[int], ToWorker]) -> FromWorker | None:
        id, replies = self._open()
        try:
            self._channel.send(frame(id))
            return await replies.get()
        finally:
            del self._replies[id]

    async def _read(self) -> None:
        try:
            while (frame := await self._channel.receive()) is not None:
                if frame.id in self._replies:
                    self._replies[frame.id].put_nowait(frame)
        except ConnectionError:
            pass
        finally:
            for replies in self._replies.values():
                replies.put_nowait(None)
