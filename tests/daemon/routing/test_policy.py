"""The rules of routing, each by itself."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.config import Routing
from daemon.routing import policy
from daemon.routing.policy import Decision, Needs, Reason, State, Wish, conversation_score, decide, instead
from models.interface import Failure, FailureCode

OPEN = State(privacy=False, has_key=True, local_tools=False, local_images=False)
PLAIN = Needs()


def decided(
    wish: Wish | None = None, needs: Needs = PLAIN, state: State = OPEN, score: float | None = 0.9
) -> tuple[str, Reason]:
    decision = decide(wish or Wish(), needs, state, score, 0.5, "mf@1")
    return decision.route, decision.reason


def test_the_dashboard_has_every_reason_in_portuguese() -> None:
    told = (Path(policy.__file__).parents[1] / "web" / "text.js").read_text().partition("portugueseReasons")[2]

    assert {reason.code for reason in Reason} == set(re.findall(r"^  (\w+): ", told.partition("};")[0], re.MULTILINE))


def test_the_score_decides_where_no_rule_does() -> None:
    assert decided(score=0.5) == ("cloud", Reason.ABOVE_THRESHOLD)
    assert decided(score=0.49) == ("local", Reason.BELOW_THRESHOLD)


def test_a_low_battery_lowers_the_threshold_for_what_may_go_up_and_overrides_nothing() -> None:
    low = replace(OPEN, battery_threshold=0.3)
    assert decided(state=low, score=0.4) == ("cloud", Reason.BATTERY)
    assert decided(state=low, score=0.2) == ("local", Reason.BELOW_THRESHOLD)
    assert decided(state=low, score=0.6) == ("cloud", Reason.ABOVE_THRESHOLD)
    assert decided(Wish(route="local"), state=low, score=0.4) == ("local", Reason.FORCED_LOCAL)
    for kept in (replace(low, privacy=True), replace(low, has_key=False)):
        assert decided(state=kept, score=0.4) == ("local", Reason.BELOW_THRESHOLD)
    assert decided(needs=Needs(private="IBAN"), state=low, score=0.4) == ("local", Reason.BELOW_THRESHOLD)


def test_a_decision_tells_whether_the_score_made_it_so_that_verdicts_on_others_teach_nothing() -> None:
    def by_score(
        needs: Needs = PLAIN, state: State = OPEN, score: float | None = 0.9, route: policy.Route | None = None
    ) -> bool:
        return decide(Wish(route=route), needs, state, score, 0.5, "mf@1").by_score

    assert by_score()
    assert by_score(score=0.1)
    assert by_score(state=replace(OPEN, privacy=True))
    assert by_score(state=replace(OPEN, has_key=False))
    assert not by_score(score=None)
    assert not by_score(Needs(tokens_fit=False))
    assert not by_score(Needs(tokens_fit=False), replace(OPEN, privacy=True))
    assert not by_score(Needs(images=True))
    assert not by_score(Needs(begun="cloud"))
    assert not by_score(route="local")


def test_without_a_router_nothing_goes_up() -> None:
    assert decided(score=None) == ("local", Reason.NO_ROUTER)


@pytest.mark.parametrize("needs", [PLAIN, Needs(images=True), Needs(tools=True), Needs(tokens_fit=False)])
@pytest.mark.parametrize("wish", [Wish(), Wish(route="cloud")])
def test_privacy_keeps_every_request_here_whatever_it_needs_or_asks(wish: Wish, needs: Needs) -> None:
    assert decided(wish, needs, replace(OPEN, privacy=True)) == ("local", Reason.PRIVACY)
    assert decided(replace(wish, privacy=True), needs) == ("local", Reason.PRIVACY)


def test_a_request_cannot_loosen_privacy() -> None:
    assert decided(Wish(route="cloud", privacy=False), state=replace(OPEN, privacy=True))[0] == "local"


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        (Needs(images=True), Reason.IMAGES),
        (Needs(tools=True), Reason.TOOLS),
        (Needs(tools=True, foreign_tools=True), Reason.TOOLS),
        (Needs(tokens_fit=False), Reason.CONTEXT_LENGTH),
    ],
)
def test_what_the_local_model_cannot_do_goes_up_with_its_reason(needs: Needs, reason: Reason) -> None:
    assert decided(needs=needs, score=0.0) == ("cloud", reason)
    assert decided(Wish(route="local"), needs) == ("local", Reason.FORCED_LOCAL)
    assert decided(needs=needs, state=replace(OPEN, has_key=False)) == ("local", Reason.NO_KEY)


def test_what_looks_private_stays_here_even_where_the_cloud_was_asked_for() -> None:
    private = Needs(private="IBAN")
    assert decided(needs=private) == ("local", Reason.SENSITIVE)
    assert decided(Wish(route="cloud"), private) == ("local", Reason.SENSITIVE)
    assert decided(needs=private, score=0.1) == ("local", Reason.BELOW_THRESHOLD)


def failing(route: str, reason: Reason, code: FailureCode, **more: object) -> Decision | None:
    decision = Decision("cloud" if route == "cloud" else "local", reason, 0.6, 0.5, "mf@1")
    routing = Routing.model_validate({"on_local_failure": more.pop("on_local_failure", "error")})
    state = replace(OPEN, **more)  # type: ignore[arg-type]
    return instead(decision, Failure(code, "it failed"), Wish(), PLAIN, state, routing)


@pytest.mark.parametrize("code", [code for code in FailureCode if code is not FailureCode.CONTEXT_LENGTH])
def test_a_local_failure_stays_here_by_default(code: FailureCode) -> None:
    assert failing("local", Reason.BELOW_THRESHOLD, code) is None


def test_a_local_failure_goes_up_only_where_the_settings_allow_it() -> None:
    up = failing("local", Reason.BELOW_THRESHOLD, FailureCode.UNAVAILABLE, on_local_failure="cloud")
    assert up
    assert (up.route, up.reason, up.degraded) == ("cloud", Reason.LOCAL_FAILED, True)
    for state in ({"privacy": True}, {"has_key": False}):
        code = FailureCode.UNAVAILABLE
        assert failing("local", Reason.BELOW_THRESHOLD, code, on_local_failure="cloud", **state) is None


def test_a_prompt_that_does_not_fit_goes_up_unless_it_was_to_stay() -> None:
    up = failing("local", Reason.BELOW_THRESHOLD, FailureCode.CONTEXT_LENGTH)
    assert up
    assert (up.route, up.reason) == ("cloud", Reason.CONTEXT_LENGTH)
    assert failing("local", Reason.BELOW_THRESHOLD, FailureCode.CONTEXT_LENGTH, privacy=True) is None
    stay = Decision("local", Reason.FORCED_LOCAL)
    assert instead(stay, Failure(FailureCode.CONTEXT_LENGTH, ""), Wish(route="local"), PLAIN, OPEN, Routing()) is None


@pytest.mark.parametrize(
    "code", [FailureCode.RATE_LIMITED, FailureCode.TIMEOUT, FailureCode.UPSTREAM, FailureCode.UNAVAILABLE]
)
def test_when_the_cloud_fails_the_local_model_answers_and_says_so(code: FailureCode) -> None:
    down = failing("cloud", Reason.ABOVE_THRESHOLD, code)
    assert down
    assert (down.route, down.reason, down.degraded) == ("local", Reason.CLOUD_FAILED, True)


@pytest.mark.parametrize("code", [FailureCode.BAD_REQUEST, FailureCode.CONTEXT_LENGTH])
def test_a_wrong_request_is_not_tried_on_the_other_model(code: FailureCode) -> None:
    assert failing("cloud", Reason.ABOVE_THRESHOLD, code) is None


def test_there_is_one_turn_and_no_way_back() -> None:
    turned = Decision("local", Reason.CLOUD_FAILED, degraded=True)
    assert (
        instead(turned, Failure(FailureCode.UNAVAILABLE, ""), Wish(), PLAIN, OPEN, Routing(on_local_failure="cloud"))
        is None
    )


def test_a_conversation_rises_fast_and_decays_slowly() -> None:
    assert conversation_score([0.1, 0.9]) == 0.9
    assert 0.4 < conversation_score([0.9, 0.1, 0.1]) < 0.9
    assert conversation_score([0.9, *[0.1] * 20]) == pytest.approx(0.1, abs=0.01)


def test_a_narrow_band_of_scores_decays_as_slowly_as_a_wide_one() -> None:
    wide = conversation_score([0.9, 0.1])
    narrow = conversation_score([0.68, 0.60])

    assert (narrow - 0.60) / 0.08 == pytest.approx((wide - 0.1) / 0.8)


def test_tools_that_only_a_provider_has_go_up_although_the_local_model_calls_functions() -> None:
    able = replace(OPEN, local_tools=True)

    assert decided(needs=Needs(tools=True), state=able, score=0.1) == ("local", Reason.BELOW_THRESHOLD)
    assert decided(needs=Needs(tools=True, foreign_tools=True), state=able, score=0.1) == ("cloud", Reason.TOOLS)


def test_a_conversation_with_tool_calls_stays_with_the_model_that_made_them() -> None:
    local, cloud = Needs(tools=True, begun="local"), Needs(tools=True, begun="cloud")
    tools = replace(OPEN, local_tools=True)
    assert decided(needs=local, state=tools, score=0.9) == ("local", Reason.CONVERSATION)
    assert decided(needs=cloud, state=tools, score=0.1) == ("cloud", Reason.CONVERSATION)
    assert decided(Wish(route="cloud"), local, tools) == ("cloud", Reason.FORCED_CLOUD)
    assert decided(needs=cloud, state=replace(tools, privacy=True)) == ("local", Reason.PRIVACY)
    assert decided(needs=replace(local, images=True), state=tools) == ("cloud", Reason.IMAGES)


def test_a_conversation_with_tool_calls_moves_when_its_model_fails() -> None:
    begun = Decision("cloud", Reason.CONVERSATION)
    moved = instead(begun, Failure(FailureCode.UPSTREAM, ""), Wish(), Needs(begun="cloud"), OPEN, Routing())
    assert moved
    assert (moved.route, moved.reason, moved.degraded) == ("local", Reason.CLOUD_FAILED, True)


@pytest.mark.parametrize("reason", [Reason.NO_ROUTER, Reason.NOT_JUDGED, Reason.NOT_CALIBRATED])
def test_a_prompt_without_a_score_stays_and_says_why(reason: Reason) -> None:
    decision = decide(Wish(), PLAIN, OPEN, None, 0.0, None, reason)
    assert (decision.route, decision.reason) == ("local", reason)
