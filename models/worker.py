"""Hosts `ChatModel`s behind a socket: the far side of `models.client.WorkerClient`."""

import asyncio
import logging
import socket
import traceback
from collections.abc import Sequence
from contextlib import aclosing
from typing import TypeAlias

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
    End,
    FromWorker,
    Refused,
    Status,
    ToWorker,
    Weighed,
)
from models.interface import ChatModel, Failure, FailureCode, LabelModel
from models.llama.errors import RefusedError

Answers: TypeAlias = Channel[FromWorker, ToWorker]

log = logging.getLogger(__name__)


async def serve(sock: socket.socket, model: ChatModel, *others: ChatModel) -> None:
    """Answer frames on `sock` until the other side closes it; then cancel what runs and close the models.

    `others` answer chats that ask for them by number, from 1; all else is asked of `model`.
    """
    models = (model, *others)
    channel = await Channel.over(sock, FROM_WORKER, TO_WORKER)
    running: dict[int, asyncio.Task[None]] = {}

    def take(frame: ToWorker) -> None:
        if isinstance(frame, Cancel):
            if frame.id in running:
                running[frame.id].cancel()
            return
        task = asyncio.create_task(_handle(channel, models, frame))
        running[frame.id] = task
        task.add_done_callback(lambda _: running.pop(frame.id, None))

    channel.listen(take)
    try:
        await asyncio.wait([channel.ended])
        if wrong := channel.ended.result():
            log.error("the connection to the gateway is closed: %s", wrong)
    finally:
        for task in running.values():
            task.cancel()
        await asyncio.gather(*running.values(), return_exceptions=True)
        for each in models:
            await each.close()
        await channel.close()


async def _handle(
    channel: Answers, models: Sequence[ChatModel], frame: Chat | CountTokens | AskLabels | AskStatus
) -> None:
    model = models[0]
    match frame:
        case Chat():
            await _chat(channel, models, frame)
        case CountTokens() | AskLabels():
            try:
                channel.send(await _reply(model, frame))
            except RefusedError as error:
                channel.send(Refused(frame.id, error.failure.message, error.failure.code))
            except ValueError as error:
                channel.send(Refused(frame.id, str(error)))
            except Exception as error:
                _note(error, frame.id)
                message = "The model failed on this request; see the log."
                channel.send(Refused(frame.id, message, FailureCode.UNAVAILABLE))
        case AskStatus():
            try:
                channel.send(Status(frame.id, await models[frame.model].status()))
            except Exception as error:
                _note(error, frame.id)
                channel.send(Refused(frame.id, "The model failed to say how it is; see the log."))


async def _reply(model: ChatModel, frame: CountTokens | AskLabels) -> Counted | Weighed:
    if isinstance(frame, CountTokens):
        return Counted(frame.id, await model.count_tokens(frame.request))
    if not isinstance(model, LabelModel):
        raise ValueError("This model does not tell how likely it finds a text.")
    return Weighed(frame.id, await model.label_logprobs(frame.text, frame.labels))


async def _chat(channel: Answers, models: Sequence[ChatModel], chat: Chat) -> None:
    try:
        async with aclosing(models[chat.model].chat(chat.request)) as events:
            async for event in events:
                channel.send(Emit(chat.id, event))
                await channel.drain()
    except ConnectionError:
        return
    except Exception as error:
        _note(error, chat.id)
        # How far it had come is not known, so it counts as sent.
        message = "The model failed on this request; see the log."
        channel.send(Emit(chat.id, Failure(FailureCode.UNAVAILABLE, message, lost=1)))
    finally:
        channel.send(End(chat.id))


def _note(error: Exception, request: int) -> None:
    # Its message and its frames could quote the prompt: only the type and the place are logged.
    place = traceback.extract_tb(error.__traceback__)[-1]
    log.error("request %d ended by a %s at %s:%s", request, type(error).__name__, place.filename, place.lineno)
