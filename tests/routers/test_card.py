import json
from pathlib import Path

import pytest

from routers import card as cards
from routers.calibration import shipped
from routers.card import card
from routers.interface import RouterError


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cards, "RESULTS", tmp_path)
    return tmp_path


def _record(results: Path, version: str) -> None:
    row = {"benchmark": "mmlu", "router": "knn", "version": version, "apgr": 0.61}
    (results / "evaluation.json").write_text(json.dumps([row]))
    (results / "latency.json").write_text(json.dumps({"knn": {"100": 3.5}}))


def test_a_card_has_what_was_measured_of_the_shipped_version(results: Path) -> None:
    _record(results, shipped("knn").version)
    known = card("knn")
    assert (known.apgr, known.milliseconds) == ({"mmlu": 0.61}, 3.5)
    assert known.size > 100_000


def test_a_card_never_shows_the_quality_of_another_version(results: Path) -> None:
    _record(results, "of yesterday")
    assert card("knn").apgr == {}


def test_without_records_a_card_still_names_the_router(results: Path) -> None:
    assert card("knn").version == shipped("knn").version


def test_a_damaged_record_is_a_clear_error(results: Path) -> None:
    (results / "evaluation.json").write_text("[")
    with pytest.raises(RouterError, match=r"evaluation\.json cannot be read"):
        card("knn")
