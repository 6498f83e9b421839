"""A `ChatModel` that lives in a worker process: the near side of `models.worker.serve`."""

import asyncio
import itertools
import logging
import socket
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from models.frames import (
    FROM_WORKER,
    TO_WORKER,
    AskLabels,
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
    Weighed,
)
from models.interface import (
    ChatRequest,
    Event,
    Failure,
    FailureCode,
    Finish,
    Labelled,
    ModelStatus,
    TextDelta,
    ToolCallDelta,
)

log = logging.getLogger(__name__)


class WorkerGoneError(Exception):
    """The worker process ended, and with it what it was asked; or it has no model that could answer."""


class WorkerClient:
    """Many requests over one connection to a worker. When the worker dies every open one ends in a `Failure`."""

    def __init__(
        self, name: str, channel: Channel[ToWorker, FromWorker], on_answer: Callable[[], None] | None = None
    ) -> None:
        """`on_answer` is called once, when the worker gives its first word."""
        self.name = name
        self._on_answer = on_answer
        self._channel = channel
        self._ids = itertools.count(1)
        self._replies: dict[int, asyncio.Queue[FromWorker | None]] = {}
        self._last_used = time.monotonic()
        channel.ended.add_done_callback(self._gone)
        channel.listen(self._take)

    @classmethod
    async def over(cls, name: str, sock: socket.socket, on_answer: Callable[[], None] | None = None) -> "WorkerClient":
        return cls(name, await Channel.over(sock, TO_WORKER, FROM_WORKER), on_answer)

    async def chat(self, request: ChatRequest, model: int = 0) -> AsyncGenerator[Event, None]:
        """See `ChatModel.chat`; `model` says which of those that the worker hosts is to answer."""
        id, replies = self._open()
        ended = finished = False
        try:
            try:
                self._channel.send(Chat(id, request, model))
            except ValueError as error:
                yield Failure(FailureCode.BAD_REQUEST, f"The request is too large: {error}.")
                return
            while not ended:
                match await replies.get():
                    case Emit(event=event):
                        finished = finished or isinstance(event, Finish | Failure)
                        if self._on_answer and isinstance(event, TextDelta | ToolCallDelta):
                            self._on_answer()
                            self._on_answer = None
                        yield event
                    case None:
                        ended = True
                        message = f"The {self.name} model stopped while answering; try again."
                        yield Failure(FailureCode.UNAVAILABLE, message, lost=1)
                    case _:
                        ended = True
                        if not finished:
                            yield Failure(
                                FailureCode.UNAVAILABLE, f"The {self.name} model broke off; try again.", lost=1
                            )
        finally:
            self._close(id)
            if not ended:
                self._channel.send(Cancel(id))

    async def count_tokens(self, request: ChatRequest) -> int:
        """Raises `ValueError` where the model cannot render the request, `WorkerGoneError` where there is none now."""
        match await self._ask(lambda id: CountTokens(id, request)):
            case Counted(tokens=tokens):
                return tokens
            case Refused(message=message, code=FailureCode.UNAVAILABLE):
                raise WorkerGoneError(message)
            case Refused(message=message):
                raise ValueError(message)
        raise WorkerGoneError(f"The {self.name} model stopped; try again.")

    async def label_logprobs(self, text: str, labels: Sequence[str]) -> Labelled:
        """See `LabelModel.label_logprobs`. Raises `WorkerGoneError` where the worker ended."""
        match await self._ask(lambda id: AskLabels(id, text, tuple(labels))):
            case Weighed(labelled=labelled):
                return labelled
            case Refused(message=message):
                raise ValueError(message)
        raise WorkerGoneError(self.name)

    async def status(self, model: int = 0) -> ModelStatus:
        """Of `model`, as for `chat`; being looked at is not being used, see `idle_seconds`.

        Raises `WorkerGoneError` where the worker ended.
        """
        used = self._last_used
        reply = await self._ask(lambda id: AskStatus(id, model))
        self._last_used = used
        if isinstance(reply, Status):
            return reply.status
        raise WorkerGoneError(self.name)

    @property
    def alive(self) -> bool:
        return not self._channel.ended.done()

    @property
    def idle_seconds(self) -> float:
        """How long nothing has been asked or answered; 0 while a request is open."""
        return 0.0 if self._replies else time.monotonic() - self._last_used

    async def close(self) -> None:
        await self._channel.close()

    def _open(self) -> tuple[int, asyncio.Queue[FromWorker | None]]:
        id, replies = next(self._ids), asyncio.Queue[FromWorker | None]()
        self._replies[id] = replies
        if not self.alive:
            replies.put_nowait(None)
        return id, replies

    def _close(self, id: int) -> None:
        del self._replies[id]
        self._last_used = time.monotonic()

    async def _ask(self, frame: Callable[[int], ToWorker]) -> FromWorker | None:
        id, replies = self._open()
        try:
            self._channel.send(frame(id))
            return await replies.get()
        except asyncio.CancelledError:
            self._channel.send(Cancel(id))
            raise
        finally:
            self._close(id)

    def _take(self, frame: FromWorker) -> None:
        if frame.id in self._replies:
            self._replies[frame.id].put_nowait(frame)

    def _gone(self, ended: "asyncio.Future[str]") -> None:
        if wrong := ended.result():
            log.error("the connection to the %s worker is closed: %s", self.name, wrong)
        for replies in self._replies.values():
            replies.put_nowait(None)
