"""Memory over many answers: what one request takes is given back, so that a daemon may run for months."""

import asyncio
import json

import pytest

from tests.daemon.conftest import Escalating
from tests.daemon.harness import Daemon
from tests.emulators.upstream import chunk

WARM_UP, ANSWERS, AT_ONCE = 2_000, 10_000, 16
ROOM = 4 * 2**20
"""Bytes. A leak of one small object of Python in each answer is more: 8,000 times 600 bytes."""
EVENTS = [
    chunk({"role": "assistant", "content": "Hel"}),
    chunk({"content": "lo"}),
    chunk({}, finish_reason="stop"),
    {**chunk(), "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}},
]
STREAM = "".join(f"data: {event}\n\n" for event in [*map(json.dumps, EVENTS), "[DONE]"]).encode()
END = b"\r\n0\r\n\r\n"
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    + f"{len(STREAM):x}\r\n".encode()
    + STREAM
    + END
)
QUESTION = json.dumps(
    {"model": "cloud", "stream": True, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100}
).encode()


# A quarter of a minute, where nothing else runs.
@pytest.mark.timeout(1200)
async def test_memory_stays_flat_over_ten_thousand_streamed_answers_of_the_cloud(escalating: Escalating) -> None:
    provider = await asyncio.start_server(provide, "127.0.0.1", 0)
    address = "http://127.0.0.1:{1}/v1".format(*provider.sockets[0].getsockname())
    daemon = await asyncio.to_thread(escalating, address, PRICES='{"gpt-4": {"prompt": 10, "completion": 30}}')
    # The router is loaded when it has scored.
    await asyncio.to_thread(daemon.call, "POST", "/v1/route", json.loads(QUESTION) | {"model": "auto"})
    await ask(daemon, WARM_UP)
    before = resident(daemon)
    await ask(daemon, ANSWERS - WARM_UP)
    grown = {role: held - before[role] for role, held in resident(daemon).items()}
    provider.close()

    assert all(more < ROOM for more in grown.values()), grown


async def provide(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while head := await reader.read(2**16):
        while b"max_tokens" not in head:
            head += await reader.read(2**16)
        writer.write(ANSWER)
    writer.close()


async def ask(daemon: Daemon, answers: int) -> None:
    left = iter(range(answers))
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{daemon.server.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(QUESTION)}\r\n\r\n"
    ).encode()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", daemon.server.port)
        for _ in left:
            writer.write(head + QUESTION)
            answer = await reader.readuntil(END)
            assert answer.startswith(b"HTTP/1.1 200"), answer
            assert b"x-upcall-route: cloud" in answer
            assert b"[DONE]" in answer
        writer.close()

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))


def resident(daemon: Daemon) -> dict[str, int]:
    """Bytes, by role: status(5) of the process, as `ps` tells."""
    return {role: sum(child.memory_info().rss for child in daemon.children(role)) for role in ("gateway", "cloud")}
