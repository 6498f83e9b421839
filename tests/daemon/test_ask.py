"""`upcall ask` and `upcall status`, against a real daemon."""

import json
import os
import pty
import signal
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.daemon.harness import UPCALL, Daemon, cli, user_environment, wait_until


@pytest.fixture
def user(upcall: Daemon, tmp_path: Path) -> dict[str, str]:
    """The environment of the daemon's user, logged in."""
    (tmp_path / "runtime").mkdir()
    port = {"UPCALL_SERVER__PORT": str(upcall.server.port)}
    return {**upcall.environment, **port, "XDG_RUNTIME_DIR": str(tmp_path / "runtime")}


def test_standard_output_holds_only_the_answer(user: Mapping[str, str]) -> None:
    asked = cli(user, "ask", "Say hello.", "--why")
    whole = json.loads(cli(user, "ask", "Say hello.", "--json").stdout)

    assert asked.returncode == 0
    assert asked.stdout.strip()
    assert "below_threshold" not in asked.stdout
    assert "\x1b" not in asked.stdout
    first, last = asked.stderr.splitlines()
    assert first.startswith("local · smollm2-135m · ")
    assert "because the router expects" in last
    assert whole["decision"]["route"] == "local"
    assert whole["answer"].strip()


def test_the_prompt_may_come_from_standard_input_and_files(user: Mapping[str, str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("The colour is teal.")

    piped = cli(user, "ask", "--json", stdin="What is two and two?")
    filed = cli(user, "ask", "Which colour?", "--file", str(tmp_path / "notes.txt"), "-c", "--json")

    assert json.loads(piped.stdout)["answer"]
    assert json.loads(filed.stdout)["answer"]
    kept = json.loads((Path(user["XDG_RUNTIME_DIR"]) / "upcall" / "conversation.json").read_text())
    assert kept[0]["content"] == "What is two and two?"
    assert kept[2]["content"].startswith("Which colour?\n\n")
    assert "The colour is teal." in kept[2]["content"]


def test_a_conversation_goes_on_and_is_kept_in_memory_for_its_user_alone(user: Mapping[str, str]) -> None:
    cli(user, "ask", "My name is Ana.")
    cli(user, "ask", "-c", "What is my name?")

    file = Path(user["XDG_RUNTIME_DIR"]) / "upcall" / "conversation.json"
    assert [message["role"] for message in json.loads(file.read_text())] == ["user", "assistant"] * 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_nothing_of_a_conversation_is_kept_where_there_is_no_memory_for_it(user: Mapping[str, str]) -> None:
    homeless = {name: value for name, value in user.items() if name != "XDG_RUNTIME_DIR"}

    assert cli(homeless, "ask", "Say hello.").returncode == 0
    assert "XDG_RUNTIME_DIR" in cli(homeless, "ask", "-c", "And again.").stderr


def test_ctrl_c_ends_the_question_and_frees_the_slot(user: Mapping[str, str], upcall: Daemon) -> None:
    def running() -> int:
        return int(upcall.call("GET", "/healthz")["local"]["running"])

    for number in range(3):
        wait_until(lambda: running() == 0)
        # A prompt that takes seconds to read, so that the question is under way when it is broken off.
        asking = subprocess.Popen(
            [UPCALL, "ask", "--local", f"{number}: {'word ' * 6000}"],
            env=user, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            # What a shell starts in the background ignores SIGINT, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        wait_until(lambda: running() == 1 or asking.poll() is not None)  # noqa: B023 - called in this round only
        asking.send_signal(signal.SIGINT)
        answer, errors = asking.communicate(timeout=120)
        assert "Traceback" not in errors
        if not answer:
            break  # Otherwise this process came too late, and is to try again.

    assert asking.returncode == 130
    assert not answer
    wait_until(lambda: running() == 0)
    assert cli(user, "ask", "Say hello.").returncode == 0


def test_an_answer_cannot_steer_the_terminal(user: Mapping[str, str], tmp_path: Path) -> None:
    from daemon.commands.ask import _harmless

    assert _harmless("a\x1b]0;owned\x07b\r\n\tç") == "a]0;ownedb\n\tç"
    controller, terminal = pty.openpty()
    asked = subprocess.Popen([UPCALL, "ask", "Say hello."], env=user, stdout=terminal, stderr=subprocess.DEVNULL)
    os.close(terminal)
    seen = b""
    try:
        while piece := os.read(controller, 4096):
            seen += piece
    except OSError:
        pass  # the terminal's other end is closed: all was read
    assert asked.wait(240) == 0
    assert seen.strip()
    assert b"\x1b" not in seen


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["ask"], "nothing to ask"),
        (["ask", "-f", "/nonexistent.txt", "hi"], "No such file"),
        (["ask", "-f", "/bin/true", "hi"], "not UTF-8"),
        (["ask", "-c", "and then?"], "ask without -c first"),
    ],
)
def test_a_question_that_cannot_be_asked_says_why(user: Mapping[str, str], arguments: list[str], hint: str) -> None:
    failed = cli(user, *arguments)

    assert failed.returncode != 0
    assert hint in failed.stderr
    assert not failed.stdout


def test_status_tells_what_runs(user: Mapping[str, str]) -> None:
    shown = cli(user, "status")

    assert shown.returncode == 0
    assert "local model   smollm2-135m, ready" in shown.stdout
    assert json.loads(cli(user, "status", "--json").stdout)["status"] == "ok"


def test_without_a_daemon_both_name_the_command_that_starts_one(tmp_path: Path) -> None:
    alone = {**user_environment(tmp_path), "UPCALL_SERVER__PORT": "9"}

    for command in (["ask", "hi"], ["status"]):
        failed = cli(alone, *command)
        assert failed.returncode == 1
        assert "start one with `upcall serve`" in failed.stderr
