"""Work that runs beside whatever began it."""

import asyncio
import contextlib
import logging
import threading
import traceback
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """As `asyncio.to_thread`, for what may take long: a process that ends does not wait for it."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(outcome: Callable[[], None]) -> None:
        if not result.done():
            outcome()

    def run() -> None:
        try:
            outcome = partial(result.set_result, function(*arguments))
        except Exception as error:
            outcome = partial(result.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=run, daemon=True).start()
    return await result


class Tasks:
    """Keeps tasks alive until they are done: the event loop itself has only weak references to them.

    One that fails is logged, by the type and the place of its error: nobody else would hear of it.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[object]] = set()

    def start(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._done)

    def cancel(self) -> None:
        """Cancel all that run."""
        for task in self._running:
            task.cancel()

    def _done(self, task: "asyncio.Task[object]") -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()):
            # Its message could quote a prompt.
            place = traceback.extract_tb(error.__traceback__)[-1]
            log.error("a task ended by a %s at %s:%s", type(error).__name__, place.filename, place.lineno)
