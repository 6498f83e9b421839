"""When the cloud is asked again, and when it is left alone."""

from itertools import pairwise

import pytest

from models.cloud.breaker import Breaker
from models.cloud.retry import RetryPolicy
from models.interface import Failure, FailureCode

DOWN = Failure(FailureCode.UPSTREAM, "The provider failed.")
LONG = 1000.0


def limited(seconds: float | None) -> Failure:
    return Failure(FailureCode.RATE_LIMITED, "Slow down.", retry_after=seconds)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(threshold=3, rest=4.0, longest_rest=10.0, patience=5.0, clock=clock)


def fail(breaker: Breaker, times: int = 3, failure: Failure = DOWN) -> None:
    for _ in range(times):
        assert breaker.admit() is None
        breaker.failed(failure)


def test_pauses_grow_and_differ_so_that_clients_do_not_come_back_together() -> None:
    policy = RetryPolicy(max_retries=9, first_pause=1.0, longest_pause=8.0)
    pauses = [[policy.pause(tries, DOWN, LONG) or 0 for _ in range(50)] for tries in range(1, 7)]
    for tries, drawn in enumerate(pauses, start=1):
        longest = min(2 ** (tries - 1), 8)
        assert longest * 0.75 <= min(drawn) < max(drawn) <= longest


def test_every_pause_below_the_longest_is_longer_than_the_one_before() -> None:
    policy = RetryPolicy(max_retries=9, first_pause=1.0, longest_pause=8.0)
    for _ in range(50):
        pauses = [policy.pause(tries, DOWN, LONG) or 0 for tries in range(1, 5)]
        assert all(later > 1.4 * earlier for earlier, later in pairwise(pauses))


def test_retries_end_at_the_configured_number() -> None:
    policy = RetryPolicy(max_retries=2)
    assert [policy.pause(tries, DOWN, LONG) is None for tries in (1, 2, 3)] == [False, False, True]
    assert RetryPolicy(max_retries=0).pause(1, DOWN, LONG) is None


def test_a_short_retry_after_is_waited_for_and_never_undercut() -> None:
    policy = RetryPolicy(max_retries=2)
    assert all(2.0 <= (policy.pause(1, limited(2.0), LONG) or 0) < 3.0 for _ in range(50))


def test_a_long_retry_after_is_left_to_the_caller() -> None:
    assert RetryPolicy(max_retries=2, patience=5.0).pause(1, limited(6.0), LONG) is None


def test_no_retry_starts_that_the_deadline_would_cut() -> None:
    assert RetryPolicy(max_retries=2).pause(1, limited(2.0), left=1.5) is None


def test_a_provider_that_fails_in_a_row_is_left_alone_for_a_while(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    refusal = breaker.admit()
    assert refusal is not None
    assert refusal.code is FailureCode.UNAVAILABLE
    assert refusal.retry_after == pytest.approx(4.0, rel=0.26)
    assert "3 times" in refusal.message


def test_a_success_in_between_keeps_the_circuit_closed(breaker: Breaker) -> None:
    fail(breaker, 2)
    assert breaker.admit() is None
    breaker.succeeded()
    fail(breaker, 2)
    assert breaker.admit() is None


@pytest.mark.parametrize("code", [FailureCode.BAD_REQUEST, FailureCode.AUTHENTICATION, FailureCode.CONTEXT_LENGTH])
def test_a_provider_that_answers_with_a_refusal_is_up(breaker: Breaker, code: FailureCode) -> None:
    fail(breaker, 10, Failure(code, "No."))
    assert breaker.admit() is None


def test_one_request_at_a_time_finds_out_whether_it_is_back(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    clock.now += 4.0
    assert breaker.admit() is None
    assert breaker.admit() is not None
    breaker.succeeded()
    assert breaker.admit() is None
    assert breaker.admit() is None


def test_a_failed_probe_opens_the_circuit_for_longer_up_to_a_limit(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    rests = []
    for _ in range(4):
        clock.now += 10.0
        assert breaker.admit() is None
        breaker.failed(DOWN)
        refusal = breaker.refusal()
        assert refusal is not None
        rests.append(refusal.retry_after or 0)
    assert rests[0] > 4.0
    assert max(rests) <= 10.0


def test_a_probe_whose_client_left_does_not_block_the_next(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    clock.now += 4.0
    assert breaker.admit() is None
    breaker.abandoned()
    assert breaker.admit() is None


def test_a_long_pause_that_the_provider_asks_for_is_kept_at_once(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 1, limited(30.0))
    refusal = breaker.admit()
    assert refusal is not None
    assert (refusal.code, refusal.retry_after) == (FailureCode.RATE_LIMITED, 30.0)
    clock.now += 30.0
    assert breaker.admit() is None


def test_a_short_pause_that_the_provider_asks_for_opens_nothing(breaker: Breaker) -> None:
    fail(breaker, 10, limited(1.0))
    assert breaker.admit() is None


def test_looking_at_the_circuit_admits_nobody(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    assert breaker.refusal() is not None
    clock.now += 4.0
    assert breaker.refusal() is None
    assert breaker.admit() is None


def test_answers_that_break_off_after_the_circuit_opened_do_not_lengthen_its_rest(
    breaker: Breaker, clock: Clock
) -> None:
    for _ in range(10):
        assert breaker.admit() is None
    for _ in range(10):
        breaker.failed(DOWN)
    clock.now += 4.0
    assert breaker.admit() is None


def test_others_go_on_as_soon_as_the_answer_to_a_probe_has_begun(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    clock.now += 4.0
    assert breaker.admit() is None
    assert breaker.admit() is not None
    breaker.answered()
    assert breaker.admit() is None


@pytest.mark.parametrize(("times", "failure"), [(3, DOWN), (1, limited(30.0))])
def test_a_probe_whose_answer_breaks_off_opens_the_circuit_again(
    breaker: Breaker, clock: Clock, times: int, failure: Failure
) -> None:
    fail(breaker, times, failure)
    clock.now += 30.0
    assert breaker.admit() is None
    breaker.answered()
    breaker.failed(DOWN)
    assert breaker.admit() is not None
