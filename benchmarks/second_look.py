"""What a second look costs: the time to the first byte of answers that stay here, and the tokens it throws away.

Two daemons of the same model, one that looks twice and one that does not, are asked the same prompts by turns, as
streams. A third stands in for the cloud, so that all of it stays on this machine. The prompts are people's, from the
data folder; the shares that go up are the defaults.

    python -m benchmarks.second_look --data DIR [--model qwen2.5-coder-1.5b] [--strong smollm2-135m] [--prompts 150]
"""

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np
import pyarrow.parquet as pq

from benchmarks import cloud_overhead as overhead

LOOKING, PLAIN, STRONG = 18620, 18621, 18622
LONGEST = 400
"""Characters of a prompt, so that reading it takes a model on two cores about a second."""
TOKENS = 48


@dataclass(frozen=True)
class Answer:
    route: str
    first_ms: float
    """Until the first byte of the body."""
    looked: bool
    """A second look came to a verdict on it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data files")
    parser.add_argument("--model", default="qwen2.5-coder-1.5b")
    parser.add_argument("--strong", default="smollm2-135m", help="stands in for the cloud; only its place counts here")
    parser.add_argument("--prompts", type=int, default=150)
    options = parser.parse_args()
    asyncio.run(measure(options.model, options.strong, sample(options.data, options.prompts)))


def sample(data: Path, count: int) -> list[str]:
    column = pq.read_table(data / "arena55k_subset.parquet", columns=["prompt"]).column("prompt").to_pylist()
    short = sorted({prompt for prompt in column if 0 < len(prompt) <= LONGEST})
    return [short[index] for index in np.random.default_rng(0).choice(len(short), count, replace=False)]


async def measure(model: str, strong: str, prompts: list[str]) -> None:
    with ExitStack() as stack:
        for port, second_look in ((STRONG, None), (LOOKING, True), (PLAIN, False)):
            home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            name = strong if second_look is None else model
            stack.enter_context(overhead.running({name: daemon(home, port, name, second_look)}, home))
        async with aiohttp.ClientSession() as session:
            for port in (STRONG, LOOKING, PLAIN):
                await overhead.listening(port)
                await ready(session, port)
            answers: dict[int, list[Answer]] = {LOOKING: [], PLAIN: []}
            for port in answers:
                await ask(session, port, "Good morning! What is a good name for a boat?")  # loads routers and workers
            for number, prompt in enumerate(prompts):
                for port in (LOOKING, PLAIN) if number % 2 else (PLAIN, LOOKING):
                    answers[port].append(await ask(session, port, prompt))
            report(answers[LOOKING], answers[PLAIN], await rows(session, len(prompts)))


def daemon(home: Path, port: int, model: str, second_look: bool | None) -> list[str]:
    """`second_look` is `None` for the one that stands in for the cloud."""
    config = home / "config.toml"
    lines = ["[local]", f'model = "{model}"', f"max_tokens = {TOKENS}"]
    if second_look is not None:
        lines += ["[second_look]", f"enabled = {str(second_look).lower()}"]
        lines += ["[cloud]", 'model = "local"', 'provider = "openai"', 'key = "none"']
        lines += [f'base_url = "http://127.0.0.1:{STRONG}/v1"']
    config.write_text("\n".join(lines) + "\n")
    privacy = "--privacy" if second_look is None else "--no-privacy"
    upcall = Path(sys.executable).with_name("upcall")
    return [str(upcall), "serve", "--config", str(config), "--port", str(port), privacy]


async def ready(session: aiohttp.ClientSession, port: int) -> None:
    while True:
        async with session.get(f"http://127.0.0.1:{port}/healthz") as response:
            if (await response.json())["local"]["state"] == "ready":
                return
        await asyncio.sleep(0.2)


async def ask(session: aiohttp.ClientSession, port: int, prompt: str) -> Answer:
    body = {"model": "auto", "stream": True, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
    began = time.monotonic()
    async with session.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise SystemExit(f"port {port} answered {response.status}: {await response.text()}")
        await response.content.readany()
        first_ms = (time.monotonic() - began) * 1e3
        await response.read()
        return Answer(response.headers["x-upcall-route"], first_ms, "x-upcall-confidence" in response.headers)


async def rows(session: aiohttp.ClientSession, count: int) -> list[dict[str, float]]:
    """What the ledger of the daemon that looks twice has of the latest `count` requests."""
    found: list[dict[str, float]] = []
    while len(found) < count:
        before = {"before": str(found[-1]["id"])} if found else {}
        url = f"http://127.0.0.1:{LOOKING}/upcall/decisions"
        async with session.get(url, params={"limit": "50", **before}) as response:
            page = (await response.json())["decisions"]
        if not page:
            break
        found += page
    return found[:count]


def report(looking: list[Answer], plain: list[Answer], decisions: list[dict[str, float]]) -> None:
    stayed = [pair for pair in zip(looking, plain, strict=True) if pair[0].route == pair[1].route == "local"]
    for name, looked in (("outside the band", False), ("inside it", True)):
        added = [one.first_ms - other.first_ms for one, other in stayed if one.looked is looked]
        if added:
            low, middle, high = np.percentile(added, [10, 50, 90])
            print(f"{name}: {len(added)} answers stayed; first byte {middle:+.1f} ms [{low:+.1f}, {high:+.1f}]")
    given = sum(row["completion_tokens"] for row in decisions if row["route"] == "local")
    wasted = sum(row["wasted_tokens"] for row in decisions)
    gone = sum(one.looked and one.route == "cloud" for one in looking)
    seen = sum(one.looked for one in looking)
    print(f"{gone} of {seen} answers looked at went up; {wasted:.0f} of {given + wasted:.0f} local tokens thrown away")
    print(f"sent up at the first look: {sum(one.route == 'cloud' for one in plain)} of {len(plain)}")


if __name__ == "__main__":
    main()
