"""`make run`: a daemon, six prompts of rising difficulty through `auto`, and where each went and why."""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.console import Console

from daemon.client import DaemonError, NotRunning, call
from daemon.config import Server
from daemon.config_file import load

PROMPTS = (
    "Say hello in one short sentence.",
    "Qual é a capital do Brasil?",
    "List three things to take on a day at the beach.",
    "A factory makes 12% defective parts. A test finds 95% of the defective ones and wrongly flags 3% of the good "
    "ones. What share of the flagged parts is really defective, and how does that change when every flagged part is "
    "tested a second time?",
    "Uma urna tem 5 bolas vermelhas e 7 azuis. Retiram-se três bolas sem reposição e, a cada bola azul retirada, "
    "acrescentam-se duas vermelhas. Calcule a distribuição do número de bolas vermelhas retiradas, o seu valor "
    "esperado e a variância, mostrando todas as contas.",
    "Design a lock-free multi-producer queue in C++20 with a bounded ring buffer: give the memory ordering of every "
    "atomic operation, prove that it is linearizable, say where the ABA problem could arise and how you rule it out, "
    "and compare its throughput under contention with that of a queue that takes a mutex.",
)
CLOUD_SHARE = "0.4"
"""More than the default, so that few prompts show both ways."""
STAND_IN = "qwen2.5-coder-1.5b"
START_SECONDS = 120.0
ANSWER_SECONDS = 300.0
TOKENS = 96


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m daemon.tools.demo", description=__doc__)
    arguments.add_argument(
        "--pair", action="store_true", help=f"a second server with {STAND_IN} stands in for the cloud"
    )
    arguments.add_argument("--once", action="store_true", help="stop after the prompts")
    options = arguments.parse_args()
    console = Console()
    with ExitStack() as stack:
        environment: dict[str, str] = {}
        if options.pair:
            stand_in = stack.enter_context(_daemon(_free_server(), {}, "--local-model", STAND_IN, "--privacy"))
            console.print(
                f"[bold]{STAND_IN}[/] on {_url(stand_in)} stands in for the cloud: nothing leaves this machine."
            )
            environment = {
                "UPCALL_CLOUD__MODEL": STAND_IN,
                "UPCALL_CLOUD__PROVIDER": "openai",
                "UPCALL_CLOUD__BASE_URL": f"{_url(stand_in)}/v1",
                "UPCALL_CLOUD__KEY": "none",
            }
        server = load().server
        if options.pair or not _running(server):
            server = stack.enter_context(_daemon(_free_server(server), environment, "--cloud-share", CLOUD_SHARE))
        for prompt in PROMPTS:
            _show(console, server, prompt)
        console.print(f"\nupcall is listening. Point any OpenAI client at [bold]{_url(server)}/v1[/], or try:")
        console.print(
            f"  curl {_url(server)}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
            """    -d '{"model": "auto", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}'""",
            highlight=False,
        )
        if not options.once:
            console.print("Ctrl-C stops it.")
            _wait()


@contextmanager
def _daemon(server: Server, environment: Mapping[str, str], *flags: str) -> Iterator[Server]:
    """`upcall serve` on the port of `server`, until the end of the block."""
    upcall = shutil.which("upcall", path=os.path.dirname(sys.executable)) or "upcall"
    command = [upcall, "serve", "--port", str(server.port), "--log-level", "warning", *flags]
    with subprocess.Popen(command, env={**os.environ, **environment}) as process:
        try:
            _until_ready(server, process)
            yield server
        finally:
            process.terminate()


def _until_ready(server: Server, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(process.returncode)
        try:
            local = call(server, "GET", "/healthz")["local"]
        except NotRunning:
            local = {"state": "loading"}
        if local["state"] == "ready":
            return
        time.sleep(0.1)
    sys.exit(f"upcall: the model was not ready after {START_SECONDS:.0f} s; see the messages above")


def _show(console: Console, server: Server, prompt: str) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": prompt}], "max_tokens": TOKENS}
    start = time.perf_counter()
    console.print(f"\n[bold]>[/] {prompt}", highlight=False)
    try:
        answer = call(server, "POST", "/v1/chat/completions", body, {"x-upcall-explain": "1"}, ANSWER_SECONDS)
    except DaemonError as error:
        console.print(f"  [red]{error}[/]", highlight=False)
        return
    seconds = time.perf_counter() - start
    text = " ".join(answer["choices"][0]["message"]["content"].split())
    console.print(f"  {text}", style="dim", markup=False, highlight=False)
    console.print(f"  {_verdict(answer, seconds)}", highlight=False)


def _verdict(answer: Mapping[str, Any], seconds: float) -> str:
    seen = answer["x_upcall"]
    colour = "green" if seen["route"] == "local" else "magenta"
    score = "" if seen["score"] is None else f" · score {seen['score']:.3f} of {seen['threshold']:.3f}"
    speed = answer["usage"]["completion_tokens"] / seconds
    return (
        f"[{colour}]{seen['route']}[/] · {answer['model']}{score} · {seen['reason']}: {seen['explanation']} "
        f"· {speed:.0f} tokens/s"
    )


def _running(server: Server) -> bool:
    try:
        call(server, "GET", "/healthz")
    except NotRunning:
        return False
    return True


def _free_server(wanted: Server | None = None) -> Server:
    """`wanted` where its port is free, else one with any free port."""
    for port in ([wanted.port] if wanted else []) + [0]:
        try:
            with socket.create_server(("127.0.0.1", port)) as probe:
                return Server(port=probe.getsockname()[1])
        except OSError:
            continue
    raise OSError("no TCP port is free on 127.0.0.1")


def _url(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


def _wait() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
