"""The parent process of `upcall serve`: starts, restarts and stops the others, and decides whether the cloud may be.

It sees no prompt and parses no model. Privacy mode lives here: while it is on, no cloud worker exists.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from daemon import keys, prices, privacy, resolve, systemd
from daemon.config import ConfigError, Settings
from daemon.confine import Confinement, weakest
from daemon.link import (
    Beat,
    CheckKey,
    Link,
    Listening,
    Message,
    Priced,
    Reload,
    Reloaded,
    SetPrivacy,
    Standing,
    Want,
    WorkerDown,
    WorkerName,
    WorkerUp,
)
from daemon.logs import set_up_logging
from daemon.reload import takeover
from models.store import Store, StoreError

log = logging.getLogger(__name__)

STOP_SECONDS = 4.0
"""What a child gets between SIGTERM and SIGKILL."""
RESTART_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses before restarts of a worker that keeps ending."""
STEADY_SECONDS = 60.0
"""A worker that ran for so long is taken to be well again."""
BEATS_PER_TIMEOUT = 3
"""How often the gateway is asked for a sign of life within the time that systemd waits for one."""


@dataclass(frozen=True, slots=True)
class Worker:
    process: asyncio.subprocess.Process
    started: float


EXIT_CANNOT_LISTEN = 2
EXIT_UNENFORCED = 2
_KEPT = ("HOME", "PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "JOURNAL_STREAM")
_KEPT_PREFIXES = ("LC_", "XDG_", "PYTHON", "OMP_", "GOMP_", "OPENBLAS_", "GGML_", "LLAMA_")
_CONFINEMENT = TypeAdapter(Confinement)


class Supervisor:
    def __init__(self, settings: Settings, reread: Callable[[], Settings]) -> None:
        """`reread` gives the settings as they are now, for a reload; it may raise `ConfigError`."""
        self._settings = settings
        self._reread = reread
        self._store = Store()
        self._gateway: asyncio.subprocess.Process | None = None
        self._link: Link | None = None
        self._workers: dict[WorkerName, Worker] = {}
        self._retired: set[Worker] = set()
        """Cloud workers of earlier settings, which finish what they have begun."""
        self._failures: dict[WorkerName, int] = {"local": 0, "cloud": 0}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._url = ""
        """Where requests are served, once they are."""
        self._listening = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._refusals = asyncio.Queue[str]()
        self._standing = Standing(privacy=privacy.is_on(settings), pinned=settings.privacy.mode, has_key=False, key="")
        self._status = 0
        """What the command line exits with once stopped."""

    async def run(self) -> int:
        """Serve until SIGTERM, SIGINT or the gateway's end; the exit status for the command line."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        # In a terminal SIGHUP says that the terminal is gone.
        hang_up = self._stopping.set if sys.stderr.isatty() else lambda: self._spawn(self._reload())
        loop.add_signal_handler(signal.SIGHUP, hang_up)
        try:
            self._stand(token_sha256=await self._token_sha256())
            await self._start_gateway()
        except (systemd.ActivationError, keys.KeyUnavailable) as error:
            log.error("%s", error)
            return EXIT_CANNOT_LISTEN
        self._spawn(self._look_for_key())
        self._spawn(self._start_worker("local"))
        self._spawn(self._look_up_price())
        self._spawn(self._ask_for_beats())
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
            return self._status
        if self._listening.is_set():
            log.error("the gateway ended unexpectedly with status %s", gateway_end.result())
        return gateway_end.result() or 1

    async def _token_sha256(self) -> str | None:
        if not self._settings.server.token:
            return None
        token = await asyncio.to_thread(keys.find, keys.SERVER_TOKEN)
        return hashlib.sha256(token.encode()).hexdigest()

    async def _start_gateway(self) -> None:
        listener = systemd.listener()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, listener or contextlib.nullcontext():
            socks = [theirs, listener] if listener else [theirs]
            self._gateway = await self._child("daemon.gateway", socks, env=_harmless_environment())
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
            if name == "local":
                process = await self._child("daemon.worker", [theirs], name, env=_harmless_environment(), stdout=PIPE)
                self._spawn(self._hear_confinement(name, process))
            else:
                process = await self._child("daemon.worker", [theirs], name)
        if name == "cloud" and self._standing.privacy:
            # It was switched on while the process was being made.
            process.kill()
            ours.close()
            self._tell(WorkerDown("cloud", "privacy mode is on"))
            return
        worker = Worker(process, asyncio.get_running_loop().time())
        if name in self._workers:
            self._retired.add(self._workers[name])
        self._workers[name] = worker
        self._tell(WorkerUp(name), ours)
        ours.close()
        self._spawn(self._watch(name, worker))

    async def _child(
        self, module: str, socks: Sequence[socket.socket], *arguments: str, **options: Any
    ) -> asyncio.subprocess.Process:
        """A Python process that inherits `socks` and reads the settings from its standard input."""
        fds = [sock.fileno() for sock in socks]
        process = await asyncio.create_subprocess_exec(
            # Without -P modules would first be looked for in the directory that upcall was started in.
            sys.executable, "-P", "-m", module, *map(str, fds), *arguments,
            stdin=PIPE, pass_fds=fds, start_new_session=True, **options,
        )  # fmt: skip
        assert process.stdin is not None
        settings = self._settings if arguments == ("cloud",) else _without_proxy(self._settings)
        process.stdin.write(settings.model_dump_json().encode())
        process.stdin.close()
        return process

    async def _hear_confinement(self, name: str, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        if line := await process.stdout.readline():
            self._note_confinement(name, _CONFINEMENT.validate_json(line))

    def _note_confinement(self, name: str, confinement: Confinement) -> None:
        self._stand(confined={**self._standing.confined, name: confinement})
        for layer, why in confinement.missing.items():
            log.warning("the %s process runs without %s: %s", name, layer, why)
        if refusal := self._unenforced(self._settings):
            log.error("%s", refusal)
            self._status = EXIT_UNENFORCED
            self._stopping.set()

    def _unenforced(self, settings: Settings) -> str:
        """Why privacy mode cannot be kept as `settings` ask for it, on one line; empty where it can, or is off."""
        if not privacy.is_on(settings) or settings.privacy.enforcement == "best-effort":
            return ""
        if weakest(self._standing.confined.values()) != "none":
            return ""
        return (
            "privacy mode is on, and this kernel enforces nothing: allow unprivileged user namespaces or seccomp, or "
            'accept less with privacy.enforcement = "best-effort"'
        )

    async def _watch(self, name: WorkerName, worker: Worker) -> None:
        status = await worker.process.wait()
        self._retired.discard(worker)
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
            case Listening(url=url, confinement=confinement):
                self._note_confinement("gateway", confinement)
                if self._status:
                    return
                self._url = url
                self._listening.set()
                log.info("listening on %s", url)
                systemd.notify("READY=1", f"STATUS=Listening on {url}")
            case None:
                # What other tasks have left to say, nobody hears.
                self._link = None
            case Beat():
                systemd.notify("WATCHDOG=1")
            case Reloaded(refusal=refusal):
                self._refusals.put_nowait(refusal)
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
            if refusal := self._unenforced(self._settings):
                log.error("%s; until the next start, which will be refused, only upcall itself keeps it", refusal)
        else:
            self._stand()
        if self._standing.privacy:
            self._kill_cloud()

    def _kill_cloud(self) -> None:
        """Not asked to end but killed: what is on its way up is to stop here and now."""
        for worker in self._retired:
            worker.process.kill()
        if cloud := self._workers.pop("cloud", None):
            cloud.process.kill()
            self._tell(WorkerDown("cloud", "privacy mode is on"))

    async def _ask_for_beats(self) -> None:
        """Feed systemd's watchdog with what the gateway's event loop sends back, and with nothing else."""
        if seconds := systemd.watchdog_seconds():
            while True:
                self._tell(Beat())
                await asyncio.sleep(seconds / BEATS_PER_TIMEOUT)

    async def _reload(self) -> None:
        async with self._reloading:
            await self._listening.wait()
            systemd.reloading()
            refusal = await self._take_over_settings()
            if refusal:
                log.error("the settings were not reloaded, the earlier ones hold: %s", refusal)
            status = f"Listening on {self._url}" + (f"; settings not reloaded: {refusal}" if refusal else "")
            systemd.notify("READY=1", f"STATUS={status}")

    async def _take_over_settings(self) -> str:
        """Serve by the settings as they are now; otherwise the reason why not, on one line."""
        try:
            settings, left = takeover(self._settings, self._reread())
        except ConfigError as error:
            return "; ".join(str(error).splitlines())
        if refusal := self._unenforced(settings):
            return refusal
        self._tell(Reload(_without_proxy(settings)))
        if refusal := await self._refusals.get():
            return refusal
        before, self._settings = self._settings, settings
        set_up_logging(settings.log)
        if settings.cloud != before.cloud and (worker := self._workers.pop("cloud", None)):
            self._retired.add(worker)
        self._stand(privacy=privacy.is_on(settings), pinned=settings.privacy.mode)
        if self._standing.privacy:
            self._kill_cloud()
        self._spawn(self._look_for_key())
        self._spawn(self._look_up_price())
        log.info("the settings were reloaded")
        if left:
            log.warning("%s changed, which a restart applies: systemctl --user restart upcall", ", ".join(left))
        return ""

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
        children = [worker.process for worker in (*self._workers.values(), *self._retired)]
        if self._gateway:
            children.insert(0, self._gateway)
        await asyncio.gather(*map(_end, children))


def _without_proxy(settings: Settings) -> Settings:
    """For processes that see prompts: the URL of a proxy may hold a password."""
    return settings.model_copy(update={"cloud": settings.cloud.model_copy(update={"proxy": None})})


def _harmless_environment() -> dict[str, str]:
    """The environment for processes that see prompts: an allow-list, since people keep keys in theirs."""
    return {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
