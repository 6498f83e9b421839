"""The process that serves HTTP: `python -m daemon.gateway LINK [LISTENER]`, with the settings on standard input.

LINK and LISTENER are inherited file descriptors; without the second the gateway binds a socket of its own.
"""

import asyncio
import contextlib
import glob
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from aiohttp import web

from daemon.accounts.budget import Budget
from daemon.accounts.ledger import Ledger, default_path
from daemon.accounts.metrics import Metrics
from daemon.app import build
from daemon.config import Settings
from daemon.confine import Confinement, confine
from daemon.logs import set_up_logging
from daemon.patience import Patience
from daemon.processes import listening
from daemon.processes.systemd import ActivationError
from daemon.processes.tasks import Tasks
from daemon.processes.workers import Workers
from daemon.routing import recent
from daemon.routing.judge import LocalJudge
from daemon.routing.recent import Recent
from daemon.routing.scorer import Scorer, UnknownRouterError
from models.store import Store

EXIT_CANNOT_LISTEN = 2
SETTLING_SECONDS, SETTLING_TURNS = 0.1, 20
"""Of the event loop: more than a connection takes from being accepted to its first request."""
STOP_SECONDS = 2.0
"""What answers under way get to finish once the daemon is to stop; less than this process gets to end."""


def main() -> int:
    settings = Settings.model_validate_json(sys.stdin.buffer.read())
    set_up_logging(settings.log)
    link, *inherited = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    try:
        listener = listening.accepted(inherited[0]) if inherited else listening.listen(settings.server)
    except (OSError, ActivationError) as error:
        print(listening.why_not(error, settings.server), file=sys.stderr)
        return EXIT_CANNOT_LISTEN
    asyncio.run(serve(settings, listener, link, confine_gateway(settings.local.model)))
    return 0


def confine_gateway(model: str = "auto") -> Confinement:
    """Leave this process the sockets that it has, the models and its own state; see `confine`.

    `model` is the settings': what was learnt about one outside the store lies beside it.
    """
    folders = [Store().root, platformdirs.user_state_path("upcall")]
    for folder in folders:
        # What is not there now cannot be allowed, and an encoder may be pulled later.
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Large files are often links to another disk.
    linked = [path for path in folders[0].glob("*") if path.is_symlink()]
    file = Path(model).expanduser()
    learnt = file.parent.glob(f"{glob.escape(file.name)}.second-look-*")
    return confine(readable=[*linked, *learnt], writable=folders, may_accept=True)


async def serve(settings: Settings, listener: socket.socket, link: socket.socket, confinement: Confinement) -> None:
    """Answer requests until SIGTERM or until the supervisor is gone."""
    workers = Workers(link, settings.cloud)
    ledger = Ledger(settings.ledger, default_path())
    gateway = Gateway(settings, listener, workers, Budget(ledger))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await gateway.start()
    workers.announce(listening.url(listener), confinement)
    background = Tasks()
    for work in (gateway.load(), gateway.count(), gateway.reload(), gateway.forget(), workers.rest_cloud()):
        background.start(work)
    ends = [asyncio.create_task(end.wait()) for end in (workers.supervisor_gone, stop)]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    await gateway.close()
    background.cancel()
    await workers.close()
    ledger.close()


@dataclass(frozen=True, slots=True, eq=False)
class Serving:
    """One application, its settings, and what it scores with."""

    settings: Settings
    scorer: Scorer
    runner: web.AppRunner
    listener: socket.socket
    site: web.SockSite
    watch: "asyncio.Task[None]"
    """Over its connections."""


