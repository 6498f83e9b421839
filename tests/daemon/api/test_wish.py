"""What a request says to upcall in its body: heeded, checked, and never passed on."""

from typing import Any

import pytest

from daemon.api.errors import ApiError
from daemon.api.wish import asked, take_wishes
from daemon.config import Routing


@pytest.mark.parametrize(
    "body",
    [
        {"upcall": {"route": "local", "threshold": 0.5, "explain": True, "privacy": True}},
        {"upcall": {"x-upcall-route": "local", "threshold": "0.5", "explain": 1, "privacy": "on"}},
        {"metadata": {"upcall": {"route": "local", "threshold": 0.5, "explain": "1"}, "x-upcall-privacy": "on"}},
        {"extra_body": {"x-upcall-route": "local", "X-Upcall-Threshold": "0.5"},
         "x_upcall_explain": 7, "x-upcall-explain": "1", "x-upcall-privacy": True},
    ],
)  # fmt: skip
def test_wishes_in_a_body_say_what_headers_say_and_are_taken_out(body: dict[str, Any]) -> None:
    said = asked("auto", {}, take_wishes(body), Routing())

    assert (said.wish.route, said.wish.threshold, said.wish.privacy, said.explain) == ("local", 0.5, True, True)
    assert body in ({}, {"x_upcall_explain": 7})


@pytest.mark.parametrize("model", ["auto", "local", "cloud", "router-mf-0.5"])
def test_ollamas_latest_behind_a_name_changes_nothing(model: str) -> None:
    assert asked(f"{model}:latest", {}, {}, Routing()) == asked(model, {}, {}, Routing())


def test_a_header_wins_over_the_body() -> None:
    assert asked("auto", {"X-Upcall-Route": "cloud"}, {"x-upcall-route": "local"}, Routing()).wish.route == "cloud"


def test_other_metadata_stays_as_it_is() -> None:
    body = {"metadata": {"user_id": "u", "x-upcall-route": "local"}, "extra_body": {}, "model": "auto"}
    take_wishes(body)

    assert body["metadata"] == {"user_id": "u"}


@pytest.mark.parametrize("body", [{"upcall": "local"}, {"upcall": {"speed": 1}}, {"metadata": {"x-upcall-speed": 1}}])
def test_a_wish_that_means_nothing_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        take_wishes(body)
    assert refused.value.status == 400


@pytest.mark.parametrize("wish", [{"route": "up"}, {"threshold": 7}, {"privacy": "maybe"}, {"sensitive": "no"}])
def test_a_wish_with_a_wrong_value_is_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(ApiError):
        asked("auto", {}, take_wishes({"upcall": wish}), Routing())
