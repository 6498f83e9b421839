"""What the README tells people to run, run; in both languages, which have the same commands."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Require
from tests.daemon.harness import UPCALL, Daemon, cli, running_daemon, user_environment, wait_until

ROOT = Path(__file__).parents[2]
COMMENT = re.compile(r"\s+# .*$", re.MULTILINE)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SKIPPED = {
    ".venv/bin/upcall pull llama3-8b": ("tests/models/test_store.py", "pull("),
    ".venv/bin/upcall key set openai": ("tests/daemon/test_keys.py", '"set"'),
    ".venv/bin/upcall service install": ("tests/daemon/processes/test_systemd.py", '"install"'),
    ".venv/bin/upcall service enable": ("tests/daemon/processes/test_systemd.py", '"enable"'),
    "make test-deps": ("Makefile", "test-deps: debian"),
    "make test": ("Makefile", "-m pytest"),
    "make lint": ("Makefile", "ruff check"),
}
"""What is not run here, since it installs, takes long or is this very run; and where it is run, by what words."""
PROGRAMS = {"make run": [], "make run-pair": ["--pair"]}
"""The arguments of the program behind each."""
SHORT = {"LOCAL__MAX_TOKENS": "16"}


def blocks(name: str) -> list[tuple[str, str]]:
    """Language and text of each code block, without the comments."""
    return [(language, COMMENT.sub("", text)) for language, text in BLOCK.findall((ROOT / name).read_text())]


def commands() -> list[str]:
    """Every shell command, in order."""
    shell = "".join(text for language, text in blocks("README.md") if language == "sh").replace("\\\n", "")
    return shell.splitlines()


def test_both_languages_have_the_same_commands() -> None:
    assert blocks("README.md") == blocks("README.pt-BR.md")


def test_what_is_not_run_is_in_the_readme_and_run_elsewhere() -> None:
    assert {*SKIPPED, *PROGRAMS} <= set(commands())
    for command, (place, words) in SKIPPED.items():
        assert words in (ROOT / place).read_text(), command


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("command", PROGRAMS)
def test_make_run_asks_its_prompts_and_tells_where_each_went(command: str, tmp_path: Path, models_ready: Path) -> None:
    recipe = subprocess.run(
        ["make", "--dry-run", "--assume-old=install", *command.split()[1:]], capture_output=True, text=True, cwd=ROOT
    ).stdout
    program = [".venv/bin/python -m daemon.tools.demo", *PROGRAMS[command]]
    assert "upcall pull smollm2-135m use-multilingual" in recipe
    # Under another make this one also names the directories that it enters and leaves.
    assert " ".join(program) in recipe.splitlines()
    # The larger model is another gigabyte, and stands in no better.
    small = "import sys; from daemon.tools import demo; demo.STAND_IN = 'smollm2-135m'; demo.main()"
    shown = subprocess.run(
        [sys.executable, "-c", small, *PROGRAMS[command], "--once"],
        env={**user_environment(tmp_path, models_ready), "UPCALL_SERVER__PORT": "0", "COLUMNS": "1000"},
        capture_output=True, text=True, cwd=ROOT, timeout=1000,
    )  # fmt: skip
    routes = re.findall(r"^  (local|cloud) · smollm2-135m · score [\d.]+ of [\d.]+ · (\w+)", shown.stdout, re.MULTILINE)

    assert shown.returncode == 0, shown.stderr
    assert len(re.findall(r"^> ", shown.stdout, re.MULTILINE)) == len(routes) == 6
    if command == "make run":
        assert {route for route, _ in routes} == {"local"}
        assert "no_key" in {reason for _, reason in routes}
    else:
        assert {route for route, _ in routes} == {"local", "cloud"}
    assert "/v1/chat/completions" in shown.stdout


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory, models_ready: Path) -> Iterator[Daemon]:
    """A daemon whose answers are short: what they say is not what is tested."""
    with running_daemon(tmp_path_factory.mktemp("home"), models_ready, SHORT) as daemon:
        wait_until(lambda: daemon.call("GET", "/healthz")["local"]["state"] == "ready")
        yield daemon


def test_the_commands_do_what_they_say(brief: Daemon, tmp_path: Path, require: Require) -> None:
    require(shutil.which("curl"), "needs curl")
    (tmp_path / "runtime").mkdir()
    port = str(brief.server.port)
    environment = {**brief.environment, "UPCALL_SERVER__PORT": port, "XDG_RUNTIME_DIR": str(tmp_path / "runtime")}
    said = {}
    for command in commands():
        if command in SKIPPED or command in PROGRAMS:
            continue
        line = command.replace(".venv/bin/upcall", str(UPCALL)).replace(":8484", f":{port}")
        ran = subprocess.run(["/bin/sh", "-ec", line], env=environment, capture_output=True, text=True, timeout=240)
        assert ran.returncode == 0, (command, ran.stderr)
        said[command.removeprefix(".venv/bin/upcall ")] = ran.stdout

    asked, *_ = (text for command, text in said.items() if command.startswith("curl"))
    assert '"model":"smollm2-135m"' in asked.replace(" ", "")
    assert said['ask "Why is the sky blue?"'].strip()
    assert said['ask -c "And at sunset?"'].strip()
    assert "smollm2-135m, ready" in said["status"]
    assert "answered here" in said["stats"]
    assert "local" in said["decisions"]
    assert "route    local" in said["why last"]
    assert said["privacy on"] == "privacy mode is on\n"
    assert said["privacy off"] == "privacy mode is off\n"
    assert "mf" in said["routers"]
    assert said["calibrate --cloud-share 0.3"].startswith("threshold 0.")


def test_the_python_program_gets_an_answer(brief: Daemon) -> None:
    program, *_ = (text for language, text in blocks("README.md") if language == "python")
    ran = subprocess.run(
        [sys.executable, "-c", program.replace(":8484", f":{brief.server.port}")],
        env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip

    assert ran.returncode == 0, ran.stderr
    assert re.match(r"smollm2-135m \S", ran.stdout)


@pytest.mark.parametrize("page", ["README.md", "docs/ledger.md", "docs/remote.md", "docs/cloud.md"])
def test_the_settings_that_pages_show_are_valid(page: str, tmp_path: Path) -> None:
    shown = [text for language, text in BLOCK.findall((ROOT / page).read_text()) if language == "toml"]
    assert shown
    for text in shown:
        (tmp_path / "config.toml").write_text(text)
        checked = cli(user_environment(tmp_path), "config", "check", "--config", str(tmp_path / "config.toml"))
        assert checked.returncode == 0, checked.stderr
