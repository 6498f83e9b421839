"""Memory of the local engine over many requests of every kind, and how long its event loop is kept waiting meanwhile.

    python benchmarks/engine_memory.py MODEL.gguf --requests 500 --out benchmarks/results/engine-memory.md

Plain answers, long prompts, schemas, log-probabilities, stop strings and clients that leave, four at a time. Nothing is
saved of lost conversations, so that what is in use must not grow: of the C allocator, and of Python's beside the texts
of tokens, which are kept. Resident memory also grows as buffers that are there from the start are touched for the first
time, by the largest batch so far. The lag is by how much a sleep of a millisecond oversleeps.
"""

import argparse
import asyncio
import ctypes
import gc
import random
import sys
import time
from contextlib import aclosing
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from models.interface import ChatRequest, Failure, TextDelta
from models.llama.model import LlamaModel
from models.llama.settings import LlamaSettings

NUMBER = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}
KINDS: list[dict[str, Any]] = [
    {"max_tokens": 8},
    {"max_tokens": 4, "response_format": NUMBER},
    {"max_tokens": 6, "logprobs": True, "top_logprobs": 5},
    {"max_tokens": 12, "stop": [". ", ","]},
    {"max_tokens": 4, "n": 2},
]
CHECKPOINTS = 10


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = LlamaModel(
        LlamaSettings(path=str(options.model), name="m", slots=4, context_length=1024, saved_bytes=0, queue_limit=64)
    )
    await burst(model, 0, 40)  # every path once, so that what stays for good is there
    resident, used, lags = [memory()], [in_use(model)], np.full(100_000, 0)
    watching = asyncio.create_task(watch(lags))
    started = time.monotonic()
    for step in range(CHECKPOINTS):
        await burst(model, step, options.requests // CHECKPOINTS)
        resident.append(memory())
        used.append(in_use(model))
    seconds = time.monotonic() - started
    watching.cancel()
    await model.close()
    report = "\n".join([
        "# Memory over many requests",
        "",
        f"`python benchmarks/engine_memory.py {options.model.name} {' '.join(sys.argv[2:])}`",
        "",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {psutil.cpu_count()} processors; load average at the end "
        f"{psutil.getloadavg()[0]:.1f}; llama-cpp-python {version('llama-cpp-python')}; {seconds:.0f} s.",
        "",
        f"Resident MiB after each {options.requests // CHECKPOINTS} requests: "
        f"{', '.join(f'{size / 2**20:.1f}' for size in resident)}.",
        "",
        f"Growth: {(resident[-1] - resident[0]) / 2**20:+.1f} MiB in all, "
        f"{(resident[-1] - resident[CHECKPOINTS // 2]) / 2**20:+.1f} MiB in the second half. "
        f"In use in the second half: {(used[-1][0] - used[CHECKPOINTS // 2][0]) / 2**20:+.2f} MiB of the C allocator, "
        f"{used[-1][1] - used[CHECKPOINTS // 2][1]:+d} blocks of Python's beside kept texts.",
        "",
        f"Event loop lag while decoding: median {quantile(lags, 0.5):.2f} ms, p99 {quantile(lags, 0.99):.2f} ms.",
        "",
    ])  # fmt: skip
    print(report)
    if options.out:
        options.out.write_text(report)


async def burst(model: LlamaModel, seed: int, count: int) -> None:
    order = random.Random(seed)
    for start in range(0, count, 4):
        await asyncio.gather(*(one(model, order) for _ in range(min(4, count - start))))


async def one(model: LlamaModel, order: random.Random) -> None:
    length = order.choice([8, 8, 8, 200])
    content = " ".join(order.choices(["river", "stone", "seven", "walks", "under", "green"], k=length))
    leaves = order.random() < 0.2
    request = ChatRequest(messages=[{"role": "user", "content": content}], **order.choice(KINDS))
    async with aclosing(model.chat(request)) as events:
        async for event in events:
            if isinstance(event, Failure):
                raise RuntimeError(event.message)
            if leaves and isinstance(event, TextDelta):
                break


async def watch(lags: NDArray[np.int64]) -> None:
    """Count lags by hundredths of a millisecond: a list of them all would be the largest thing that grows."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(0.001)
        lags[min(int((time.perf_counter() - before - 0.001) * 1e5), len(lags) - 1)] += 1


def quantile(lags: NDArray[np.int64], share: float) -> float:
    """Milliseconds."""
    return int(np.searchsorted(lags.cumsum(), share * lags.sum())) / 100


class Heap(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")] + [
        (name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]


def in_use(model: LlamaModel) -> tuple[int, int]:
    """Bytes that the C allocator has handed out, and blocks that Python's has, but for the texts of tokens."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Heap
    heap, kept = mallinfo2(), model._ready().model.vocabulary._pieces
    return heap.uordblks + heap.hblkhd, sys.getallocatedblocks() - 2 * len(kept)


def memory() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    asyncio.run(main())
