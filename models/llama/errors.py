"""What the engine's parts raise; nothing of it leaves the engine but as a `Failure` or a status."""

from models.interface import Failure, FailureCode


class RefusedError(ValueError):
    """A request cannot be answered; carries the `Failure` with which it ends."""

    def __init__(self, code: FailureCode, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.failure = Failure(code, message, retry_after)


class LoadError(Exception):
    """The model cannot be used; the message is one line for people."""
