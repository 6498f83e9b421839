"""The local engine beside llama.cpp's own server: the same file, threads, context, sampling and run, turn by turn.

    python benchmarks/engine.py MODEL.gguf --llama-server PATH/TO/llama-server --out benchmarks/results/engine.md
    python benchmarks/engine.py MODEL.gguf --xllamacpp   # the same server from a package, in an environment of its own

The peer answers over HTTP on loopback and is read by a client that does next to nothing; our engine streams to an event
loop in its own process, as in the worker, with the settings that the daemon gives it. The two take turns, and turns in
who begins. Ratios above 1 mean that ours is better. A llama-server of the same commit and flags as llama-cpp-python is
the fairer peer: the package's is built for any processor with AVX2.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import psutil

from models.interface import ChatRequest, Failure, TextDelta
from models.llama.model import LlamaModel
from models.llama.settings import LlamaSettings

Messages = Sequence[dict[str, str]]
ENVIRONMENT = Path(__file__).resolve().parents[1] / ".build/xllamacpp"
SAMPLING = {"temperature": 0.7, "top_k": 40, "top_p": 0.95, "min_p": 0.05}


class Engine(Protocol):
    """Something to measure; `stream` gives the time of each token (of each piece of text)."""

    name: str
    pid: int

    async def stream(self, messages: Messages, max_tokens: int) -> list[float]: ...


class Ours:
    def __init__(self, model: LlamaModel, end_tokens: Sequence[int]) -> None:
        self.name, self.pid = "upcall", os.getpid()
        self._model = model
        self._no_end = {str(token): -100.0 for token in end_tokens}

    async def stream(self, messages: Messages, max_tokens: int) -> list[float]:
        request = ChatRequest(messages=messages, max_tokens=max_tokens, logit_bias=self._no_end, **SAMPLING)
        times = []
        async for event in self._model.chat(request):
            if isinstance(event, Failure):
                raise RuntimeError(event.message)
            if isinstance(event, TextDelta):
                times.append(time.perf_counter())
        return times


class Peer:
    """llama.cpp's server in another process."""

    def __init__(self, name: str, port: int, pid: int) -> None:
        self.name, self.port, self.pid = name, port, pid

    async def stream(self, messages: Messages, max_tokens: int) -> list[float]:
        body = {"messages": messages, "max_tokens": max_tokens, "stream": True, "ignore_eos": True, **SAMPLING}
        data = json.dumps(body | {"cache_prompt": True}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data)
        )
        times = []
        async for line in reader:
            if b'"content":"' in line:
                times.append(time.perf_counter())
            elif b"[DONE]" in line:
                break
        writer.close()
        return times


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--xllamacpp", type=Path, nargs="?", const=ENVIRONMENT / "bin/python", metavar="PYTHON")
    parser.add_argument("--parallel", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--context", type=int, default=16384)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--prompt-tokens", type=int, default=512, help="of the cold prompt")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--skip", nargs="*", default=[], choices=["parallel", "cold", "chat", "stall"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    async with contextlib.AsyncExitStack() as stack:
        engines: list[Engine] = [await stack.enter_async_context(our_engine(options))]
        engines.append(await stack.enter_async_context(peer_engine(options)))
        for engine in engines:
            await engine.stream(prompt(32), 8)
        rows = []
        if "parallel" not in options.skip:
            for parallel in options.parallel:
                rows += await compare_parallel(engines, parallel, options)
        if "cold" not in options.skip:
            rows.append(await compare_cold(engines, options))
        if "chat" not in options.skip:
            rows.append(await compare_chat(engines, options))
        if "stall" not in options.skip:
            rows.append(await compare_stall(engines, options))
        memory = [psutil.Process(engine.pid).memory_info().rss / 2**20 for engine in engines]
        rows.append(row("resident memory at the end, MiB", memory, higher_is_better=False))
        report = render(rows, engines, options)
    print(report)
    if options.out:
        options.out.write_text(report)


