"""How long one routing decision takes: `python benchmarks/route_latency.py --encoder FILE [--peer MINILM.onnx]`.

For prompts of 20, 100 and 256 tokens, each router in turn, interleaved with the peer so that both see the same machine:
the fp32 MiniLM-L6 graph on the same number of tokens, one thread, tokenizing not counted. Then the vectors of a
conversation of eight turns when the eighth comes, beside all of them embedded again. Prints Markdown.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from daemon.routing.turn_vectors import TurnVectors
from routers.encoder import Encoder, session_options
from routers.registry import ROUTERS, load

SENTENCE = "Please explain to me in a few short words why the sky is blue at noon and red in the evening. "
TOKENS_PER_SENTENCE = 21
"""Of MiniLM's tokenizer; the multilingual one gives the same number within one."""


def prompt_of(tokens: int, salt: int) -> str:
    """A prompt of about `tokens` tokens, another one for every `salt`."""
    words = (SENTENCE * (tokens // TOKENS_PER_SENTENCE + 1)).split()
    return " ".join([str(salt), *words[: round(tokens / TOKENS_PER_SENTENCE * len(SENTENCE.split())) - 1]])


def peer(path: Path) -> Callable[[int], None]:
    """One forward pass of MiniLM over that many tokens."""
    session = ort.InferenceSession(path, session_options(), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(tokens: int) -> None:
        ids = np.random.default_rng(0).integers(1000, 20_000, (1, tokens))
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        session.run(None, {name: feeds[name] for name in names})

    return run


def conversations(encoder: Encoder, runs: int) -> None:
    """Print what the eighth turn of 100 tokens costs where the seven before it were seen, and where they were not."""
    ours, theirs = [], []
    for run in range(runs):
        turns, vectors = [prompt_of(100, 8 * run + turn) for turn in range(8)], TurnVectors()
        vectors.of(encoder, turns[:-1])
        begin = time.perf_counter()
        vectors.of(encoder, turns)
        middle = time.perf_counter()
        encoder.embed(turns)
        ours.append((middle - begin) * 1000)
        theirs.append((time.perf_counter() - middle) * 1000)
    p50, other = np.percentile(ours, 50), np.percentile(theirs, 50)
    print(f"\nThe eighth turn of a conversation: {p50:.1f} ms; all eight embedded again: {other:.1f} ms; "
          f"share {p50 / other:.2f}.")  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", type=Path, default=os.environ.get("UPCALL_ENCODER"), required=False)
    parser.add_argument("--peer", type=Path, help="all-MiniLM-L6-v2 as ONNX")
    parser.add_argument("--routers", default=",".join(ROUTERS))
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--json", type=Path, help="also record the medians here, beside those of other routers")
    options = parser.parse_args()
    if options.encoder is None:
        parser.error("--encoder is needed, or UPCALL_ENCODER")
    print(
        f"{datetime.datetime.now(datetime.UTC).date()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, ONNX Runtime {ort.__version__}\n"
    )
    start = time.perf_counter()
    routers = {name: load(name, options.encoder) for name in options.routers.split(",")}
    print(f"Loaded in {time.perf_counter() - start:.2f} s; resident at most "
          f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB.\n")  # fmt: skip
    beside = peer(options.peer) if options.peer else None
    print("| router | tokens | p50 ms | p99 ms | peer p50 ms | share of the peer |\n|---|---|---|---|---|---|")
    recorded: dict[str, dict[str, float]] = {}
    for name, router in routers.items():
        for tokens in (20, 100, 256):
            ours, theirs = [], []
            for run in range(options.runs + 10):
                prompt = prompt_of(tokens, run)
                begin = time.perf_counter()
                router.score([prompt])
                middle = time.perf_counter()
                if beside:
                    beside(tokens)
                end = time.perf_counter()
                if run >= 10:  # warm by then
                    ours.append((middle - begin) * 1000)
                    theirs.append((end - middle) * 1000)
            p50, p99 = np.percentile(ours, [50, 99])
            other = np.percentile(theirs, 50)
            compared = f"{other:.1f} | {p50 / other:.2f}" if beside else "- | -"
            print(f"| {name} | {tokens} | {p50:.2f} | {p99:.2f} | {compared} |")
            recorded.setdefault(name, {})[str(tokens)] = round(float(p50), 2)
    conversations(Encoder(options.encoder), options.runs // 5)
    if options.json:
        before = json.loads(options.json.read_text()) if options.json.exists() else {}
        options.json.write_text(json.dumps(before | recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
