"""A circuit breaker: a provider that keeps failing is left alone, and single requests find out when it is back."""

import random
import time
from collections.abc import Callable

from models.interface import Failure, FailureCode

_COUNTED = {FailureCode.UPSTREAM, FailureCode.UNAVAILABLE, FailureCode.TIMEOUT}


class Breaker:
    """Closed while all is well, open for a while after `threshold` failures in a row; then single requests probe.

    Every admitted request ends with exactly one of `succeeded`, `failed` and `abandoned`, some after `answered`. Times
    are in seconds.
    """

    def __init__(
        self,
        threshold: int = 5,
        rest: float = 5.0,
        longest_rest: float = 60.0,
        patience: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threshold = threshold
        self._first_rest = self._rest = rest
        self._longest_rest = longest_rest
        self._patience = patience
        self._clock = clock
        self._failures = 0
        self._open_until: float | None = None
        self._probing = False
        self._last: Failure | None = None

    def admit(self) -> Failure | None:
        """None: the request may go. Otherwise why it may not, with the time to come back."""
        refusal = self.refusal()
        if refusal is None and self._open_until is not None:
            self._probing = True
        return refusal

    def refusal(self) -> Failure | None:
        """What `admit` would answer, without admitting."""
        if self._open_until is None or self._last is None:
            return None
        left = self._open_until - self._clock()
        if left <= 0 and not self._probing:
            return None
        left = max(left, 1.0)
        limited = self._last.code is FailureCode.RATE_LIMITED
        why = "asked for a pause" if limited else f"failed {self._failures} times in a row"
        return Failure(
            FailureCode.RATE_LIMITED if limited else FailureCode.UNAVAILABLE,
            f"The cloud model {why}; it is asked again in {left:.0f} s. Last answer: {self._last.message}",
            retry_after=left,
        )

    def answered(self) -> None:
        """An answer has begun, and who waits for a probe need not wait for its end. Should it break off, the circuit
        opens again."""
        if self._probing:
            self._open_until = None
            self._probing = False
            self._failures = max(self._failures, self._threshold - 1)

    def succeeded(self) -> None:
        self._failures = 0
        self._rest = self._first_rest
        self._open_until = None
        self._probing = False

    def failed(self, failure: Failure) -> None:
        if failure.code is FailureCode.RATE_LIMITED:
            self._probing = False
            if (failure.retry_after or 0) > self._patience:
                self._open(failure, failure.retry_after or 0)
        elif failure.code in _COUNTED:
            if self._open_until is not None and not self._probing:
                # It was under way when the circuit opened, and no probe.
                return
            self._failures += 1
            if self._probing or self._failures >= self._threshold:
                # Jitter, or every client of a provider that came back would knock at the same moment.
                self._open(failure, self._rest * random.uniform(0.75, 1))  # noqa: S311
                self._rest = min(self._rest * 2, self._longest_rest)
        else:
            # A provider that finds fault with the request or the key is there and answers.
            self.succeeded()

    def abandoned(self) -> None:
        """The caller went away before anything was learnt."""
        self._probing = False

    def _open(self, failure: Failure, seconds: float) -> None:
        self._last = failure
        self._open_until = self._clock() + seconds
        self._probing = False
