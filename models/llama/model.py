"""The local model: a GGUF file that answers chat requests."""

import asyncio
import contextlib
import functools
import logging
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from models.fetch import file_sha256
from models.interface import (
    ChatRequest,
    Event,
    Failure,
    FailureCode,
    Finish,
    Labelled,
    ModelStatus,
    Progress,
    PromptRead,
    TextDelta,
    Usage,
)
from models.llama.context import Context, Model
from models.llama.disk import DiskStates, engine_key
from models.llama.engine import Engine, EngineEndedError
from models.llama.errors import LoadError, RefusedError
from models.llama.fit import fit
from models.llama.labels import LabelReader, label_task
from models.llama.request import offered_tools, prepare
from models.llama.settings import LlamaSettings
from models.llama.task import Ended, Outbox, Task
from models.llama.template import Renderer, choose_template
from models.llama.tools import ToolCallReader, tool_name

_log = logging.getLogger(__name__)

_LOOK_EVERY = 0.02
_REPORT_EVERY = 50
"""Looks at a loading model between two reports about it."""
_TRY_AGAIN_AFTER = 5.0
"""From when on a request tries to load again what failed: by then a file may have come, or memory."""


class LlamaModel:
    """A `ChatModel` over llama.cpp. Loads in the background, and again with a request after it was freed or failed."""

    def __init__(self, settings: LlamaSettings) -> None:
        self._settings = settings
        self._wake = threading.Condition()
        self._state: Literal["loading", "ready", "unloaded", "failed"] = "loading"
        self._detail = ""
        self._failed_at = 0.0
        self._fraction = 0.0
        self._context_length = 0
        self._wanted = True
        self._closed = False
        self._loaded: _Loaded | None = None
        self._hashing: asyncio.Task[str] | None = None
        self._kept: DiskStates | None = None
        self._thread = threading.Thread(target=self._serve, name=f"llama {settings.name}", daemon=True)
        self._thread.start()

    async def chat(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """See `ChatModel.chat`."""
        tasks: list[Task] = []
        engine: Engine | None = None
        outbox = Outbox()
        # A timer that speaks through the outbox: a timeout around this code would cancel whoever iterates over it.
        timer = outbox.loop.call_later(self._settings.timeout, outbox.put, self._too_late())
        try:
            async for event in self._until_loaded(timer.when()):
                yield event
            prepared = functools.partial(_Loaded.prepare, request=request, outbox=outbox, settings=self._settings)
            engine, tasks = await self._submit(prepared)
            yield PromptRead(len(tasks[0].prompt))
            names = frozenset(map(tool_name, offered_tools(request)))
            readers = [ToolCallReader(task.choice, names) for task in tasks] if names else []
            ended: list[Ended] = []
            while len(ended) < len(tasks):
                output = await outbox.get()
                if isinstance(output, Ended):
                    ended.append(output)
                    reason: Literal["stop", "length", "tool_calls"] = output.reason
                    if readers:
                        for delta in readers[output.choice].finish():
                            yield delta
                        called = readers[output.choice].calls > 0
                        reason = "tool_calls" if called and reason == "stop" else reason
                    yield Finish(reason, output.choice, output.stop)
                elif isinstance(output, TextDelta) and readers:
                    for piece in readers[output.choice].push(output):
                        yield piece
                else:
                    yield output
                    if isinstance(output, Failure):
                        return
            prompt_tokens, tasks = len(tasks[0].prompt), []
            completion = sum(end.completion_tokens for end in ended)
            yield Usage(prompt_tokens, completion, min(end.cached_tokens for end in ended))
        except RefusedError as refused:
            yield refused.failure
        finally:
            timer.cancel()
            for task in tasks:
                if engine is not None:
                    engine.cancel(task)

    async def count_tokens(self, request: ChatRequest) -> int:
        """See `ChatModel.count_tokens`. Raises `RefusedError` where it cannot be rendered, or without a model."""
        async for _ in self._until_loaded(math.inf):
            pass
        while True:
            loaded = self._ready()
            try:
                return await asyncio.to_thread(loaded.count_tokens, request)
            except EngineEndedError:
                await self._loaded_anew(loaded)

    async def label_logprobs(self, text: str, labels: Sequence[str]) -> Labelled:
        """See `LabelModel.label_logprobs`. Raises `RefusedError`."""
        async for _ in self._until_loaded(math.inf):
            pass
        sha256 = await self._sha256()
        if not labels:
            return Labelled((), sha256)
        outbox = Outbox()
        readers: list[LabelReader] = []

        def prepared(loaded: _Loaded) -> list[Task]:
            task, reader = loaded.label_task(text, labels, outbox)
            readers.append(reader)
            return [task]

        engine, [task] = await self._submit(prepared)
        try:
            while not isinstance(output := await outbox.get(), Ended):
                if isinstance(output, Failure):
                    raise RefusedError(output.code, output.message)
            return Labelled(readers[-1].logprobs, sha256)
        finally:
            engine.cancel(task)

    async def status(self) -> ModelStatus:
        """See `ChatModel.status`."""
        with self._wake:
            detail = f"{self._fraction:.0%} loaded" if self._state == "loading" else self._detail
            running, waiting = self._loaded.engine.load() if self._loaded else (0, 0)
            return ModelStatus(
                name=self._settings.name,
                state=self._state,
                context_length=self._context_length,
                tools=True,
                detail=detail,
                running=running,
                waiting=waiting,
            )

    def keep_nothing(self) -> None:
        """From now on nothing of a conversation is written to disk or read from there."""
        self._settings = replace(self._settings, disk_folder="")
        if self._kept is not None:
            self._kept.closed = True

    async def close(self) -> None:
        """See `ChatModel.close`."""
        with self._wake:
            self._closed = True
            self._wake.notify()
            if self._loaded is not None:
                self._loaded.engine.stop()
        await asyncio.to_thread(self._thread.join)

    async def _submit(self, prepare: "Callable[[_Loaded], list[Task]]") -> tuple[Engine, list[Task]]:
        while True:
            loaded = self._ready()
            try:
                tasks = await asyncio.to_thread(prepare, loaded)
                loaded.engine.submit(tasks)
            except EngineEndedError:  # freed as idle at this very moment
                await self._loaded_anew(loaded)
                continue
            return loaded.engine, tasks

    async def _loaded_anew(self, before: "_Loaded") -> None:
        while True:
            with self._wake:
                if self._loaded is not before:
                    break
            await asyncio.sleep(_LOOK_EVERY)
        async for _ in self._until_loaded(math.inf):
            pass

    async def _until_loaded(self, deadline: float) -> AsyncGenerator[Progress, None]:
        """Ask for the model and report on its loading until that has ended, well or badly.

        Raises `RefusedError` at `deadline`, a time of the event loop's clock.
        """
        looks = 0
        while True:
            with self._wake:
                failed = self._state == "failed" and time.monotonic() - self._failed_at < _TRY_AGAIN_AFTER
                if self._closed or failed or self._loaded is not None:
                    return
                if self._state in ("unloaded", "failed"):
                    self._wanted = True
                    self._wake.notify()
            if looks % _REPORT_EVERY == 0:
                yield Progress("loading", fraction=round(self._fraction, 3))
            looks += 1
            if asyncio.get_running_loop().time() > deadline:
                failure = self._too_late()
                raise RefusedError(failure.code, failure.message)
            await asyncio.sleep(_LOOK_EVERY)

    async def _sha256(self) -> str:
        if self._settings.sha256:
            return self._settings.sha256
        if self._hashing is None:
            self._hashing = asyncio.create_task(asyncio.to_thread(file_sha256, Path(self._settings.path)))
        # Whoever gives up waiting leaves it for the next one.
        return await asyncio.shield(self._hashing)

    def _too_late(self) -> Failure:
        limit = f"{self._settings.timeout:g} seconds"
        message = f"The local model did not finish within {limit}: ask for less or raise the limit."
        return Failure(FailureCode.TIMEOUT, message)

    def _ready(self) -> "_Loaded":
        with self._wake:
            if self._loaded is None or self._closed:
                reason = self._detail or "it is being shut down"
                raise RefusedError(
                    FailureCode.UNAVAILABLE, f"The local model {self._settings.name} is not available: {reason}."
                )
            return self._loaded

    def _serve(self) -> None:
        """The model's thread: load, answer until idle, free, and again when wanted."""
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._wanted or self._closed)
                if self._closed:
                    break
                self._wanted, self._state, self._fraction, self._detail = False, "loading", 0.0, ""
            try:
                loaded = self._load()
            except Exception as error:
                known = isinstance(error, LoadError)
                message = str(error) if known else f"{self._settings.path} cannot be loaded: {error!r}"
                _log.warning("%s", message, exc_info=not known)
                with self._wake:
                    self._state, self._detail, self._failed_at = "failed", message, time.monotonic()
                continue
            with self._wake:
                self._loaded, self._state, self._context_length = loaded, "ready", loaded.context_length
                if self._closed:
                    loaded.engine.stop()
            try:
                loaded.engine.run()
            except Exception:
                _log.exception("the engine broke")
            with self._wake:
                self._loaded, self._state = None, "unloaded"
            loaded.free()

    def _load(self) -> "_Loaded":
        settings = fit(self._settings).settings
        with contextlib.ExitStack() as undo:
            model = Model(settings.path, repack=settings.repack, on_progress=self._on_progress)
            undo.callback(model.close)
            try:
                renderer = Renderer(
                    choose_template(model.metadata, model.vocabulary, trusted=settings.trust_template),
                    model.vocabulary,
                    context_length=settings.context_length,
                )
            except ValueError as error:
                raise LoadError(f"{settings.path}: {error}") from error
            context = Context(model, settings)
            undo.callback(context.close)
            engine = Engine(model, context, settings, context_length=settings.context_length, disk=self._disk(settings))
            undo.pop_all()
        return _Loaded(model, context, renderer, engine, settings.context_length)

    def _disk(self, settings: LlamaSettings) -> DiskStates | None:
        if not settings.disk_folder:
            return None
        self._kept = DiskStates(Path(settings.disk_folder), settings.disk_bytes, engine_key(settings))
        if not self._settings.disk_folder:  # another thread called `keep_nothing` meanwhile
            self._kept.closed = True
        return self._kept

    def _on_progress(self, fraction: float) -> bool:
        self._fraction = fraction
        return not self._closed


@dataclass(eq=False, slots=True)
class _Loaded:
    """What exists while the model is in memory. Tokenizing happens on other threads, and must not outlive it."""

    model: Model
    context: Context
    renderer: Renderer
    engine: Engine
    context_length: int
    freed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def prepare(self, request: ChatRequest, outbox: Outbox, settings: LlamaSettings) -> list[Task]:
        with self._in_memory():
            return prepare(
                request,
                outbox,
                renderer=self.renderer,
                vocabulary=self.model.vocabulary,
                settings=settings,
                context_length=self.context_length,
            )

    def label_task(self, text: str, labels: Sequence[str], outbox: Outbox) -> tuple[Task, LabelReader]:
        with self._in_memory():
            return label_task(
                text, labels, outbox, vocabulary=self.model.vocabulary, context_length=self.context_length
            )

    def count_tokens(self, request: ChatRequest) -> int:
        with self._in_memory():
            return len(self.renderer.prompt(request.messages, offered_tools(request)))

    def free(self) -> None:
        with self._lock:
            self.freed = True
            self.context.close()
            self.model.close()

    @contextlib.contextmanager
    def _in_memory(self) -> Iterator[None]:
        with self._lock:
            if self.freed:
                raise EngineEndedError
            yield
