"""What upcall adds to a cloud answer: the same paced provider asked directly and through the daemon, by turns.

The provider is a process of this script's own that streams OpenAI chunks at a steady pace, each stamped with the moment
it left (the monotonic clock is one for the whole machine). Reported for 1 and 32 clients: the whole answer, the first
chunk, and each chunk's way to the client, as through minus direct; and the processor time that one answer takes, which
a busy machine distorts least. Beside upcall, `forwarding` is what two processes in a row cost that pass on what comes
unread: as many as stand between a client and its provider where who reads prompts may not hold the key. `--litellm`
adds LiteLLM's proxy in the same run, and installs it for that in an environment of its own under `.build`.

    python benchmarks/cloud_overhead.py [--seconds 20] [--litellm]
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import aiohttp
import psutil
from aiohttp import web

FIRST_CHUNK = 0.1
"""Seconds that the provider thinks."""
PACE = 0.01
"""Seconds between its chunks: 100 tokens per second, the fast end of what clouds do."""
CHUNKS = 30
PROVIDER, UPCALL, LITELLM, FORWARDING, BETWEEN = range(18610, 18615)
"""Ports; the last is where the first of the two that forward finds the second."""


@dataclass
class Sample:
    """Milliseconds, one entry per answer (`chunk`: per chunk)."""

    total: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    chunk: list[float] = field(default_factory=list)
    processor: float = 0.0
    """Milliseconds of all processes of this path, over all answers."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of asking, per path and number of clients")
    parser.add_argument("--litellm", action="store_true", help="measure LiteLLM's proxy, too")
    parser.add_argument("--provider", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--forward", type=int, nargs=2, metavar=("FROM", "TO"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.provider:
        web.run_app(provider(), host="127.0.0.1", port=PROVIDER, print=None, access_log=None)
    elif arguments.forward:
        asyncio.run(forward(*arguments.forward))
    else:
        asyncio.run(measure(arguments.seconds, installed() if arguments.litellm else None))


def installed() -> Path:
    """LiteLLM's command, in an environment of its own."""
    command = Path(__file__).parent.parent / ".build/litellm/bin/litellm"
    if not command.exists():
        place = command.parent.parent
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        subprocess.run([place / "bin/pip", "install", "--quiet", "litellm[proxy]"], check=True)
    return command


def provider() -> web.Application:
    async def chat(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        next_at = time.monotonic() + FIRST_CHUNK
        for number in range(CHUNKS):
            await asyncio.sleep(next_at - time.monotonic())
            next_at += PACE
            await response.write(
                event({"content": f"{time.monotonic():.6f} "}, "stop" if number == CHUNKS - 1 else None)
            )
        usage = {"prompt_tokens": 5, "completion_tokens": CHUNKS, "total_tokens": CHUNKS + 5}
        await response.write(event(None, None, usage) + b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    return app


def event(delta: object, finish: str | None, usage: object = None) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    chunk = {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": choices,
        "usage": usage,
    }
    return f"data: {json.dumps(chunk)}\n\n".encode()


async def forward(port: int, to: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Near(to), "127.0.0.1", port)
    await server.serve_forever()


class Near(asyncio.Protocol):
    """The side towards the client. Connections last, so that what connecting takes is no part of an answer."""

    def __init__(self, to: int) -> None:
        self._to = to

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._far = asyncio.ensure_future(self._connected(cast(asyncio.Transport, transport)))

    async def _connected(self, near: asyncio.Transport) -> asyncio.Transport:
        far, _ = await asyncio.get_running_loop().create_connection(lambda: Far(near), "127.0.0.1", self._to)
        return far

    def data_received(self, data: bytes) -> None:
        if self._far.done():
            self._far.result().write(data)
        else:
            self._far.add_done_callback(lambda far: far.result().write(data))

    def connection_lost(self, exc: Exception | None) -> None:
        self._far.add_done_callback(lambda far: far.result().close())


class Far(asyncio.Protocol):
    """The side towards the provider."""

    def __init__(self, near: asyncio.Transport) -> None:
        self._near = near

    def data_received(self, data: bytes) -> None:
        self._near.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._near.close()


async def measure(seconds: float, litellm: Path | None) -> None:
    with tempfile.TemporaryDirectory() as home:
        commands = {
            "direct": [sys.executable, __file__, "--provider"],
            "forwarding, its second": [sys.executable, __file__, "--forward", str(BETWEEN), str(PROVIDER)],
            "forwarding": [sys.executable, __file__, "--forward", str(FORWARDING), str(BETWEEN)],
            "upcall": upcall(Path(home)),
        }
        paths = {"direct": PROVIDER, "forwarding": FORWARDING, "upcall": UPCALL}
        if litellm is not None:
            commands["litellm"] = proxy(litellm, Path(home))
            paths["litellm"] = LITELLM
        with running(commands, Path(home)) as processes:
            for port in paths.values():
                await listening(port)
            await compare(paths, processes, seconds)


async def compare(paths: dict[str, int], processes: dict[str, psutil.Process], seconds: float) -> None:
    for clients in (1, 32):
        samples = {name: Sample() for name in paths}
        for turn in range(5):
            for name, port in paths.items():
                # The first turn warms up imports and the cloud worker.
                kept = samples[name] if turn else Sample()
                path = [process for part, process in processes.items() if part.startswith(name)]
                before = processor(path)
                # Connections of their own, for servers close those that rest while others have their turn.
                async with aiohttp.ClientSession() as session:
                    await ask_for(session, port, clients, seconds / 4, kept)
                kept.processor += (processor(path) - before) * 1e3
        report(clients, samples)


def processor(processes: Iterable[psutil.Process]) -> float:
    """Seconds used so far by the processes and what they started."""
    every = (one for process in processes for one in (process, *process.children(recursive=True)))
    return sum(sum(one.cpu_times()[:2]) for one in every)


def upcall(home: Path) -> list[str]:
    config = home / "config.toml"
    config.write_text(
        f'[cloud]\nmodel = "m"\nprovider = "openai"\nbase_url = "http://127.0.0.1:{PROVIDER}/v1"\nkey = "none"\n'
    )
    command = Path(sys.executable).with_name("upcall")
    return [str(command), "serve", "--config", str(config), "--port", str(UPCALL), "--no-privacy"]


def proxy(command: Path, home: Path) -> list[str]:
    config = home / "litellm.yaml"
    parameters = {"model": "openai/m", "api_base": f"http://127.0.0.1:{PROVIDER}/v1", "api_key": "none"}
    config.write_text(json.dumps({"model_list": [{"model_name": "cloud", "litellm_params": parameters}]}))
    return [
        str(command),
        "--config",
        str(config),
        "--host",
        "127.0.0.1",
        "--port",
        str(LITELLM),
        "--telemetry",
        "False",
    ]


@contextmanager
def running(commands: dict[str, list[str]], home: Path) -> Iterator[dict[str, psutil.Process]]:
    places = {name: str(home) for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR")}
    # On loopback and for these minutes, LiteLLM may serve without a key, as upcall does.
    theirs = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
    environment = {**os.environ, **places, **theirs}
    started = {
        name: subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for name, command in commands.items()
    }
    try:
        yield {name: psutil.Process(process.pid) for name, process in started.items()}
    finally:
        for process in started.values():
            process.terminate()
        for process in started.values():
            process.wait()


async def listening(port: int) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if time.monotonic() > deadline:
                raise SystemExit(f"nothing listens on port {port}") from None
            await asyncio.sleep(0.2)
        else:
            writer.close()
            return


async def ask_for(session: aiohttp.ClientSession, port: int, clients: int, seconds: float, sample: Sample) -> None:
    end = time.monotonic() + seconds

    async def client(number: int) -> None:
        # Spread out, or all would think and stream in step.
        await asyncio.sleep(number / clients * (FIRST_CHUNK + CHUNKS * PACE))
        while time.monotonic() < end:
            await ask(session, port, sample)

    await asyncio.gather(*(client(number) for number in range(clients)))


async def ask(session: aiohttp.ClientSession, port: int, sample: Sample) -> None:
    body = {"model": "cloud", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    began = time.monotonic()
    first = None
    async with session.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise SystemExit(f"port {port} answered {response.status}: {await response.text()}")
        async for line in response.content:
            now = time.monotonic()
            if not line.startswith(b"data: {"):
                continue
            for choice in json.loads(line[6:])["choices"]:
                for stamp in ((choice.get("delta") or {}).get("content") or "").split():
                    first = first or now
                    sample.chunk.append((now - float(stamp)) * 1e3)
    if first is None:
        raise SystemExit(f"port {port} answered without a chunk")
    sample.first.append((first - began) * 1e3)
    sample.total.append((time.monotonic() - began) * 1e3)


def report(clients: int, samples: dict[str, Sample]) -> None:
    direct = samples["direct"]
    for name, sample in samples.items():
        if name == "direct":
            print(f"{clients} clients, direct: {len(direct.total)} answers, p50 {percentile(direct.total, 50):.1f} ms")
            continue
        each = sample.processor / len(sample.total)
        print(
            f"{clients} clients, {name} minus direct, ms ({len(sample.total)} answers, {each:.1f} of processor each):"
        )
        for what, ours, theirs in (
            ("whole answer", sample.total, direct.total),
            ("first chunk", sample.first, direct.first),
            ("each chunk", sample.chunk, direct.chunk),
        ):
            gaps = [percentile(ours, q) - percentile(theirs, q) for q in (50, 99)]
            print(f"  {what:12}  p50 {gaps[0]:6.2f}   p99 {gaps[1]:6.2f}")


def percentile(values: list[float], q: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[q - 1]


if __name__ == "__main__":
    main()
