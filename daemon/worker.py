"""A process that hosts one model: `python -m daemon.worker FD local|cloud`, with the settings on standard input."""

import asyncio
import os
import resource
import signal
import socket
import sys

from daemon import resolve
from daemon.config import Settings
from daemon.logs import set_up_logging
from models.interface import ChatModel
from models.store import Store
from models.worker import serve


def main() -> None:
    settings = Settings.model_validate_json(sys.stdin.buffer.read())
    set_up_logging(settings.log)
    asyncio.run(_host(settings, socket.socket(fileno=int(sys.argv[1])), sys.argv[2]))


async def _host(settings: Settings, sock: socket.socket, name: str) -> None:
    model = _cloud(settings) if name == "cloud" else _local(settings)
    serving = asyncio.create_task(serve(sock, model))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, serving.cancel)
    await asyncio.wait([serving])


def _local(settings: Settings) -> ChatModel:
    from models.llama.model import LlamaModel

    os.nice(settings.local.nice)
    return LlamaModel(resolve.local(settings.local, Store()))


def _cloud(settings: Settings) -> ChatModel:
    from daemon.keys import find
    from models.cloud.model import CloudModel

    # A core dump of this process would hold the key.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return CloudModel(resolve.cloud(settings.cloud), find)


if __name__ == "__main__":
    main()
