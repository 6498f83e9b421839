"""A machine with a network, as far as a daemon can tell: a namespace `box` whose default routes lead to a `world`.

The world answers every name with one address, and every TCP connection, on whatever port, as a cloud that speaks
OpenAI's API; as one that never answers where it is asked for by the name of `SILENT`. Firewall counters in the box
count what leaves it. `python world.py` is the world's server.
"""

import ctypes
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

TCP_PORT, DNS_PORT = 8080, 5353
CLOUD_ADDRESS = "203.0.113.7"
ANSWER = "The cloud answers."
SILENT = "silent.example"

COUNTERS = """
table inet proof {
  counter leaked {}
  chain out {
    type filter hook output priority 0;
    oifname != "lo" meta l4proto != icmpv6 counter name leaked
  }
}"""
"""Everything but what the kernel itself says to its IPv6 neighbours."""

SINK = f"""
table ip sink {{
  chain pre {{
    type nat hook prerouting priority -100;
    iifname "w0" meta l4proto tcp redirect to :{TCP_PORT}
    iifname "w0" udp dport 53 redirect to :{DNS_PORT}
  }}
}}"""


@dataclass(frozen=True)
class Box:
    name: str
    world: str
    """The name of its world."""
    requests: Path
    """What reached the world's server, one line per request."""

    @property
    def wrapper(self) -> list[str]:
        """Runs the command after it inside, with the world's name server."""
        return ["ip", "netns", "exec", self.name]

    def leaked(self) -> int:
        """Packets that left the box, or tried to, since it was made."""
        listed = subprocess.run([*self.wrapper, "nft", "-j", "list", "counters"], capture_output=True, check=True)
        return sum(item["counter"]["packets"] for item in json.loads(listed.stdout)["nftables"] if "counter" in item)

    def connected(self) -> bool:
        """Whether the world's server still has a connection, or one whose end has not been told to the last packet."""
        command = ["ip", "netns", "exec", self.world, "ss", "-Htan"]
        states = {line.split()[0] for line in subprocess.check_output(command, text=True).splitlines()}
        return not states <= {"LISTEN", "TIME-WAIT"}

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread's new sockets, and its children, are in the box."""
        with Path("/proc/thread-self/ns/net").open() as outside, Path("/run/netns", self.name).open() as inside:
            _set_network(inside.fileno())
            try:
                yield
            finally:
                _set_network(outside.fileno())


@contextmanager
def boxed(folder: Path) -> Iterator[Box]:
    """A box and its world, until the end of the block. Needs root."""
    box, world = f"box{os.getpid()}", f"world{os.getpid()}"
    resolver = Path("/etc/netns", box)
    with ExitStack() as stack:
        for name in (box, world):
            _run("ip", "netns", "add", name)
            stack.callback(_run, "ip", "netns", "del", name)
        resolver.mkdir(parents=True)
        stack.callback(resolver.rmdir)
        # `ip netns exec` lays it over /etc/resolv.conf.
        (resolver / "resolv.conf").write_text("nameserver 198.51.100.1\n")
        stack.callback((resolver / "resolv.conf").unlink)
        _run("ip", "link", "add", "b0", "netns", box, "type", "veth", "peer", "name", "w0", "netns", world)
        for name, link, host in ((box, "b0", 2), (world, "w0", 1)):
            for command in (
                ["link", "set", "lo", "up"],
                ["addr", "add", f"198.51.100.{host}/24", "dev", link],
                ["-6", "addr", "add", f"fd99::{host}/64", "dev", link, "nodad"],
                ["link", "set", link, "up"],
            ):
                _run("ip", "-n", name, *command)
        _run("ip", "-n", box, "route", "add", "default", "via", "198.51.100.1")
        _run("ip", "-n", box, "-6", "route", "add", "default", "via", "fd99::1")
        _run("ip", "netns", "exec", box, "nft", "-f", "-", stdin=COUNTERS)
        _run("ip", "netns", "exec", world, "nft", "-f", "-", stdin=SINK)
        requests = folder / "requests"
        requests.touch()
        server = subprocess.Popen(["ip", "netns", "exec", world, sys.executable, "-P", __file__, requests])
        stack.callback(server.wait)
        stack.callback(server.kill)
        _until_serving(world)
        yield Box(box, world, requests)


def _run(*command: str, stdin: str = "") -> None:
    subprocess.run(command, input=stdin, text=True, check=True)


def _set_network(fd: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000):
        raise OSError(ctypes.get_errno(), "setns")


def _until_serving(world: str) -> None:
    deadline = time.monotonic() + 30
    while f":{TCP_PORT} " not in subprocess.check_output(["ip", "netns", "exec", world, "ss", "-ltn"], text=True):
        assert time.monotonic() < deadline, "the world's server does not listen"
        time.sleep(0.05)


def serve(requests: Path) -> None:
    threading.Thread(target=_answer_names, daemon=True).start()
    with socket.create_server(("0.0.0.0", TCP_PORT)) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_answer, args=(connection, requests), daemon=True).start()


def _answer(connection: socket.socket, requests: Path) -> None:
    with connection:
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(65536) or b"\r\n\r\n"
        head, _, body = request.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.I)
        while length and len(body) < int(length[1]):
            body += connection.recv(65536)
        with requests.open("ab") as file:
            file.write(head.splitlines()[0] + b" " + body.replace(b"\n", b" ") + b"\n")
        if SILENT.encode() in head:
            connection.recv(1)  # Until the client gives up.
            return
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4"}
        delta = {"index": 0, "delta": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}
        stream = f"data: {json.dumps({**chunk, 'choices': [delta]})}\n\ndata: [DONE]\n\n".encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + stream)


def _answer_names() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", DNS_PORT))
        while True:
            query, client = sock.recvfrom(2048)
            end = query.index(b"\0", 12) + 5
            (kind,) = struct.unpack_from("!H", query, end - 4)
            count = kind == 1
            answer = query[:2] + b"\x81\x80" + struct.pack("!4H", 1, count, 0, 0) + query[12:end]
            if count:
                answer += b"\xc0\x0c" + struct.pack("!2HIH", 1, 1, 60, 4) + socket.inet_aton(CLOUD_ADDRESS)
            sock.sendto(answer, client)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
