"""A process that hosts a model, or all of the cloud's: `python -m daemon.processes.worker FD local|remote|cloud`.

Its settings come on standard input.

The local one first writes a line on standard output: its `Confinement`, as JSON.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from dataclasses import asdict, replace
from pathlib import Path

from daemon import kept, resolve
from daemon.config import Settings
from daemon.confine import confine, forbid_dumps
from daemon.logs import set_up_logging
from models.interface import ChatModel
from models.store import Store
from models.worker import serve


def main() -> None:
    settings = Settings.model_validate_json(sys.stdin.buffer.read())
    set_up_logging(settings.log)
    asyncio.run(_host(settings, socket.socket(fileno=int(sys.argv[1])), sys.argv[2]))


async def _host(settings: Settings, sock: socket.socket, name: str) -> None:
    models = {"local": _local, "remote": _remote, "cloud": _clouds}[name](settings)
    serving = asyncio.create_task(serve(sock, *models))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, serving.cancel)
    await asyncio.wait([serving])


def _local(settings: Settings) -> list[ChatModel]:
    os.nice(settings.local.nice)
    look, folder = settings.second_look, kept.folder(settings)
    llama = replace(
        resolve.local(settings.local, Store()),
        hidden_state=look.enabled,
        confidence_tokens=look.tokens if look.enabled else 0,
        disk_folder=str(folder or ""),
    )
    confinement = confine(readable=[Path(llama.path)], writable=[folder] if folder else [])
    print(json.dumps(asdict(confinement)), flush=True)
    # Nobody reads what libraries may print later.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    # Not before: the libraries start threads, and are the first code here that a hostile file could reach.
    from models.llama.model import LlamaModel

    model = LlamaModel(llama)
    # The supervisor's word for privacy mode; before this line it would end the process, which is as good.
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, model.keep_nothing)
    return [model]


def _remote(settings: Settings) -> list[ChatModel]:
    from daemon.keys import find
    from models.remote import RemoteModel

    forbid_dumps()
    return [RemoteModel(resolve.remote(settings.local), find)]


def _clouds(settings: Settings) -> list[ChatModel]:
    from daemon.keys import find
    from models.cloud.model import CloudModel

    forbid_dumps()
    return [CloudModel(cloud, find) for cloud in resolve.clouds(settings.cloud)]


if __name__ == "__main__":
    main()
