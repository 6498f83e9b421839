"""The command line as a person uses it: the good way, and what mistakes say."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.daemon.harness import Daemon, cli, user_environment


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return user_environment(tmp_path)


@pytest.mark.parametrize(
    "command",
    ["serve", "pull", "models", "rm", "privacy", "key set", "key rm", "key where", "config check", "service install"],
)
def test_every_command_explains_itself(home: Mapping[str, str], command: str) -> None:
    helped = cli(home, *command.split(), "--help")

    assert helped.returncode == 0
    assert helped.stdout.startswith("Usage: upcall")


def test_help_imports_nothing_heavy(home: Mapping[str, str]) -> None:
    seen = cli({**home, "PYTHONPROFILEIMPORTTIME": "1"}, "--help").stderr

    assert "click" in seen
    for heavy in ("pydantic", "numpy", "onnxruntime", "aiohttp", "llama_cpp", "rich"):
        assert f"| {heavy}\n" not in seen.replace("|   ", "| ")


@pytest.mark.parametrize(
    ("arguments", "status", "hint"),
    [
        (["pull", "lama3-8b"], 1, "did you mean llama3-8b"),
        (["rm", "nothing"], 1, "upcall models"),
        (["privacy", "maybe"], 2, "maybe"),
        (["config", "check", "--config", "/nonexistent.toml"], 2, "no such file"),
        (["serve", "--port", "99999"], 2, "server.port"),
        (["serve", "--cloud-share", "7"], 2, "routing.cloud_share"),
        (["key", "where", "../x"], 1, "key name"),
        (["service", "uninstall"], 1, "upcall.service"),
    ],
)
def test_a_mistake_is_one_line_and_a_status(
    home: Mapping[str, str], arguments: list[str], status: int, hint: str
) -> None:
    failed = cli(home, *arguments)

    assert failed.returncode == status
    assert hint in failed.stderr
    assert "Traceback" not in failed.stderr


def test_an_empty_key_is_refused(home: Mapping[str, str]) -> None:
    refused = cli(home, "key", "set", "openai")

    assert refused.returncode == 1
    assert "no key was given" in refused.stderr


def test_a_key_without_a_keyring_is_refused_and_nothing_keeps_it(home: Mapping[str, str], tmp_path: Path) -> None:
    refused = cli(home, "key", "set", "openai", stdin="sk-some-secret-key\n")

    assert refused.returncode == 1
    assert "keyring" in refused.stderr
    assert "sk-some-secret-key" not in refused.stdout + refused.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"sk-some-secret" in path.read_bytes()]


def test_config_show_prints_what_is_in_force(home: Mapping[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "config" / "upcall"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("[routing]\ncloud_share = 0.05\n")

    assert json.loads(cli(home, "config", "show").stdout)["routing"]["cloud_share"] == 0.05


def test_a_port_in_use_names_its_holder(upcall: Daemon) -> None:
    second = cli(upcall.environment, "serve", "--port", str(upcall.server.port))

    assert second.returncode == 2
    assert str(upcall.children("gateway")[0].pid) in second.stderr
    assert "Traceback" not in second.stderr
