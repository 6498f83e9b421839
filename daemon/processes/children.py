"""The supervisor's child processes: started, watched, restarted and ended."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import psutil
from pydantic import TypeAdapter

from daemon import kept, resolve
from daemon.config import Settings
from daemon.confine import Confinement
from daemon.processes.link import Message, WorkerDown, WorkerName, WorkerUp
from daemon.processes.tasks import Tasks, in_thread
from models.store import Store, StoreError

log = logging.getLogger(__name__)

STOP_SECONDS, ANSWERING_SECONDS = 4.5, 2.8
"""What all children get until SIGKILL, and the gateway of it, which gives answers under way less."""
RESTART_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses before restarts of a worker that keeps ending without an answer; one that gave any starts over."""
STEADY_SECONDS = 60.0
"""A worker that ran for so long is taken to be well again, too."""
_KEPT = ("HOME", "PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "JOURNAL_STREAM")
_KEPT_PREFIXES = ("LC_", "XDG_", "PYTHON", "OMP_", "GOMP_", "OPENBLAS_", "GGML_", "LLAMA_CPP_")
"""Not all of `LLAMA_`: services of that name have keys."""
_CONFINEMENT = TypeAdapter(Confinement)


class Tell(Protocol):
    """Sends a message to the gateway, and with it a worker's socket."""

    def __call__(self, message: Message, sock: socket.socket | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Worker:
    process: Process
    started: float


class Children:
    """The gateway, and the workers that it is given: a local one always, a cloud one when asked for."""

    def __init__(
        self,
        settings: Settings,
        forbidden: Callable[[WorkerName | Literal["traces"]], str],
        tell: Tell,
        confined: Callable[[str, Confinement], None],
    ) -> None:
        """`forbidden` says why a child may not exist now, on one line, or nothing; `confined` hears what the kernel
        holds a worker to."""
        self.settings = settings
        """What the next child is started with."""
        self.gateway: Process | None = None
        self._forbidden = forbidden
        self._tell = tell
        self._confined = confined
        self._store = Store()
        self._workers: dict[WorkerName, Worker] = {}
        self._starting: set[WorkerName] = set()
        """Not to be started once more: the gateway asks for a worker that a pause before its restart leads to, too."""
        self._retired: set[Worker] = set()
        """Cloud workers of earlier settings, which finish what they have begun."""
        self._failures: dict[WorkerName, int] = {"local": 0, "cloud": 0}
        self._traces: Process | None = None
        self._tracing = False
        self._sent: tuple[str, ...] = ()
        """The number of the last request that was traced, for the next process that does it; nothing: from now on."""
        self._tasks = Tasks()
        self._stopping = False

    async def start_gateway(self, listener: socket.socket | None) -> socket.socket:
        """Start the gateway on `listener`, or on one of its own; our end of the line to it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, listener or contextlib.nullcontext():
            socks = [theirs, listener] if listener else [theirs]
            # It connects nowhere: aiohttp would read the certificates of all authorities at every start.
            environment = {**_harmless_environment(), "SSL_CERT_FILE": os.devnull}
            self.gateway = await self._child("daemon.gateway", socks, env=environment)
        return ours

    def want(self, name: WorkerName) -> None:
        """Start a worker that the gateway misses. A cloud worker that runs may be one that the gateway let go."""
        if name == "cloud" or name not in self._workers:
            self._tasks.start(self._start_worker(name))

    def forgive(self, name: WorkerName) -> None:
        """The worker answers: how often it ended before is forgotten."""
        self._failures[name] = 0

    def retire_cloud(self) -> None:
        """Let the cloud worker finish what it has begun; the next one starts with the settings as they are then."""
        if worker := self._workers.pop("cloud", None):
            self._retired.add(worker)

    def kill_forbidden(self) -> None:
        """Not asked to end but killed: what is on its way out is to stop here and now."""
        for name in self._failures:
            if not (why := self._forbidden(name)):
                continue
            for worker in self._retired if name == "cloud" else ():
                _kill(worker.process)
            if now := self._workers.pop(name, None):
                _kill(now.process)
                self._tell(WorkerDown(name, why))
        if self._forbidden("traces"):
            # Nothing that is recorded from now on is sent later.
            self._sent = ()
            if self._traces:
                _kill(self._traces)

    def keep_nothing(self) -> None:
        """Have the local worker leave the disk alone from now on, where privacy mode asks for that."""
        local = self.settings.local
        if (worker := self._workers.get("local")) and not local.endpoint and kept.stops_in_privacy(local):
            with contextlib.suppress(ProcessLookupError):
                worker.process.send_signal(signal.SIGUSR2)

    def resident(self) -> dict[str, int]:
        """Bytes of memory that each process holds, this one among them."""
        processes: dict[str, int] = {"supervisor": os.getpid()}
        processes.update((name, worker.process.pid) for name, worker in self._workers.items())
        for name, process in (("gateway", self.gateway), ("traces", self._traces)):
            if process:
                processes[name] = process.pid
        held: dict[str, int] = {}
        for name, pid in processes.items():
            with contextlib.suppress(psutil.Error):  # it may be ending
                held[name] = psutil.Process(pid).memory_info().rss
        return held

    def trace(self, anew: bool = False) -> None:
        """Have traces sent where they may be; `anew`, by a process that has the settings as they are now."""
        if not self._tracing:
            self._tracing = True
            self._tasks.start(self._trace())
        elif anew and self._traces:
            with contextlib.suppress(ProcessLookupError):
                self._traces.terminate()

    async def stop(self) -> None:
        """End every child, and start none again."""
        self._stopping = True
        deadline = asyncio.get_running_loop().time() + STOP_SECONDS
        if self.gateway:
            # The first one: answers under way need their workers, and it writes what traces are to be sent of.
            await _end(self.gateway, ANSWERING_SECONDS)
        rest = [worker.process for worker in (*self._workers.values(), *self._retired)]
        rest += [self._traces] if self._traces else []
        left = deadline - asyncio.get_running_loop().time()
        await asyncio.gather(*(_end(process, left) for process in rest))

    async def _trace(self) -> None:
        """Keep the process that sends traces running while there may be one."""
        here = True
        while self.settings.telemetry.otlp_endpoint and not (self._stopping or self._forbidden("traces")):
            if here and not self.settings.telemetry.is_loopback:
                # What waits may have been recorded in privacy mode, for a collector on this machine.
                self._sent = ()
            here = self.settings.telemetry.is_loopback
            ours, theirs = socket.socketpair()
            with ours, theirs:
                self._traces = await self._child(
                    "daemon.accounts.traces", [theirs], *self._sent, env=_harmless_environment(), stdout=PIPE
                )
                theirs.close()
                if self._forbidden("traces"):
                    # As for a worker.
                    _kill(self._traces)
                assert self._traces.stdout is not None
                private = self._forbidden("traces")
                async for line in self._traces.stdout:
                    private = private or self._forbidden("traces")
                    self._sent = () if private else (line.decode().strip(),)
                status = await self._traces.wait()
            self._traces = None
            if status and not self._stopping and not self._forbidden("traces"):
                log.error("the process that sends traces ended with status %s; restarting it", status)
                await asyncio.sleep(RESTART_SECONDS[-1])
        self._tracing = False

    async def _start_worker(self, name: WorkerName) -> None:
        if name not in self._starting:
            self._starting.add(name)
            try:
                await self._start_one(name)
            except OSError as error:
                self._tell(WorkerDown(name, f"it cannot be started ({error.strerror})"))
            finally:
                self._starting.discard(name)

    async def _start_one(self, name: WorkerName) -> None:
        if why := self._kept_from(name):
            self._tell(WorkerDown(name, why))
            return
        role = "remote" if name == "local" and self.settings.local.endpoint else name
        if role == "local":
            try:
                # In a thread: a file that was never verified is hashed first.
                await in_thread(resolve.local, self.settings.local, self._store)
            except StoreError as error:
                self._tell(WorkerDown("local", str(error)))
                return
        ours, theirs = socket.socketpair()
        with ours, theirs:
            if role == "local":
                process = await self._child(
                    "daemon.processes.worker", [theirs], role, env=_harmless_environment(), stdout=PIPE
                )
                self._tasks.start(self._hear_confinement(name, process))
            else:
                process = await self._child("daemon.processes.worker", [theirs], role)
            if why := self._kept_from(name):
                # It was forbidden while the process was being made.
                _kill(process)
                self._tell(WorkerDown(name, why))
                return
            worker = Worker(process, asyncio.get_running_loop().time())
            if name in self._workers:
                self._retired.add(self._workers[name])
            self._workers[name] = worker
            self._tell(WorkerUp(name), ours)
        self._tasks.start(self._watch(name, worker))

    def _kept_from(self, name: WorkerName) -> str:
        """Why it may not be started, or nothing."""
        return "upcall is stopping" if self._stopping else self._forbidden(name)

    async def _child(self, module: str, socks: Sequence[socket.socket], *arguments: str, **options: Any) -> Process:
        """A Python process that inherits `socks` and reads the settings from its standard input."""
        fds = [sock.fileno() for sock in socks]
        process = await asyncio.create_subprocess_exec(
            # Without -P modules would first be looked for in the directory that upcall was started in.
            sys.executable, "-P", "-m", module, *map(str, fds), *arguments,
            stdin=PIPE, pass_fds=fds, start_new_session=True, **options,
        )  # fmt: skip
        assert process.stdin is not None
        settings = self.settings if arguments == ("cloud",) else without_proxy(self.settings)
        process.stdin.write(settings.model_dump_json().encode())
        process.stdin.close()
        return process

    async def _hear_confinement(self, name: str, process: Process) -> None:
        assert process.stdout is not None
        if line := await process.stdout.readline():
            self._confined(name, _CONFINEMENT.validate_json(line))

    async def _watch(self, name: WorkerName, worker: Worker) -> None:
        status = await worker.process.wait()
        self._retired.discard(worker)
        if self._stopping or self._workers.get(name) is not worker:
            return
        del self._workers[name]
        if name == "cloud":
            self._tell(WorkerDown("cloud", "it ended" if status == 0 else f"it ended with status {status}", ended=True))
            return
        loop = asyncio.get_running_loop()
        steady = loop.time() - worker.started > STEADY_SECONDS
        count = self._failures[name] = 0 if steady else self._failures[name] + 1
        pause = RESTART_SECONDS[min(count, len(RESTART_SECONDS) - 1)]
        log.error("the local worker ended with status %s; restarting it in %s s", status, pause)
        await asyncio.sleep(pause)
        if not self._stopping and name not in self._workers:
            await self._start_worker(name)


def without_proxy(settings: Settings) -> Settings:
    """For processes that see prompts: the URL of a proxy may hold a password."""
    fallbacks = tuple(each.model_copy(update={"proxy": None}) for each in settings.cloud.fallbacks)
    return settings.model_copy(
        update={"cloud": settings.cloud.model_copy(update={"proxy": None, "fallbacks": fallbacks})}
    )


def _harmless_environment() -> dict[str, str]:
    """The environment for processes that see prompts: an allow-list, since people keep keys in theirs."""
    return {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}


def _kill(process: Process) -> None:
    # One that has just ended by itself must not keep the others alive.
    with contextlib.suppress(ProcessLookupError):
        process.kill()


async def _end(process: Process, seconds: float) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), seconds)
    except TimeoutError:
        _kill(process)
        await process.wait()
