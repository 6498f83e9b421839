"""A provider of the tests' own, for what the emulators cannot do: it keeps every byte it was sent, and each test
scripts how it answers. Speaks OpenAI's and Anthropic's streams.
"""

import asyncio
import json
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

Script = Callable[["Call"], Awaitable[None]]


@dataclass
class Call:
    """One request that came, and the response under way."""

    path: str
    headers: dict[str, str]
    """With names in lower case."""
    raw: bytes
    connection: int
    request: web.Request
    response: web.StreamResponse | None = None
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the client closed the connection before the answer ended."""

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    async def start(self, status: int = 200, **headers: str) -> None:
        self.response = web.StreamResponse(status=status, headers={"Content-Type": "text/event-stream", **headers})
        await self.response.prepare(self.request)

    async def send(self, *events: object) -> None:
        """Server-sent events, in the shape of the provider that the path belongs to."""
        for event in events:
            name = f"event: {event['type']}\n" if isinstance(event, dict) and "type" in event else ""
            await self.write(f"{name}data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode())

    async def write(self, data: bytes) -> None:
        if self.response is None:
            await self.start()
        assert self.response is not None
        await self.response.write(data)

    async def refuse(self, status: int, body: object, **headers: str) -> None:
        self.response = web.json_response(body, status=status, headers=headers)
        await self.response.prepare(self.request)
        await self.response.write_eof()

    def cut(self) -> None:
        """Reset the connection."""
        assert self.request.transport is not None
        self.request.transport.abort()

    @property
    def begin(self) -> list[object]:
        """The events before any text."""
        if not self.path.endswith("/messages"):
            return [chunk({"role": "assistant", "content": ""})]
        return [
            {"type": "message_start", "message": {
                "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [],
                "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 7, "output_tokens": 1}}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        ]  # fmt: skip

    def text(self, text: str) -> object:
        if not self.path.endswith("/messages"):
            return chunk({"content": text})
        return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}

    @property
    def end(self) -> list[object]:
        """The events after the text: how it ended, and what was used."""
        if not self.path.endswith("/messages"):
            usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
            return [chunk({}, finish_reason="stop"), {**chunk(), "choices": [], "usage": usage}, "[DONE]"]
        return [
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None},
             "usage": {"output_tokens": 3}},
            {"type": "message_stop"},
        ]  # fmt: skip


def chunk(delta: object = None, index: int = 0, **choice: object) -> dict[str, Any]:
    """One chunk of OpenAI's stream."""
    choices = [{"index": index, "delta": delta, "finish_reason": None, "logprobs": None, **choice}]
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices}


async def answer(call: Call) -> None:
    """Answer as a provider does on a good day."""
    await call.send(*call.begin, call.text("Hel"), call.text("lo"), *call.end)


@dataclass
class Upstream:
    calls: list[Call] = field(default_factory=list)
    script: Script = answer
    url: str = ""
    models: list[dict[str, Any]] = field(default_factory=list)
    """What is listed under `/v1/models`."""
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a request has come."""

    def base_url(self, provider: str) -> str:
        return self.url if provider == "anthropic" else f"{self.url}/v1"

    async def list_models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": self.models})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        call = Call(request.path, headers, await request.read(), id(request.transport), request)
        self.calls.append(call)
        self.asked.set()
        try:
            await self.script(call)
        except (asyncio.CancelledError, ConnectionError):
            call.left.set()
            raise
        assert call.response is not None
        return call.response


@pytest.fixture(scope="session")
def upstream_port() -> Iterator[int]:
    """A port that nobody else is given meanwhile, so that daemons which outlive a test find the next one's upstream."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest_asyncio.fixture
async def upstream(upstream_port: int) -> AsyncIterator[Upstream]:
    async for server in serving(None, upstream_port):
        yield server


async def serving(context: ssl.SSLContext | None, port: int = 0) -> AsyncIterator[Upstream]:
    """An upstream of a test's own, at `port` or at one that is free."""
    server = Upstream()
    app = web.Application(client_max_size=2**27)
    app.router.add_get("/v1/models", server.list_models)
    app.router.add_post("/{path:.*}", server.handle)
    # Off by default: but only a handler that is cancelled tells that the client left.
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=context, reuse_port=True)
    await site.start()
    server.url = f"{'https' if context else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


def certificate(folder: Path, host: str) -> tuple[Path, Path]:
    """Makes a self-signed one for `host` in `folder`: the file to serve with, and the file to trust."""
    key, cert, both = (folder / f"{name}.pem" for name in ("key", "cert", "both"))
    kind = "IP" if host[0].isdigit() else "DNS"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
         "-subj", f"/CN={host}", "-addext", f"subjectAltName={kind}:{host}"],
        check=True, capture_output=True,
    )  # fmt: skip
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    return both, cert
