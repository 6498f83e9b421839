"""Whether a failed try is worth another, and when: the one retry policy of the cloud side (the SDKs' own are off)."""

import random
from dataclasses import dataclass

from models.interface import Failure


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with jitter. Times are in seconds."""

    max_retries: int
    first_pause: float = 0.5
    longest_pause: float = 8.0
    patience: float = 5.0
    """The longest Retry-After that is waited for; beyond it the caller can do better than wait."""

    def pause(self, tries: int, failure: Failure, left: float) -> float | None:
        """Seconds to wait after `tries` failed tries, or None to give up; `left` is what the deadline still allows."""
        if tries > self.max_retries:
            return None
        # Less jitter than doubling, so that each pause is longer than the one before, as in the providers' own SDKs.
        pause = min(self.first_pause * 2 ** (tries - 1), self.longest_pause) * random.uniform(0.75, 1)  # noqa: S311
        if failure.retry_after is not None:
            if failure.retry_after > self.patience:
                return None
            # Jitter only ever adds: coming back before the time that the provider named is what it forbids.
            pause = failure.retry_after + random.uniform(0, 0.25)  # noqa: S311
        return pause if pause < left else None