async def compare_parallel(engines: Sequence[Engine], parallel: int, options: argparse.Namespace) -> list[str]:
    """Tokens per second of all streams together, processor time per token, and the median time to the first token.

    The processor time tells the engines apart on a busy machine too; ours includes the reading of the answers.
    """
    rates: list[list[float]] = [[] for _ in engines]
    firsts: list[list[float]] = [[] for _ in engines]
    work: list[list[float]] = [[] for _ in engines]
    for turn in range(options.rounds):
        for at, engine in in_turn(engines, turn):
            start, worked = time.perf_counter(), processor_time(engine)
            answers = await asyncio.gather(*(engine.stream(prompt(48), options.tokens) for _ in range(parallel)))
            rates[at].append(parallel * options.tokens / (time.perf_counter() - start))
            firsts[at] += [times[0] - start for times in answers]
            work[at].append(1000 * (processor_time(engine) - worked) / (parallel * options.tokens))
    return [
        row(f"{parallel} parallel: tokens/s", list(map(statistics.median, rates)), higher_is_better=True),
        row(f"{parallel} parallel: processor ms per token", list(map(statistics.median, work)), higher_is_better=False),
        row(
            f"{parallel} parallel: first token, ms, median",
            [1000 * statistics.median(values) for values in firsts],
            higher_is_better=False,
        ),
    ]


def processor_time(engine: Engine) -> float:
    times = psutil.Process(engine.pid).cpu_times()
    return float(times.user + times.system)


async def compare_cold(engines: Sequence[Engine], options: argparse.Namespace) -> str:
    def first(times: list[float], start: float) -> float:
        return times[0] - start

    found = await repeat(engines, options.rounds, lambda engine: timed(engine, prompt(options.prompt_tokens), 4, first))
    title = f"cold prompt of about {options.prompt_tokens} tokens: first token, s"
    return row(title, found, higher_is_better=False)


async def compare_chat(engines: Sequence[Engine], options: argparse.Namespace) -> str:
    """Time to the first token in the last turns of conversations that grow."""
    firsts: list[list[float]] = [[] for _ in engines]
    for _ in range(min(options.rounds, 3)):
        chat: list[dict[str, str]] = []
        for turn in range(options.turns):
            chat.append({"role": "user", "content": f"{turn}: {words(24)}"})
            for at, engine in in_turn(engines, turn):
                start = time.perf_counter()
                times = await engine.stream(chat, 16)
                if turn >= options.turns - 3:
                    firsts[at].append(times[0] - start)
            chat.append({"role": "assistant", "content": words(12)})
    found = list(map(statistics.median, firsts))
    title = f"turns {options.turns - 2} to {options.turns} of a growing chat: first token, s"
    return row(title, found, higher_is_better=False)


async def compare_stall(engines: Sequence[Engine], options: argparse.Namespace) -> str:
    """Waits between the tokens of three running streams while a prompt of 2k tokens is processed beside them."""
    gaps: list[list[float]] = [[] for _ in engines]
    for turn in range(min(options.rounds, 2)):
        for at, engine in in_turn(engines, turn):
            running = [asyncio.create_task(engine.stream(prompt(24), 4 * options.tokens)) for _ in range(3)]
            await asyncio.sleep(2)
            start = time.perf_counter()
            await engine.stream(prompt(2000), 4)
            end = time.perf_counter()
            for times in await asyncio.gather(*running):
                gaps[at] += [b - a for a, b in itertools.pairwise(times) if b > start and a < end]
    found = [1000 * statistics.quantiles(each, n=100)[98] for each in gaps]
    return row("gap between tokens while a 2k prompt is read, ms, p99", found, higher_is_better=False)


async def repeat(engines: Sequence[Engine], rounds: int, measure: Callable[[Engine], Any]) -> list[float]:
    found: list[list[float]] = [[] for _ in engines]
    for turn in range(rounds):
        for at, engine in in_turn(engines, turn):
            found[at].append(await measure(engine))
    return list(map(statistics.median, found))


def in_turn(engines: Sequence[Engine], turn: int) -> list[tuple[int, Engine]]:
    """Each with its place; every other time the last one first."""
    return list(enumerate(engines))[:: -1 if turn % 2 else 1]


