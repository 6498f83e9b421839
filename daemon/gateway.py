"""The process that serves HTTP: `python -m daemon.gateway FD`, with the settings on standard input."""

import asyncio
import errno
import signal
import socket
import sys

from aiohttp import web

from daemon.app import build
from daemon.config import Settings
from daemon.logs import set_up_logging
from daemon.scorer import Scorer
from daemon.workers import Workers
from models.store import Store

EXIT_CANNOT_LISTEN = 2


def main() -> int:
    settings = Settings.model_validate_json(sys.stdin.buffer.read())
    set_up_logging(settings.log)
    try:
        listener = listen(settings)
    except OSError as error:
        print(_why_not(error, settings), file=sys.stderr)
        return EXIT_CANNOT_LISTEN
    asyncio.run(serve(settings, listener, socket.socket(fileno=int(sys.argv[1]))))
    return 0


def listen(settings: Settings) -> socket.socket:
    """A bound socket. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in settings.server.host else socket.AF_INET
    return socket.create_server((settings.server.host, settings.server.port), family=family, backlog=128)


async def serve(settings: Settings, listener: socket.socket, link: socket.socket) -> None:
    """Answer requests until SIGTERM or until the supervisor is gone."""
    workers = Workers(link, settings.cloud.idle_seconds)
    scorer = Scorer(settings.routing, Store())
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    host, port = listener.getsockname()[:2]
    # A client that hangs up cancels its handler, and with it the model's work.
    runner = web.AppRunner(
        build(settings, workers, scorer, lambda: port), handler_cancellation=True, access_log=None, shutdown_timeout=2
    )
    await runner.setup()
    await web.SockSite(runner, listener).start()
    workers.announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    background = [
        asyncio.create_task(work) for work in (scorer.load(), workers.rest_cloud(), workers.supervisor_gone.wait())
    ]
    ends = [asyncio.create_task(stop.wait()), background[-1]]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    await runner.cleanup()
    for task in background:
        task.cancel()
    await workers.close()
    scorer.close()


def _why_not(error: OSError, settings: Settings) -> str:
    where = f"{settings.server.host}:{settings.server.port}"
    if error.errno == errno.EADDRINUSE:
        return f"upcall cannot listen on {where}: {_holder(settings.server.port)}; stop it, or set server.port."
    return f"upcall cannot listen on {where}: {error.strerror}; set server.host to an address of this machine."


def _holder(port: int) -> str:
    import psutil

    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,) and connection.pid:
            return f"{psutil.Process(connection.pid).name()} (pid {connection.pid}) holds the port"
    return "another program holds the port"


if __name__ == "__main__":
    sys.exit(main())
