"""What is taken for private, what is not, and what happens to it."""

from typing import Any

import openai
import pytest

from daemon.config import Sensitive
from daemon.routing.sensitive import KINDS, Recogniser
from tests.daemon.conftest import Escalating
from tests.daemon.harness import client
from tests.emulators.servers import Emulator

# Put together here, so that no scanner of this repository takes them for real ones.
PRIVATE = [
    ("API key", "my key is sk-" + "proj-abcDEF0123456789abcdef"),
    ("API key", "AKIA" + "IOSFODNN7EXAMPLE"),
    ("API key", "token ghp_" + "a1B2" * 9),
    ("private key", "-----BEGIN " + "OPENSSH PRIVATE KEY-----\nb3Blbn"),
    ("token", "eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"),
    ("password", 'password = "hunter2!x"'),
    ("password", "a senha: Abacaxi#99"),
    ("card number", "pay with 4111 1111 1111 1111 please"),
    ("card number", "5500-0000-0000-0004"),
    ("IBAN", "transfer to DE89 3704 0044 0532 0130 00"),
    ("e-mail address", "write to jane.doe+x@mail.example.org today"),
    ("phone number", "call +55 11 91234-5678"),
    ("phone number", "(11) 91234-5678"),
    ("CPF", "meu CPF é 529.982.247-25"),
    ("CPF", "cpf 52998224725"),
    ("CNPJ", "CNPJ 11.222.333/0001-81"),
    ("social security number", "SSN 536-90-4399"),
    ("codice fiscale", "RCCMNL83S18D969H"),
    ("DNI", "DNI 54362315K"),
    ("NIR", "NIR 2 95 10 99 126 111 93"),
    ("CURP", "CURP BOXW310820HNERXN09"),
    ("CUIT", "CUIT 20-05536168-2"),
    ("RUT", "RUT 76.086.428-5"),
    *(
        ("API key", prefix + rest)
        for prefix, rest in (
            ("sk-", "ant-" + "api03-abcdefghijkl"),
            ("github_", "pat_" + "11ABCDEFG0" * 3),
            ("glpat", "-abcdefghij0123456789"),
            ("AI", "zaSyA0123456789abcdefghijklmnopqrs"),
            ("xoxb", "-0123456789-abcdef"),
            ("hf", "_abcdefghijklmnopqrstuvwxyzABCDEF"),
            ("npm", "_abcdefghijklmnopqrstuvwxyzABCDEF"),
            ("pypi", "-AgEIcHlwaS5vcmcCJDAwMDAwMDAwLTAwMDAtMDAw"),
            ("sk_", "live_abcdefghij0123456789"),
            ("ya29", ".a0ARrdaM_abcdefghijklm"),
        )
    ),
]
HARMLESS = [
    "What is the capital of Peru?",
    "Compute 4111 * 1111 and 12345678901234 / 7.",
    "The card 4111 1111 1111 1112 fails its check digit.",
    "IBANs look like DE00 1234 5678 9012 3456 78, but this is none.",
    "My CPF is not 111.111.111-12 nor 529.982.247-24.",
    "How do I hash a password in Python? password = getpass.getpass()",
    "Set password: <your password> in the file.",
    "The file sk-learn.txt holds ask-me-anything-about-scikit notes.",
    "Use git@ and foo@bar, or user@localhost.",
    "Co-Authored-By: Claude <noreply@anthropic.com>",
    "Version 1.2.3.4, built 2026-11-22 at 10:11:12, took 3.14159265358979323846 s.",
    "550e8400-e29b-41d4-a716-446655440000 is a UUID.",
    "",
]


