"""The gateway's view of the workers and of what the supervisor decided."""

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from daemon.accounts.prices import Price
from daemon.config import Cloud, Settings
from daemon.confine import Confinement
from daemon.processes.link import (
    Answered,
    Beat,
    CheckKey,
    Link,
    Listening,
    Measure,
    Memory,
    Message,
    Priced,
    PrivacySet,
    Reload,
    Reloaded,
    Retired,
    SetPrivacy,
    SetShare,
    ShareSet,
    Standing,
    Want,
    WorkerDown,
    WorkerName,
    WorkerUp,
)
from daemon.processes.tasks import Tasks
from models.client import WorkerClient, WorkerGoneError
from models.interface import ModelStatus

log = logging.getLogger(__name__)

RECHECK_SECONDS = 2.0
"""A missing key or worker is looked for again at most this often."""
ANSWER_SECONDS = 5.0
"""The supervisor answers within this, or is taken to have said no."""
RELOAD_SECONDS = 120.0
"""The same for a reload, which may load a router."""
FRESH_SECONDS = 1.0
"""What the local worker said of itself so long ago is asked for again, behind the request that looks at it."""


class Workers:
    """Connections to the workers, as the supervisor hands them over."""

    def __init__(self, sock: socket.socket, cloud: Cloud) -> None:
        self.on_privacy: Callable[[], None] = lambda: None
        """Called when privacy mode is switched on."""
        self.standing = Standing(privacy=True, pinned=True, has_key=False, key="not looked for yet")
        self.prices: Sequence[Price | None] | None = None
        """Of the cloud models, in order of preference; `None` until the supervisor has looked them up, and for one
        whose price is not known."""
        self.why_down: dict[WorkerName, str] = {}
        self._wanted: set[WorkerName] = set()
        """Asked for and not yet here. Each further wish would start one more."""
        self.reloads = asyncio.Queue[Settings]()
        """Settings that the gateway is to take over, each to be answered by `reloaded`."""
        self._reload: Reload | None = None
        """What they came with; the supervisor sends no other before that answer."""
        self.cloud = cloud
        """The settings of the cloud worker, and of `prices`."""
        self._clients: dict[WorkerName, WorkerClient] = {}
        self._retired: list[WorkerClient] = []
        self._local = ModelStatus(name="local", state="failed")
        self._told: tuple[WorkerClient | None, float] = (None, 0.0)
        """Who said that, and when."""
        self._changed = asyncio.Condition()
        self._asked_key = 0.0
        self._looks_before = -1
        """The supervisor's for keys when it was asked for one more."""
        self._privacy_waiters = deque[asyncio.Future[str]]()
        """In the order in which the supervisor answers, those that have given up among them."""
        self._share_waiters = deque[asyncio.Future[str]]()
        """As those."""
        self._memory: dict[str, int] = {}
        self._tasks = Tasks()
        self._link = Link(sock, self._on_message)
        self.supervisor_gone = asyncio.Event()

    def announce(self, url: str, confinement: Confinement) -> None:
        """Tell the supervisor that requests are served, and what the kernel holds this process to."""
        self._link.send(Listening(url, confinement))

    def reloaded(self, settings: Settings, refusal: str = "") -> None:
        """Tell the supervisor how a reload went. Where the cloud changed, its worker finishes what it has and goes."""
        if self._reload and not refusal:
            self.cloud = settings.cloud
            if self._reload.prices_changed:
                self.prices = None
            if self._reload.cloud_changed and (client := self._clients.pop("cloud", None)):
                self._retired.append(client)
        self._link.send(Reloaded(refusal))

    async def get(self, name: WorkerName) -> WorkerClient | None:
        """The worker, started if need be; `None`, with `why_down`, where the supervisor could or would not."""
        if not self._alive(name):
            if name not in self._wanted:
                self._wanted.add(name)
                self.why_down.pop(name, None)
                self._link.send(Want(name))
            try:
                await self._until(lambda: self._alive(name) or name in self.why_down)
            finally:
                self._wanted.discard(name)
        return self._clients[name] if self._alive(name) else None

    async def local_status(self) -> ModelStatus:
        """What the local model is; `failed` with the reason where it does not run."""
        try:
            if client := self._clients.get("local"):
                self._local = await client.status()
                self._told = client, time.monotonic()
                return self._local
        except WorkerGoneError:
            pass
        return replace(self._local, state="failed", detail=self.why_down.get("local", "starting"))

    async def local_outline(self) -> ModelStatus:
        """As `local_status`, but without a wait once it was ready: what then may be old is its state and its load."""
        client, when = self._told
        if (
            client is None
            or client is not self._clients.get("local")
            or not client.alive
            or self._local.state != "ready"
        ):
            return await self.local_status()
        if time.monotonic() - when > FRESH_SECONDS:
            self._told = client, time.monotonic()
            self._tasks.start(self.local_status())
        return self._local

    async def cloud_statuses(self) -> list[ModelStatus]:
        """What the cloud models are, in order of preference, where their worker runs just now; otherwise nothing."""
        try:
            if self._alive("cloud"):
                client, models = self._clients["cloud"], range(len(self.cloud.endpoints))
                return [await client.status(model) for model in models]
        except WorkerGoneError:
            pass
        return []

    async def set_privacy(self, on: bool) -> str:
        """Switch privacy mode; a sentence on what is wrong with that, or nothing. `standing` tells whether it holds."""
        try:
            return await self._answer(SetPrivacy(on), self._privacy_waiters, ANSWER_SECONDS)
        except TimeoutError:
            return f"Nothing is known of the switch: the supervisor did not answer within {ANSWER_SECONDS:g} s."

    def memory(self) -> dict[str, int]:
        """Resident bytes of the daemon's processes by name, as of the last time that somebody asked."""
        self._link.send(Measure())
        return self._memory

    async def set_cloud_share(self, share: float) -> str:
        """Let `share` of the prompts go up from now on, and after restarts; why not, or nothing."""
        try:
            return await self._answer(SetShare(share), self._share_waiters, RELOAD_SECONDS)
        except TimeoutError:
            return f"the supervisor did not answer within {RELOAD_SECONDS:g} s, so it may change yet"

    async def look_for_key(self) -> bool:
        """Whether there is a key after all, where there was none a while ago."""
        if not self.standing.has_key:
            now = time.monotonic()
            if now - self._asked_key > RECHECK_SECONDS:
                self._asked_key, self._looks_before = now, self.standing.looks
                self._link.send(CheckKey())
            await self._until(lambda: self.standing.looks != self._looks_before)
        return self.standing.has_key

    async def learn_prices(self) -> None:
        """Wait until the supervisor has looked them up."""
        if self.prices is None:
            await self._until(lambda: self.prices is not None)

    async def rest_cloud(self) -> None:
        """Let the cloud worker end, and forget the key, whenever it has been idle for long enough. Never returns."""
        while True:
            await asyncio.sleep(min(self.cloud.idle_seconds, 30) / 4)
            client = self._clients.get("cloud")
            if client and client.idle_seconds > self.cloud.idle_seconds:
                self._retired.append(self._clients.pop("cloud"))
            for client in [client for client in self._retired if client.idle_seconds]:
                self._retired.remove(client)
                await client.close()

    async def close(self) -> None:
        self._link.close()
        for client in [*self._clients.values(), *self._retired]:
            await client.close()

    async def _answer(self, question: Message, waiting: "deque[asyncio.Future[str]]", seconds: float) -> str:
        """The supervisor's answer, for which questions wait in their order. Raises `TimeoutError`."""
        waiter: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        waiting.append(waiter)
        self._link.send(question)
        async with asyncio.timeout(seconds):
            return await waiter

    def _alive(self, name: WorkerName) -> bool:
        return name in self._clients and self._clients[name].alive

    def _on_message(self, message: Message | None, sock: socket.socket | None) -> None:
        self._tasks.start(self._handle(message, sock))

    async def _handle(self, message: Message | None, sock: socket.socket | None) -> None:
        async with self._changed:
            match message:
                case None:
                    self.supervisor_gone.set()
                case Standing():
                    switched = message.privacy and not self.standing.privacy
                    self.standing = message
                    if switched:
                        self.on_privacy()
                case PrivacySet(trouble=trouble) | ShareSet(trouble=trouble):
                    waiting = self._privacy_waiters if isinstance(message, PrivacySet) else self._share_waiters
                    waiter = waiting.popleft()
                    if not waiter.done():
                        waiter.set_result(trouble)
                case Memory(resident=resident):
                    self._memory = resident
                case Priced(prices=prices):
                    self.prices = prices
                case WorkerDown(worker=name, why=why, ended=ended):
                    self._clients.pop(name, None)
                    if not (ended and name in self._wanted):
                        self.why_down[name] = why
                case Retired(worker=name):
                    if old := self._clients.pop(name, None):
                        self._retired.append(old)
                case WorkerUp(worker=name) if sock is not None:
                    answered = partial(self._link.send, Answered(name))
                    if before := self._clients.get(name):
                        self._retired.append(before)
                    self._clients[name] = await WorkerClient.over(name, sock, answered)
                    self.why_down.pop(name, None)
                    # From here on what ends is this one.
                    self._wanted.discard(name)
                case Reload(settings=settings):
                    self._reload = message
                    self.reloads.put_nowait(settings)
                case Beat():
                    self._link.send(Beat())
                case _:
                    log.warning("the supervisor sent an unexpected %s", type(message).__name__)
            self._changed.notify_all()

    async def _until(self, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            log.error("the supervisor did not answer within %s s", ANSWER_SECONDS)
