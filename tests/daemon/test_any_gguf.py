"""Model files from anywhere: fetched by URL, or named by path; whatever is wrong with one is a line, not a crash."""

import hashlib
import re
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.daemon.conftest import StartDaemon
from tests.daemon.harness import cli, client, running_daemon, user_environment

HELLO: Any = [{"role": "user", "content": "hello"}]
WRONG = "0" * 64


@pytest.fixture
def served(smollm2: Path, tmp_path: Path) -> Iterator[str]:
    """URL of a server on loopback that has the weak model under another name."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "Some Model.Q4_1.gguf").symlink_to(smollm2)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/Some%20Model.Q4_1.gguf"
        server.shutdown()


@pytest.fixture
def home(tmp_path: Path) -> Mapping[str, str]:
    return user_environment(tmp_path / "home")


def test_a_file_pulled_by_its_url_answers_under_its_name(
    served: str, smollm2: Path, home: Mapping[str, str], tmp_path: Path
) -> None:
    sha256 = hashlib.sha256(smollm2.read_bytes()).hexdigest()
    pulled = cli(home, "pull", served, "--sha256", sha256.upper())

    assert pulled.returncode == 0, pulled.stderr
    assert 'set local.model = "some-model.q4_1"' in pulled.stdout
    with running_daemon(tmp_path / "home", None, {"LOCAL__MODEL": "some-model.q4_1"}) as daemon:
        assert client(daemon).chat.completions.create(model="local", messages=HELLO, max_tokens=2).choices
        assert daemon.call("GET", "/healthz")["local"]["model"] == "some-model.q4_1"


@pytest.mark.parametrize(
    ("arguments", "status", "hint"),
    [
        (["URL"], 2, "--sha256 is missing"),
        (["URL", "--sha256", "abc"], 1, "64 hexadecimal digits"),
        (["URL", "--sha256", WRONG], 1, "some-model.q4_1 was not pulled"),
        (["URL", "--sha256", WRONG, "--name", "../up"], 1, "cannot be the name"),
        (["URL", "--sha256", WRONG, "--name", "llama3-8b"], 1, "cannot be the name"),
        (["URL-missing", "--sha256", WRONG, "--name", "x"], 1, "404"),
        (["URL", "smollm2-135m", "--sha256", WRONG], 2, "one URL at a time"),
        (["smollm2-135m", "--sha256", WRONG], 2, "belong to a URL"),
        (["http://models.example/x.gguf", "--sha256", WRONG], 1, "over https only"),
        (["ftp://models.example/x.gguf", "--sha256", WRONG], 1, "over https only"),
        (["https://", "--sha256", WRONG, "--name", "x"], 1, "x was not pulled"),
    ],
)
def test_a_url_that_cannot_be_pulled_is_one_line_and_leaves_no_model(
    served: str, home: Mapping[str, str], tmp_path: Path, arguments: list[str], status: int, hint: str
) -> None:
    failed = cli(home, "pull", *(served + each[3:] if each.startswith("URL") else each for each in arguments))

    assert failed.returncode == status
    assert hint in failed.stderr
    assert "Traceback" not in failed.stderr
    assert len(re.findall(r"^(?:upcall|Error): ", failed.stderr, re.M)) == 1
    assert not list((tmp_path / "home").rglob("*.gguf"))


def test_nothing_is_pulled_by_url_under_privacy(served: str, home: Mapping[str, str]) -> None:
    cli(home, "privacy", "on")
    refused = cli(home, "pull", served, "--sha256", WRONG)

    assert (refused.returncode, "upcall privacy off" in refused.stderr) == (1, True)


TEMPLATE = b"tokenizer.chat_template"
ENDLESS = b"{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda whole: whole[:3_000_000], "pull the model again"),
        (lambda whole: b"PK\x03\x04" + whole[4:], "not a GGUF"),
        (lambda whole: whole.replace(b"\x00llama", b"\x00lemur", 1), "lemur"),
        (lambda whole: _with_template(whole, b"{{ cycler.__init__.__globals__.os.popen('id').read() }}"), "template"),
        (lambda whole: _with_template(whole, ENDLESS), "template"),
    ],
    ids=["truncated", "something else", "an unknown architecture", "a template that breaks out", "an endless template"],
)
def test_a_file_that_cannot_be_used_is_one_line_and_the_daemon_stays_up(
    start_daemon: StartDaemon, smollm2: Path, tmp_path: Path, damage: Any, said: str
) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(damage(smollm2.read_bytes()))
    daemon = start_daemon(ready=False, LOCAL__MODEL=str(file), LOCAL__TRUST_TEMPLATE="true")

    def detail() -> str:
        return str(daemon.call("GET", "/healthz")["local"]["detail"])

    with pytest.raises(openai.APIStatusError) as refused:
        client(daemon).chat.completions.create(model="local", messages=HELLO, max_tokens=2)
    message = refused.value.body["message"]  # type: ignore[index]
    assert said in message or said in detail()
    assert len(message.splitlines()) == 1
    assert daemon.call("POST", "/v1/route", {"messages": HELLO})
    assert daemon.process.poll() is None


def _with_template(whole: bytes, template: bytes) -> bytes:
    """The same file with another chat template of the same length."""
    at = whole.index(TEMPLATE) + len(TEMPLATE) + 4
    length = int.from_bytes(whole[at : at + 8], "little")
    assert len(template) <= length
    changed = whole[: at + 8] + template.ljust(length) + whole[at + 8 + length :]
    # Of a family that upcall has no form of its own for, or the template would not be looked at.
    return changed.replace(b"<|im_start|>", b"<|im_stare|>")
