"""A real HTTP server on loopback that serves one file and misbehaves as it is told."""

import hashlib
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


@dataclass
class Mirror:
    content: bytes
    ranges: bool = True
    etag: str = '"first"'
    sized: bool = True
    """Whether responses carry Content-Length."""
    statuses: list[int] = field(default_factory=list)
    """Refusals for the next requests, one each."""
    cuts: list[int] = field(default_factory=list)
    """Bytes of body after which the connection of the next requests breaks, one each."""
    pause: float = 0.0
    """Seconds before each 64 KiB of body."""
    seen: list[dict[str, str]] = field(default_factory=list)
    """Headers of the requests that came."""
    url: str = ""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.seen.append(dict(request.headers))
        if self.statuses:
            request.send_error(self.statuses.pop(0))
            return
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if asked and self.ranges and request.headers.get("If-Range", self.etag) == self.etag:
            start = int(asked[1])
            if start >= len(self.content):
                request.send_error(416)
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        else:
            request.send_response(200)
        body = self.content[start:]
        if self.sized:
            request.send_header("Content-Length", str(len(body)))
        request.send_header("ETag", self.etag)
        request.end_headers()
        body = body[: self.cuts.pop(0)] if self.cuts else body
        for at in range(0, len(body), 1 << 16):
            time.sleep(self.pause)
            request.wfile.write(body[at : at + (1 << 16)])


@pytest.fixture
def serve() -> Iterator[Callable[..., Mirror]]:
    """`serve(content, certificate=None, **behaviour)` starts a mirror and returns it, with its `url`."""
    servers = []

    def start(content: bytes, certificate: Path | None = None, **behaviour: object) -> Mirror:
        mirror = Mirror(content, **behaviour)  # type: ignore[arg-type]

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        mirror.url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}/model.gguf"
        return mirror

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