def said(content: Any, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": content}]


@pytest.mark.parametrize(("kind", "text"), PRIVATE)
def test_private_text_is_recognised_wherever_it_stands(kind: str, text: str) -> None:
    recogniser = Recogniser(Sensitive())

    assert recogniser.find(said(text)) == kind
    assert recogniser.find(said([{"type": "text", "text": text}], role="system")) == kind
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": text}}
    assert recogniser.find([{"role": "assistant", "content": None, "tool_calls": [call]}]) == kind
    assert recogniser.find(said("word " * 200_000 + text)) == kind


def test_every_kind_is_among_what_is_recognised_here() -> None:
    assert {kind.name for kinds in KINDS.values() for kind in kinds} == {kind for kind, _ in PRIVATE}


@pytest.mark.parametrize("begin", ["data:", "data: ", "data:text/plain,", "data:image/png;base64,AAAA "])
def test_words_that_begin_as_a_picture_does_are_looked_through(begin: str) -> None:
    kind, text = PRIVATE[0]
    assert Recogniser(Sensitive()).find(said(begin + text)) == kind


def test_a_picture_itself_is_not() -> None:
    url = "data:image/png;charset=utf-8;base64," + "4111111111111111" * 100 + "=="
    assert Recogniser(Sensitive()).find(said([{"type": "image_url", "image_url": {"url": url}}])) is None


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_is_left_alone(text: str) -> None:
    assert Recogniser(Sensitive()).find(said(text)) is None


def test_own_words_and_patterns_count() -> None:
    recogniser = Recogniser(Sensitive(keywords=("Project Heron",), patterns={"case": r"C-\d{5}"}))

    assert recogniser.find(said("about project heron, quickly")) == "keyword"
    assert recogniser.find(said("file C-12345")) == "case"
    assert recogniser.find(said("project herons")) is None


def test_only_the_kinds_that_are_set_are_looked_for() -> None:
    assert Recogniser(Sensitive(kinds=("payment",))).find(said("write to jane@mail.example.org")) is None


@pytest.mark.parametrize(
    "text", ["1 " * 100_000, "a" * 300_000, "a@" * 100_000, "-----BEGIN " * 20_000, "DE89 " * 50_000]
)
def test_hostile_text_takes_no_longer_than_it_is_long(text: str) -> None:
    # A pattern that backtracks over its whole input would not come back within the time that a test may take.
    assert Recogniser(Sensitive()).find(said(text)) is None


SECRET: Any = said("hello, my password is: Abacaxi#99")


def test_a_private_prompt_stays_though_the_cloud_was_asked_for(shared: Escalating, aimock: Emulator) -> None:
    daemon = shared(aimock.base_url("openai"))
    answer = client(daemon).chat.completions.with_raw_response.create(model="cloud", messages=SECRET, max_tokens=2)

    assert answer.headers["x-upcall-reason"] == "sensitive"
    assert answer.parse().model == "smollm2-135m"
    assert not daemon.children("cloud")


def test_where_the_settings_ask_the_client_decides(escalating: Escalating, aimock: Emulator) -> None:
    daemon = escalating(aimock.base_url("openai"), SENSITIVE__ACTION="ask")

    with pytest.raises(openai.ConflictError, match="password") as refused:
        client(daemon).chat.completions.create(model="cloud", messages=SECRET)
    assert "Abacaxi" not in str(refused.value)

    allowed = client(daemon).chat.completions.create(
        model="cloud", messages=SECRET, extra_headers={"x-upcall-sensitive": "allow"}
    )
    assert allowed.model == "gpt-4"


HIDDEN = {"description": "Of maria.silva@example.org"}


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f", **HIDDEN}}]}, "sensitive"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": HIDDEN}}}, "sensitive"),
        ({"prediction": {"type": "content", "content": HIDDEN["description"]}}, "sensitive"),
        # Who asks, and not what.
        ({"user": "maria.silva@example.org"}, "forced_cloud"),
    ],
)
def test_what_goes_up_beside_the_messages_is_looked_through_but_for_whose_account_it_is(
    shared: Escalating, aimock: Emulator, more: dict[str, object], reason: str
) -> None:
    daemon = shared(aimock.base_url("openai"))
    body = {"model": "cloud", "messages": [{"role": "user", "content": "hello"}], **more}

    assert daemon.call("POST", "/v1/route", body)["reason"] == reason


def test_what_only_anthropic_knows_is_looked_through(escalating: Escalating, aimock: Emulator) -> None:
    daemon = escalating(aimock.base_url("anthropic"), "anthropic", LOCAL__MAX_TOKENS="2")
    body = {
        "model": "cloud", "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}],
        "mcp_servers": [{"type": "url", "authorization_token": "ghp_" + "a1b2c3d4e5" * 4}], "upcall": {"explain": True},
    }  # fmt: skip

    assert daemon.call("POST", "/v1/messages", body)["x_upcall"]["reason"] == "sensitive"
