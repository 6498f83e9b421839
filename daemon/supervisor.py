"""The parent process of `upcall serve`: starts, restarts and stops the others, and decides whether the cloud may be.

It sees no prompt and parses no model. Privacy mode lives here: while it is on, no cloud worker exists.
"""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any

from daemon import keys, prices, privacy, resolve, systemd
from daemon.config import Settings
from daemon.link import (
    CheckKey,
    Link,
    Listening,
    Message,
    Priced,
    SetPrivacy,
    Standing,
    Want,
    WorkerDown,
    WorkerName,
    WorkerUp,
)
from models.store import Store, StoreError

log = logging.getLogger(__name__)

STOP_SECONDS = 4.0
"""What a child gets between SIGTERM and SIGKILL."""
RESTART_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses before restarts of a worker that keeps ending."""
STEADY_SECONDS = 60.0
"""A worker that ran for so long is taken to be well again."""


@dataclass(frozen=True, slots=True)
class Worker:
    process: asyncio.subprocess.Process
    started: float


class Supervisor:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = Store()
        self._gateway: asyncio.subprocess.Process | None = None
        self._link: Link | None = None
        self._workers: dict[WorkerName, Worker] = {}
        self._failures: dict[WorkerName, int] = {"local": 0, "cloud": 0}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._listening = False
        self._standing = Standing(privacy=privacy.is_on(settings), pinned=settings.privacy.mode, has_key=False, key="")

    async def run(self) -> int:
        """Serve until SIGTERM, SIGINT or the gateway's end; the exit status for the command line."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        await self._start_gateway()
        self._spawn(self._look_for_key())
        self._spawn(self._start_worker("local"))
        self._spawn(self._look_up_price())
        stopping = asyncio.create_task(self._stopping.wait())
        assert self._gateway is not None
        gateway_end = asyncio.create_task(self._gateway.wait())
        await asyncio.wait([stopping, gateway_end], return_when=asyncio.FIRST_COMPLETED)
        unexpected = not self._stopping.is_set()
        self._stopping.set()
        systemd.notify("STOPPING=1")
        await self._stop()
        stopping.cancel()
        if not unexpected:
            return 0
        if self._listening:
            log.error("the gateway ended unexpectedly with status %s", gateway_end.result())
        return gateway_end.result() or 1

    async def _start_gateway(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._gateway = await self._child("daemon.gateway", theirs)
        self._link = Link(ours, self._on_message)
        self._link.send(self._standing)

    async def _start_worker(self, name: WorkerName) -> None:
        if name == "cloud" and self._standing.privacy:
            self._tell(WorkerDown("cloud", "privacy mode is on"))
            return
        if name == "local":
            try:
                # In a thread: a file that was never verified is hashed first.
                await asyncio.to_thread(resolve.local, self._settings.local, self._store)
            except StoreError as error:
                self._tell(WorkerDown("local", str(error)))
                return
        ours, theirs = socket.socketpair()
        with theirs:
            process = await self._child("daemon.worker", theirs, name)
        worker = Worker(process, asyncio.get_running_loop().time())
        self._workers[name] = worker
        self._tell(WorkerUp(name), ours)
        ours.close()
        self._spawn(self._watch(name, worker))

    async def _child(self, module: str, sock: socket.socket, *arguments: str) -> asyncio.subprocess.Process:
        """A Python process that inherits `sock` and reads the settings from its standard input."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, str(sock.fileno()), *arguments,
            stdin=asyncio.subprocess.PIPE, pass_fds=[sock.fileno()], start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(self._settings.model_dump_json().encode())
        process.stdin.close()
        return process

    async def _watch(self, name: WorkerName, worker: Worker) -> None:
        status = await worker.process.wait()
        if self._stopping.is_set() or self._workers.get(name) is not worker:
            return
        del self._workers[name]
        if name == "cloud":
            self._tell(WorkerDown("cloud", "it ended" if status == 0 else f"it ended with status {status}"))
            return
        loop = asyncio.get_running_loop()
        steady = loop.time() - worker.started > STEADY_SECONDS
        count = self._failures[name] = 0 if steady else self._failures[name] + 1
        pause = RESTART_SECONDS[min(count, len(RESTART_SECONDS) - 1)]
        log.error("the local worker ended with status %s; restarting it in %s s", status, pause)
        await asyncio.sleep(pause)
        if name not in self._workers:
            await self._start_worker(name)

    def _on_message(self, message: Message | None, _: socket.socket | None) -> None:
        match message:
            case Listening(url=url):
                self._listening = True
                log.info("listening on %s", url)
                systemd.notify(f"READY=1\nSTATUS=Listening on {url}")
            case Want(worker=name):
                if name == "cloud" or name not in self._workers:
                    self._spawn(self._start_worker(name))
            case SetPrivacy(on=on):
                self._set_privacy(on)
            case CheckKey():
                self._spawn(self._look_for_key())
            case _:
                pass

    def _set_privacy(self, on: bool) -> None:
        if on or not self._standing.pinned:
            privacy.remember(on)
            self._stand(privacy=on)
        else:
            self._stand()
        if self._standing.privacy and (cloud := self._workers.pop("cloud", None)):
            # Not asked to end but killed: what is on its way up is to stop here and now.
            cloud.process.kill()
            self._tell(WorkerDown("cloud", "privacy mode is on"))

    async def _look_for_key(self) -> None:
        name = resolve.cloud(self._settings.cloud).key_name
        if name is None:
            self._stand(has_key=True, key="the endpoint asks for no key")
            return
        try:
            self._stand(has_key=True, key=await asyncio.to_thread(keys.where, name))
        except keys.KeyUnavailable as error:
            self._stand(has_key=False, key=str(error))

    async def _look_up_price(self) -> None:
        cloud = resolve.cloud(self._settings.cloud)
        if price := await prices.look_up(cloud.provider, cloud.model):
            self._tell(Priced(price))

    def _stand(self, **changes: Any) -> None:
        self._standing = replace(self._standing, **changes)
        self._tell(self._standing)

    def _tell(self, message: Message, sock: socket.socket | None = None) -> None:
        if self._link:
            self._link.send(message, sock)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop(self) -> None:
        children = [worker.process for worker in self._workers.values()]
        if self._gateway:
            children.insert(0, self._gateway)
        await asyncio.gather(*map(_end, children))


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