async def timed(engine: Engine, messages: Messages, tokens: int, value: Callable[[list[float], float], float]) -> float:
    start = time.perf_counter()
    return value(await engine.stream(messages, tokens), start)


def prompt(length: int) -> Messages:
    return [{"role": "user", "content": words(length)}]


def words(tokens: int) -> str:
    """Text that no cache has seen, of roughly so many tokens."""
    return " ".join(random.choices(["river", "stone", "seven", "walks", "under", "green", "light", "never"], k=tokens))


@contextlib.asynccontextmanager
async def our_engine(options: argparse.Namespace) -> AsyncIterator[Ours]:
    settings = LlamaSettings(
        path=str(options.model),
        name="ours",
        context_length=options.context,
        cache_tokens=options.context,
        slots=max(options.parallel),
        threads=options.threads,
        confidence_tokens=0,  # as in the daemon, unless a second look asks for them
    )
    model = LlamaModel(settings)
    async for _ in model.chat(ChatRequest(messages=prompt(4), max_tokens=1)):
        pass
    vocabulary = model._ready().model.vocabulary
    yield Ours(model, [token for token in range(vocabulary.size) if vocabulary.ends_answer(token)])
    await model.close()


@contextlib.asynccontextmanager
async def peer_engine(options: argparse.Namespace) -> AsyncIterator[Peer]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if options.llama_server:
        arguments = f"--port {port} -c {options.context} -np {max(options.parallel)} -kvu --no-repack --no-webui"
        command = [options.llama_server, "-m", options.model, *arguments.split(), "-t", str(options.threads)]
        name = "llama-server"
    elif options.xllamacpp:
        if options.xllamacpp == ENVIRONMENT / "bin/python":
            install_xllamacpp()
        command = [options.xllamacpp, "-c", XLLAMACPP, options.model, port, options.context, max(options.parallel)]
        command.append(options.threads)
        name = "xllamacpp"
    else:
        sys.exit("name a peer: --llama-server or --xllamacpp")
    environment = os.environ | {"GOMP_SPINCOUNT": "1000"}
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = await asyncio.create_subprocess_exec(*map(str, command), env=environment, **silent)
    try:
        peer = Peer(name, port, process.pid)
        for _ in range(1200):
            with contextlib.suppress(OSError):
                if await peer.stream(prompt(4), 1):
                    break
            await asyncio.sleep(0.1)
        yield peer
    finally:
        process.terminate()
        await process.wait()


def install_xllamacpp() -> None:
    if not (ENVIRONMENT / "bin/python").exists():
        venv.create(ENVIRONMENT, with_pip=True)
    pip = [ENVIRONMENT / "bin/python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "xllamacpp==2026.10.11549"], check=True)


XLLAMACPP = """
import sys, time, xllamacpp
path, port, context, parallel, threads = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path = path
params.port, params.n_ctx, params.n_parallel, params.kv_unified = port, context, parallel, True
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.no_extra_bufts = True
server = xllamacpp.Server(params)
while True:
    time.sleep(60)
"""


def row(title: str, values: Sequence[float], *, higher_is_better: bool) -> str:
    ours, peer = values
    ratio = ours / peer if higher_is_better else peer / ours
    return f"| {title} | {ours:,.3g} | {peer:,.3g} | {ratio:.2f} |"


def render(rows: Sequence[str], engines: Sequence[Engine], options: argparse.Namespace) -> str:
    details = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in details if "model name" in line), platform.processor())
    command = " ".join(["python benchmarks/engine.py", options.model.name, *(a for a in sys.argv[2:])])
    head = [
        f"# The local engine beside {engines[1].name}",
        "",
        f"`{command}`",
        "",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {cpu}, {options.threads} threads, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB; load average at the end {os.getloadavg()[0]:.1f}; "
        f"llama-cpp-python {version('llama-cpp-python')}; median of {options.rounds} rounds.",
        "",
        f"| | {engines[0].name} | {engines[1].name} | ratio (above 1: ours is better) |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, ""])


if __name__ == "__main__":
    asyncio.run(main())
