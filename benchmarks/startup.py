"""From `upcall serve` to the first answered request, without a model loaded, and what the gateway keeps in memory.

The peer is the least that a Python HTTP daemon can be: aiohttp with one handler, started the same way in the same run.
Prints the ratio of both start times and of both resident sizes; runs alternate, and each figure is the median.

    python benchmarks/startup.py [--runs 7]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import platformdirs
import psutil

PEER = """
import sys
from aiohttp import web
app = web.Application()
app.add_routes([web.get("/healthz", lambda request: web.json_response({}))])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""
UPCALL = Path(sys.executable).with_name("upcall")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=7)
    runs = arguments.parse_args().runs
    with tempfile.TemporaryDirectory() as home:
        environment = _environment(Path(home))
        upcall, peer = [], []
        for run in range(runs):
            upcall.append(_measure([str(UPCALL), "serve", "--port", str(18480 + run)], 18480 + run, environment, True))
            peer.append(_measure([sys.executable, "-c", PEER, str(18580 + run)], 18580 + run, environment, False))
    for name, unit, index in (("start to ready", "s", 0), ("resident size of the gateway", "MB", 1)):
        ours, theirs = (statistics.median(sample[index] for sample in samples) for samples in (upcall, peer))
        print(f"{name}: upcall {ours:.2f} {unit}, bare aiohttp {theirs:.2f} {unit}, ratio {ours / theirs:.2f}")


def _environment(home: Path) -> dict[str, str]:
    """A home with the encoder and no weak model."""
    models = home / "upcall" / "models"
    models.mkdir(parents=True)
    for file in (platformdirs.user_data_path("upcall") / "models").glob("*use-multilingual*"):
        (models / file.name).symlink_to(file)
    return {**os.environ, "XDG_DATA_HOME": str(home), "XDG_STATE_HOME": str(home), "XDG_CONFIG_HOME": str(home)}


def _measure(command: list[str], port: int, environment: dict[str, str], router: bool) -> tuple[float, float]:
    start = time.perf_counter()
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            while not _answers(port):
                time.sleep(0.005)
            ready = time.perf_counter() - start
            if router:
                _route(port)
            return ready, _resident(process.pid)
        finally:
            process.terminate()


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).close()
    except OSError:
        return False
    return True


def _route(port: int) -> None:
    """Make the router load and score, so that its memory counts."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/route",
        b'{"messages": [{"role": "user", "content": "Why is the sky blue?"}]}',
        {"Content-Type": "application/json"},
    )
    for _ in range(20):
        urllib.request.urlopen(request, timeout=60).close()


def _resident(pid: int) -> float:
    """Megabytes of the process that answers: the gateway, or the peer itself."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    answering = next((process for process in family if "daemon.gateway" in process.cmdline()), family[0])
    return answering.memory_info().rss / 1e6


if __name__ == "__main__":
    main()
