"""Settings: where they come from, and what a mistake in them says."""

from pathlib import Path

import pytest

from daemon import resolve
from daemon.config import Cloud, ConfigError, Settings
from daemon.config_file import load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_flags_win_over_environment_and_environment_over_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("[server]\nport = 1\n[routing]\ncloud_share = 0.1\nthreshold = 0.1\n")
    monkeypatch.setenv("UPCALL_SERVER__PORT", "2")
    monkeypatch.setenv("UPCALL_ROUTING__CLOUD_SHARE", "0.2")
    settings = load(file, {"server": {"port": 3}})

    assert (settings.server.port, settings.routing.cloud_share, settings.routing.threshold) == (3, 0.2, 0.1)


def test_no_file_means_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    assert load() == Settings()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[server]\nprot = 1", "server.prot: unknown key; did you mean server.port"),
        ("[sever]\nport = 1", "sever: unknown key; did you mean server"),
        ("[server]\nport = 99999", "server.port: "),
        ('[server]\nport = "x"', "server.port: "),
        ('[server]\nhost = "0.0.0.0"', "not a loopback address"),
        ('[server]\nhost = "example.org"', "not a loopback address"),
        ("[routing]\ncloud_share = 7", "routing.cloud_share: "),
        ("[cloud.timeouts]\ncnnect = 7", "did you mean cloud.timeouts.connect"),
        ("[server\n", "not valid TOML"),
    ],
)
def test_a_mistake_is_one_line_that_names_key_and_remedy(file: Path, text: str, sentence: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(file)

    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_every_mistake_is_told_at_once(file: Path) -> None:
    file.write_text("[server]\nprot = 1\n[local]\nthread = 2\n")
    with pytest.raises(ConfigError) as error:
        load(file)

    assert {line.split(":")[0] for line in str(error.value).splitlines()} == {"server.prot", "local.thread"}


@pytest.mark.parametrize("name", ["UPCALL_SEVER__PORT", "UPCALL_SERVER__PROT"])
def test_a_misspelt_environment_variable_is_no_silent_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError, match="did you mean"):
        load()


def test_a_config_file_that_was_named_must_exist(file: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(file)


def test_a_preset_brings_its_provider_and_any_other_model_must_name_one() -> None:
    assert resolve.cloud(Cloud(model="claude-3-opus")).provider == "anthropic"
    with pytest.raises(ConfigError, match=r"cloud\.provider"):
        resolve.cloud(Cloud(model="my-model"))


def test_settings_survive_the_way_to_another_process() -> None:
    settings = Settings.model_validate({"cloud": {"ca_bundle": "/x/ca.pem"}, "server": {"allowed_hosts": ["box.lan"]}})

    assert Settings.model_validate_json(settings.model_dump_json()) == settings
