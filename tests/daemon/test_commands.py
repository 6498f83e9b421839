"""Every command of the tree: what it says of itself, and what it says to mistakes, on one line and with a status."""

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from daemon.cli import EXIT_STATUS, cli
from tests.daemon.harness import cli as run
from tests.daemon.harness import user_environment


def leaves(group: click.Group, *path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, *path, name)
        else:
            yield " ".join([*path, name])


COMMANDS = sorted(leaves(cli))
MISTAKES = {
    "ask": ["ask -f /nonexistent.txt hi: 2 No such file", "ask --loc hi: 2 --local"],
    "calibrate": [
        "calibrate --cloud-share 7: 2 0<=x<=1",
        "calibrate --router mff: 2 is not one of",
        "calibrate --undo: 1 no calibration of your own",
        "calibrate --from-ledger: 1 ledger",
    ],
    "completion": ["completion tcsh: 2 bash", "completion: 2 Missing argument"],
    "config check": [
        "config check --config {misspelt}: 2 did you mean routing.cloud_share",
        "config check --config {broken}: 2 not valid TOML",
    ],
    "config show": ["config show --config {broken}: 2 not valid TOML", "config show --config /n.toml: 2 no such file"],
    "decisions": ["decisions -n 0: 2 1<=x<=1000", "decisions: 1 no ledger"],
    "doctor": ["doctor --config {misspelt}: 2 did you mean", "doctor --jso: 2 --json"],
    "evaluate": [
        "evaluate --data /nonexistent: 2 does not exist",
        "evaluate --second-look x: 2 --data",
        "evaluate --benchmark mt-bench-opus-llama3: 1 --data",
        "evaluate --benchmark arena-hard: 1 no benchmark 'arena-hard'",
    ],
    "feedback forget": ["feedback forget last: 1 no ledger", "feedback forget a b: 2 unexpected extra argument"],
    "feedback list": ["feedback list: 1 no ledger", "feedback list last: 2 unexpected extra argument"],
    "feedback right": ["feedback right: 2 Missing argument", "feedback right last: 1 upcall serve"],
    "feedback wrong": ["feedback wrong: 2 Missing argument", "feedback wrong last: 1 upcall serve"],
    "judge calibrate": ["judge calibrate --cloud-share 2: 2 0<=x<=1", "judge calibrate --model x: 1 upcall models"],
    "judge evaluate": ["judge evaluate: 2 Missing option '--data'", "judge evaluate --sample 3: 2 x>=20"],
    "judge train": ["judge train: 2 Missing option '--data'", "judge train --prompts 3: 2 x>=20"],
    "key rm": ["key rm ../x: 1 key name", "key rm: 2 Missing argument"],
    "key set": [
        "key set openai: 1 no key was given",
        "key set sk-ant-api03-abcdefghijklmnop: 1 looks like a key itself",
        "key set: 2 Missing argument",
    ],
    "key test": ["key test --config {misspelt}: 2 did you mean", "key test --config /n.toml: 2 no such file"],
    "key where": ["key where ../x: 1 key name", "key where: 2 Missing argument"],
    "learn-model": ["learn-model x: 1 no model is called", "learn-model x --questions 3: 2 x>=200"],
    "models": ["models --missing: 2 No such option", "models llama3-8b: 2 unexpected extra argument"],
    "privacy": ["privacy maybe: 2 maybe", "privacy: 2 Missing argument"],
    "pull": [
        "pull lama3-8b: 1 did you mean llama3-8b",
        "pull https://example.org/a.gguf: 2 --sha256",
        "pull http://example.org/a.gguf --sha256 " + "0" * 64 + ": 1 https",
        "pull https://example.org/a.gguf --sha256 0: 1 64 hexadecimal digits",
        "pull smollm2-135m --name x: 2 belong to a URL",
    ],
    "rm": ["rm nothing: 1 upcall models", "rm: 2 Missing argument"],
    "routers": ["routers --measure: 1 upcall pull use-multilingual", "routers mf: 2 unexpected extra argument"],
    "serve": [
        "serve --port 99999: 2 server.port",
        "serve --cloud-share 7: 2 routing.cloud_share",
        "serve --port x: 2 x",
    ],
    "service disable": ["service disable now: 2 unexpected extra argument", "service disable: 1 systemctl"],
    "service enable": ["service enable --at-log: 2 --at-login", "service enable: 1 systemctl"],
    "service install": ["service install now: 2 unexpected extra argument", "service install: 1 systemctl"],
    "service logs": ["service logs -n x: 2 valid integer", "service logs: 1 journalctl"],
    "service status": ["service status now: 2 unexpected extra argument", "service status: 1 systemctl"],
    "service uninstall": ["service uninstall now: 2 unexpected extra argument", "service uninstall: 1 upcall.service"],
    "stats": ["stats --config {broken}: 2 not valid TOML", "stats: 1 no ledger"],
    "status": ["status --config {broken}: 2 not valid TOML", "status: 1 start one with `upcall serve`"],
    "train": ["train x --data /: 2 is not one of", "train mf --data /nonexistent: 2 does not exist"],
    "why": ["why last: 1 no ledger", "why: 2 Missing argument"],
}
"""Mistakes by command: what is typed, the status, and what the answer must name. Others are made with every command."""


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The environment of a new user, and two files of settings: one with a misspelt key, one that is not TOML."""
    (tmp_path / "misspelt").write_text("[routing]\ncloud_shaer = 0.1\n")
    (tmp_path / "broken").write_text("[routing\n")
    return {**user_environment(tmp_path / "home"), "UPCALL_SERVER__PORT": "9"}


def test_three_mistakes_are_made_with_every_command() -> None:
    assert {command for command in COMMANDS if len(MISTAKES.get(command, ())) < 2} == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_refuses_an_unknown_option(command: str) -> None:
    helped = CliRunner().invoke(cli, [*command.split(), "--help"], prog_name="upcall")
    refused = CliRunner().invoke(cli, [*command.split(), "--nonsense"], prog_name="upcall")

    assert helped.exit_code == 0
    assert helped.output.startswith(f"Usage: upcall {command}")
    assert "Options:" not in helped.output.split("\n\n")[1], "it has no sentence about itself"
    assert refused.exit_code == 2
    assert "No such option" in refused.output


@pytest.mark.parametrize("mistake", [mistake for command in COMMANDS for mistake in MISTAKES.get(command, ())])
def test_a_mistake_says_what_is_wrong_and_ends_with_its_status(
    home: Mapping[str, str], tmp_path: Path, mistake: str
) -> None:
    typed, _, expected = mistake.rpartition(": ")
    status, _, hint = expected.partition(" ")
    # Whether this machine has systemd is not what is tested.
    environment = {**home, "PATH": "/nonexistent"} if typed.startswith("service") else home
    failed = run(environment, *shlex.split(typed.format(misspelt=tmp_path / "misspelt", broken=tmp_path / "broken")))

    assert failed.returncode == int(status), failed.stderr
    assert hint in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_damaged_list_of_models_says_what_to_do(home: Mapping[str, str], tmp_path: Path) -> None:
    store = tmp_path / "home/data/upcall/models"
    store.mkdir(parents=True)
    (store / "added.json").write_text("nonsense")

    failed = run(home, "models")

    assert failed.returncode == 1
    assert "delete it and pull its models again" in failed.stderr


def test_the_exit_statuses_are_in_the_help(home: Mapping[str, str]) -> None:
    shown = " ".join(run(home, "--help").stdout.split())

    assert " ".join(EXIT_STATUS.split()) in shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_program_of_the_shell(home: Mapping[str, str], shell: str) -> None:
    script = run(home, "completion", shell)

    assert script.returncode == 0
    assert f"_UPCALL_COMPLETE={shell}_complete" in script.stdout
    if shell == "bash":
        assert subprocess.run(["bash", "-n"], input=script.stdout, text=True, timeout=60).returncode == 0


def test_models_are_listed_with_whether_they_are_here(tmp_path: Path, models_ready: Path) -> None:
    environment = {**user_environment(tmp_path, models_ready), "COLUMNS": "40"}
    rows = {line.split()[0]: line for line in run(environment, "models").stdout.splitlines()}

    assert " is here, " in rows["smollm2-135m"]
    assert " not pulled, " in rows["llama3-8b"]
    assert "qwen2.5-coder-1.5b" in rows


def test_a_model_that_is_here_is_not_fetched_again_and_the_bar_leaves_standard_output_to_the_result(
    tmp_path: Path, models_ready: Path
) -> None:
    pulled = run(user_environment(tmp_path, models_ready), "pull", "smollm2-135m")

    assert pulled.returncode == 0
    assert re.fullmatch(r"smollm2-135m: /\S+\n", pulled.stdout)
    assert "smollm2-135m" in pulled.stderr


def test_an_evaluation_that_is_piped_gives_its_table_and_nothing_of_its_progress(
    home: Mapping[str, str], tmp_path: Path, use_encoder: Path
) -> None:
    reason = "needs the training libraries (make train-deps)"
    pytest.importorskip("matplotlib", reason=reason)
    arrow, parquet = (pytest.importorskip(name, reason=reason) for name in ("pyarrow", "pyarrow.parquet"))
    rows = [
        {"prompt": f"How many? {row}", "strong_correct": 1, "weak_correct": row % 2, "contaminated": False}
        for row in range(20)
    ]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "routellm_gsm8k.parquet")
    environment = {**home, "UPCALL_ENCODER": str(use_encoder), "COLUMNS": "200"}
    piped = run(environment, "evaluate", "--routers", "mf", "--benchmark", "gsm8k", "--data", str(tmp_path))

    assert piped.returncode == 0, piped.stderr
    assert "mf on gsm8k" not in piped.stdout
    rows_shown = [words[:2] for line in piped.stdout.splitlines() if (words := re.findall(r"[\w%]+", line))]
    assert rows_shown[0] == ["benchmark", "router"]
    assert ["gsm8k", "mf"] in rows_shown
    assert "mf on gsm8k" in piped.stderr


def test_every_progress_bar_says_that_it_goes_to_standard_error() -> None:
    bars = {
        f"{path.name}:{call.lineno}": ast.unparse(call)
        for room in ("daemon", "models", "routers")
        for path in Path(__file__).parents[2].joinpath(room).rglob("*.py")
        if "rich.progress" in path.read_text()
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("track", "Progress", "Bar")
    }

    assert len(bars) > 6
    assert [bar for bar in bars.items() if "console=Console(stderr=True)" not in bar[1]] == []


def test_privacy_is_switched_without_a_daemon(home: Mapping[str, str]) -> None:
    said = [run(home, "privacy", switch).stdout for switch in ("status", "on", "status", "off")]

    assert said == [f"privacy mode is {state}\n" for state in ("off", "on", "on", "off")]


def test_valid_settings_are_called_valid(home: Mapping[str, str]) -> None:
    assert run(home, "config", "check").stdout == "the settings are valid\n"
