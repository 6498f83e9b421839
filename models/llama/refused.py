"""The one way in which a request that cannot be answered leaves the code that prepares or runs it."""

from models.interface import Failure, FailureCode


class RefusedError(Exception):
    """Carries the `Failure` with which the request ends."""

    def __init__(self, code: FailureCode, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.failure = Failure(code, message, retry_after)
