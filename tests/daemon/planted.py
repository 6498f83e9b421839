"""Code planted in every process of a daemon, which tries all of `hostile.py` when it gets SIGUSR1."""

import json
import re
from pathlib import Path
from typing import Any

HOSTILE = Path(__file__).with_name("hostile.py")


def planted(folder: Path, targets: dict[str, Any]) -> list[str]:
    """The command before `upcall serve` that plants it, by way of files in `folder`."""
    (folder / "planted").mkdir()
    (folder / "planted" / "sitecustomize.py").write_text(PLANTED)
    variables = {"PATH": folder / "planted", "HOSTILE": HOSTILE.read_text(), "TARGETS": json.dumps(targets)}
    return ["env", *(f"PYTHON{name}={value}" for name, value in variables.items())]


def reports(home: Path) -> list[tuple[int, dict[str, bool]]]:
    """What the planted code has written: how many listeners its process had, and how its attempts went."""
    return [json.loads(line) for line in re.findall(r"^ATTACKED (.*)\n", (home / "log").read_text(), re.M)]


PLANTED = """
import signal

def hostile(*_):
    import json, os, socket, sys
    space = {"__name__": "hostile"}
    exec(os.environ["PYTHONHOSTILE"], space)
    listeners = []
    for fd in range(3, 256):
        try:
            with socket.socket(fileno=os.dup(fd)) as sock:
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    listeners.append(fd)
        except OSError:
            pass
    targets = {**json.loads(os.environ["PYTHONTARGETS"]), "listeners": listeners or [-1]}
    print("\\nATTACKED", json.dumps([len(listeners), space["attack"](targets)]), file=sys.stderr, flush=True)

signal.signal(signal.SIGUSR1, hostile)
"""
"""Imported by every Python that finds it on its path; the environment that upcall hands on keeps names with PYTHON."""