class Gateway:
    """Serves on one listener, by one application after the other.

    A reload builds the next application; the one before stops accepting and finishes what it has begun. So a request
    is served by the same settings from its first byte to its last.
    """

    def __init__(self, settings: Settings, listener: socket.socket, workers: Workers, budget: Budget) -> None:
        self._settings = settings
        self._listener = listener
        self._workers = workers
        self._budget = budget
        self._judge = LocalJudge(workers)
        self._scorer = Scorer(settings.routing, Store(), self._judge)
        self._metrics = Metrics()
        self._recent = Recent()
        workers.on_privacy = self._keep_nothing
        self._serving: list[Serving] = []
        self._finishing = Tasks()

    async def start(self) -> None:
        self._serving.append(await self._serve(self._settings, self._scorer))

    async def load(self) -> None:
        await self._scorer.load()

    async def count(self) -> None:
        """Count what requests come to. Never returns."""
        await self._metrics.follow(self._budget.ledger)

    async def forget(self) -> None:
        """Hold embeddings for minutes only. Never returns."""
        await self._recent.age()

    async def reload(self) -> None:
        """Take over settings as the supervisor sends them. Never returns."""
        while True:
            settings = await self._workers.reloads.get()
            before = self._serving[-1]
            try:
                await self._take_over(settings, before)
            except UnknownRouterError as error:
                self._workers.reloaded(settings, str(error))
            except Exception as error:
                # Whatever it is, requests are served, and the supervisor waits for a word.
                what = " ".join(str(error).split()) or repr(error)
                self._workers.reloaded(settings, f"the gateway failed to take them over ({what})")
            else:
                self._workers.reloaded(settings)
                self._finishing.start(self._finish(before))

    async def close(self) -> None:
        """Stop accepting, and give what is under way `STOP_SECONDS`."""
        self._finishing.cancel()
        for serving in self._serving:
            serving.watch.cancel()
        await _settle(*self._serving)
        await asyncio.gather(*(serving.runner.cleanup() for serving in self._serving))
        for serving in self._serving:
            serving.scorer.close()

    async def _serve(self, settings: Settings, scorer: Scorer) -> Serving:
        port = listening.port(self._listener)
        patience = Patience()
        app = build(settings, self._workers, scorer, self._budget, self._metrics, patience, self._recent, lambda: port)
        # A client that hangs up cancels its handler, and with it the model's work.
        # At a stop aiohttp waits that long twice before it cancels handlers.
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=STOP_SECONDS / 2)
        await runner.setup()
        # A site closes the socket that it was given when it stops.
        listener = self._listener.dup()
        site = web.SockSite(runner, listener)
        await site.start()
        assert runner.server is not None
        return Serving(settings, scorer, runner, listener, site, asyncio.create_task(patience.watch(runner.server)))

    async def _take_over(self, settings: Settings, before: Serving) -> None:
        scorer = before.scorer
        if settings.routing != before.settings.routing or scorer.outdated:
            scorer = Scorer(settings.routing, Store(), self._judge)
        try:
            if scorer is not before.scorer:
                await scorer.load()
            self._serving.append(await self._serve(settings, scorer))
        except BaseException:
            if scorer is not before.scorer:
                scorer.close()
            raise
        set_up_logging(settings.log)
        self._keep_nothing()

    def _keep_nothing(self) -> None:
        """Of what is not to be held now."""
        if self._serving and not recent.may_keep(self._serving[-1].settings, self._workers.standing.privacy):
            self._recent.clear()

    async def _finish(self, serving: Serving) -> None:
        await _settle(serving)
        await serving.site.stop()
        await serving.runner.shutdown()
        server = serving.runner.server
        assert server is not None
        # Connections that rest close now, the others after their answer, however long that takes.
        server.pre_shutdown()
        await server.shutdown()
        serving.watch.cancel()
        await serving.runner.cleanup()
        self._serving.remove(serving)
        if all(other.scorer is not serving.scorer for other in self._serving):
            serving.scorer.close()


async def _settle(*servings: Serving) -> None:
    """Accept no more, and have the first requests of what was accepted begin."""
    for serving in servings:
        # One of before a reload may have closed its own already.
        if serving.listener.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(serving.listener)
    # A connection takes some turns of the loop from being accepted to its first request. In these asyncio would
    # reset it, and aiohttp would leave it open and read nothing from it.
    for _ in range(SETTLING_TURNS):
        await asyncio.sleep(SETTLING_SECONDS / SETTLING_TURNS)


if __name__ == "__main__":
    sys.exit(main())
