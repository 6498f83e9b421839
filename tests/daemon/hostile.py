"""What a model file or a prompt would try, had it taken over a process: every way out that we know of.

    python hostile.py free|local|gateway TARGETS

tries them in a process of its own: as it is, or after `confine` exactly as that process of upcall calls it. `attack`
runs anywhere, also inside a process of the real thing. Prints, as JSON by name, whether an attempt succeeded.
"""

import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon.confine import confine, kernel
from daemon.gateway import confine_gateway

MSG_FASTOPEN = 0x20000000
PTRACE_SEIZE, PTRACE_DETACH = 0x4206, 17
PR_GET_DUMPABLE = 3


def attack(targets: dict[str, Any]) -> dict[str, bool]:
    """`targets` is what the test has laid out: ports, paths and a process of the same user."""
    attempts: dict[str, Callable[[], object]] = {
        "connect over TCP": lambda: socket.create_connection(("127.0.0.1", targets["port"]), timeout=5),
        "send over UDP": lambda: _udp().sendto(b"leak", ("127.0.0.1", 9)),
        "resolve a name": lambda: socket.getaddrinfo("localhost", 443),
        "make a raw socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        "talk to D-Bus or systemd": lambda: _unix(targets["unix_socket"]),
        "talk to an abstract socket": lambda: _unix("\0" + targets["abstract_socket"]),
        "send from a pair of datagram sockets": lambda: _datagram(targets["unix_datagrams"]),
        "listen": lambda: socket.create_server(("127.0.0.1", 0)),
        "turn a listener into a connection": lambda: _turn_listener(targets["listeners"][0], targets["port"]),
        "turn a listener into a connection by sending": lambda: _fast_open(targets["listeners"][-1], targets["port"]),
        "read the key": Path(targets["key"]).read_bytes,
        "list the credentials": lambda: os.listdir(targets["credentials"]),
        "read a credential": Path(targets["credentials"], "openai").read_bytes,
        "read the settings": Path(targets["settings"], "config.toml").read_bytes,
        "write the settings": lambda: os.open(Path(targets["settings"], "config.toml"), os.O_WRONLY),
        "list the state": lambda: os.listdir(targets["state"]),
        "read the state": Path(targets["state"], "privacy").read_bytes,
        "write the state": lambda: os.open(Path(targets["state"], "privacy"), os.O_WRONLY),
        "read another user's file": Path("/etc/passwd").read_bytes,
        "read another model": Path(targets["other_model"]).read_bytes,
        "list the home": lambda: os.listdir(targets["home"]),
        "list the temporary files": lambda: os.listdir("/tmp"),
        "write into the home": lambda: Path(targets["home"], "leak").write_text("leak"),
        "write a temporary file": lambda: Path("/tmp", f"leak-{targets['victim']}").write_text("leak"),
        "write into the code": lambda: os.open(kernel.__file__, os.O_WRONLY),
        "write into the model": lambda: os.open(targets["model"], os.O_WRONLY),
        "read another's environment": Path("/proc", str(targets["victim"]), "environ").read_bytes,
        "open another's memory": Path("/proc", str(targets["victim"]), "mem").open,
        "read another's memory": lambda: _read_memory(targets["victim"]),
        "trace another": lambda: _trace(targets["victim"]),
        "take another's file": lambda: kernel.call("pidfd_getfd", os.pidfd_open(targets["victim"]), 0, 0),
        "signal another": lambda: os.kill(targets["victim"], signal.SIGCONT),
        "run a program": lambda: subprocess.run(["/bin/true"], check=True),
        "join another's network": lambda: _join_network(targets["victim"]),
        "let others look into it": _look_in,
        "dump its own memory": lambda: resource.setrlimit(resource.RLIMIT_CORE, (1, 1)),
    }
    # A child each: an attempt may change the process, as joining a network does.
    return {name: _succeeds(attempt) for name, attempt in attempts.items()}


def _succeeds(attempt: Callable[[], object]) -> bool:
    child = os.fork()
    if not child:
        status = 1
        try:
            attempt()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _look_in() -> None:
    if ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != 1:
        raise PermissionError("not dumpable")


def _udp() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _unix(address: str) -> None:
    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).connect(address)


def _datagram(address: str) -> None:
    socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"leak", address)


def _turn_listener(listener: int, port: int) -> None:
    # The listener belongs to the network that the process came from, wherever the process is now.
    sock = _stopped(listener)
    sock.connect(("127.0.0.1", port))


def _fast_open(listener: int, port: int) -> None:
    _stopped(listener).sendto(b"leak", MSG_FASTOPEN, ("127.0.0.1", port))


def _stopped(listener: int) -> socket.socket:
    sock = socket.socket(fileno=os.dup(listener))
    sock.shutdown(socket.SHUT_RDWR)
    return sock


def _read_memory(victim: int) -> None:
    buffer = ctypes.create_string_buffer(8)
    # Two struct iovec: ours, and theirs at an address that any interpreter without random addresses could guess.
    place = int(Path("/proc", str(victim), "maps").read_text().split("-")[0], 16)
    here = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
    there = (ctypes.c_size_t * 2)(place, 8)
    kernel.call("process_vm_readv", victim, ctypes.addressof(here), 1, ctypes.addressof(there), 1, 0)


def _trace(victim: int) -> None:
    kernel.call("ptrace", PTRACE_SEIZE, victim, 0, 0)


def _join_network(victim: int) -> None:
    kernel.call("setns", os.pidfd_open(victim), 0x40000000)


def main() -> None:
    role, targets = sys.argv[1], json.loads(sys.argv[2])
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        targets["listeners"] = [one.fileno(), other.fileno()]
        match role:
            case "local":
                # The most that it ever may: with a folder for conversations.
                confine(readable=[Path(targets["model"])], writable=[Path(targets["conversations"])])
            case "gateway":
                confine_gateway()
        print(json.dumps(attack(targets)))


if __name__ == "__main__":
    main()
