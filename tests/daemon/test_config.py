"""Settings: where they come from, and what a mistake in them says."""

import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

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


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5",
        "AIzaZm9vYmFyYmF6cXV4MTIzNDU2Nzg5012",
        "0123456789abcdef0123456789abcdef",
        "fw_3ZaBcdEfGhIjKlMnOpQrStU",
        "550e8400-e29b-41d4-a716-446655440000",
        "x" * 101,
        "two words",
        "../openai",
        "",
    ],
)
@pytest.mark.parametrize(
    "table", ["[cloud]", "[local]", '[[cloud.fallbacks]]\nmodel = "claude-3-opus"'], ids=["cloud", "local", "fallback"]
)
def test_a_key_in_the_place_of_its_name_is_refused_without_being_shown(file: Path, table: str, key: str) -> None:
    file.write_text(f'{table}\nkey = "{key}"\n')
    with pytest.raises(ConfigError, match="`upcall key set NAME` stores the key") as error:
        load(file)

    assert not key or key not in str(error.value)
    with pytest.raises(ValidationError) as invalid:
        Settings.model_validate(tomllib.loads(file.read_text()))
    assert not key or key not in str(invalid.value)


@pytest.mark.parametrize(
    "name",
    [
        "openai",
        "house",
        "stored_nowhere",
        "work-2024.eu",
        "token-of-the-company",
        "hf-inference-endpoint",
        "none",
        "OpenAIOrganizationKey2024",
        "acme-sk-production2-gateway",
    ],
)
def test_a_name_of_a_key_is_taken_as_it_is(file: Path, name: str) -> None:
    file.write_text(f'[cloud]\nkey = "{name}"\n[local]\nkey = "{name}"\n')

    assert load(file).cloud.key == load(file).local.key == name


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


@pytest.mark.parametrize("name", ["SERVER__ALLOWED_HOSTS", "SENSITIVE__KEYWORDS", "ROUTING"])
def test_a_list_in_the_environment_that_is_no_json_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"UPCALL_{name}", "box.lan")
    with pytest.raises(ConfigError, match="in the environment are JSON"):
        load()


def test_a_file_in_another_encoding_says_so(file: Path) -> None:
    file.write_bytes("# configuração\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(file)


def test_a_config_file_that_was_named_must_exist(file: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(file)


def test_a_preset_brings_its_provider_and_any_other_model_must_name_one() -> None:
    assert resolve.cloud(Cloud(model="claude-3-opus")).provider == "anthropic"
    with pytest.raises(ConfigError, match=r"cloud\.provider"):
        resolve.cloud(Cloud(model="my-model"))
    with pytest.raises(ConfigError, match="gpt-4 is openai's; set a model of anthropic's"):
        resolve.cloud(Cloud(model="gpt-4", provider="anthropic"))
    assert resolve.cloud(Cloud(model="gpt-4", provider="openrouter")).model == "gpt-4"


def test_settings_survive_the_way_to_another_process() -> None:
    settings = Settings.model_validate({"cloud": {"ca_bundle": "/x/ca.pem"}, "server": {"allowed_hosts": ["box.lan"]}})

    assert Settings.model_validate_json(settings.model_dump_json()) == settings
