"""Whether memory stays flat: resident bytes of the gateway and the cloud process over many streamed cloud answers.

The provider is that of `cloud_overhead.py`, without its pauses. The first tenth of the answers warms up; what counts is
how much more is held at the end than then, and that divided by the answers between.

    python -m benchmarks.memory_flat [--answers 10000]
"""

import argparse
import asyncio
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import aiohttp
import psutil
from aiohttp import web

from benchmarks import cloud_overhead as overhead

CLIENTS = 32
LOOKS = 10
"""Measurements, evenly spread over the answers."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--provider", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.provider:
        overhead.FIRST_CHUNK = overhead.PACE = 0
        web.run_app(overhead.provider(), host="127.0.0.1", port=overhead.PROVIDER, print=None, access_log=None)
    else:
        asyncio.run(measure(arguments.answers))


async def measure(answers: int) -> None:
    with tempfile.TemporaryDirectory() as home:
        provider = [sys.executable, "-m", "benchmarks.memory_flat", "--provider"]
        commands = {"provider": provider, "upcall": overhead.upcall(Path(home))}
        with overhead.running(commands, Path(home)) as processes:
            for port in (overhead.PROVIDER, overhead.UPCALL):
                await overhead.listening(port)
            seen = []
            for look in range(1, LOOKS + 1):
                await ask(answers // LOOKS)
                seen.append(resident(processes["upcall"]))
                print(look * answers // LOOKS, "  ".join(f"{name} {mib(held)}" for name, held in seen[-1].items()))
    between = answers - answers // LOOKS
    for name, first in seen[0].items():
        grown = seen[-1][name] - first
        print(f"{name}: {mib(grown)} more after {between} answers, {grown / between:.0f} bytes for each")


async def ask(answers: int) -> None:
    left = iter(range(answers))
    body = {"model": "cloud", "stream": True, "messages": [{"role": "user", "content": "hello"}]}

    async def client() -> None:
        for _ in left:
            async with session.post(f"http://127.0.0.1:{overhead.UPCALL}/v1/chat/completions", json=body) as response:
                if b"[DONE]" not in await response.read():
                    raise SystemExit(f"an answer with status {response.status} was not whole")

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client() for _ in range(CLIENTS)))


def resident(upcall: psutil.Process) -> dict[str, int]:
    held: dict[str, int] = {}
    for process in upcall.children(recursive=True):
        with suppress(psutil.Error):
            command = process.cmdline()
            role = next((name for name in ("gateway", "cloud") if any(name in word for word in command[2:])), None)
            if role:
                held[role] = process.memory_info().rss
    return held


def mib(held: int) -> str:
    return f"{held / 2**20:.1f} MiB"


if __name__ == "__main__":
    main()
