"""The real encoders, from UPCALL_TEST_ENCODER or pulled by the model store."""

import os
from pathlib import Path

import pytest

from models.store import Store, StoreError
from routers.encoder import Encoder
from routers.minilm import FILE


@pytest.fixture(scope="session")
def encoder_path() -> Path:
    """Of the multilingual encoder; MiniLM lies beside it."""
    if given := os.environ.get("UPCALL_TEST_ENCODER"):
        return Path(given)
    return _pulled("use-multilingual", "minilm-l6")


@pytest.fixture(scope="session")
def minilm_path(encoder_path: Path) -> Path:
    return encoder_path.with_name(FILE)


def _pulled(*names: str) -> Path:
    store = Store()
    try:
        return next(iter([store.pull(name) for name in names]))
    except StoreError as error:
        if os.environ.get("UPCALL_TEST_REQUIRE") == "all":
            raise
        pytest.skip(f"the encoders cannot be fetched: {error}")


@pytest.fixture(scope="session")
def encoder(encoder_path: Path) -> Encoder:
    return Encoder(encoder_path)


HOSTILE = {
    "empty": "",
    "spaces": " \n\t ",
    "nul": "\0",
    "nuls within": "What is\0 the capital\0 of France?",
    "lone surrogate": "caf\ud83d\ud800",
    "noise": os.urandom(50_000).decode("latin1"),
    "replacement characters": os.urandom(5_000).decode("utf-8", "replace"),
    "one long word": "x" * 100_000,
    "long": "Explain why the sky is blue. " * 4_000,
    "unsupported language": "ᓄᓇᕗᑦ ᐃᓄᒃᑎᑐᑦ ᐅᖃᐅᓯᖅ",
    "emoji": "🦙" * 10_000,
    "newlines": "\n" * 10_000,
}


@pytest.fixture(params=HOSTILE, ids=str)
def hostile(request: pytest.FixtureRequest) -> str:
    return HOSTILE[request.param]
