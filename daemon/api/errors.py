"""An error on its way to a client; each wire format renders it as its own error object."""

import math
from collections.abc import Mapping

from models.interface import Failure, FailureCode

STATUS: dict[FailureCode, int] = {
    FailureCode.BAD_REQUEST: 400,
    FailureCode.CONTEXT_LENGTH: 400,
    FailureCode.BUSY: 503,
    FailureCode.UNAVAILABLE: 503,
    FailureCode.NO_KEY: 503,
    FailureCode.AUTHENTICATION: 502,
    FailureCode.RATE_LIMITED: 429,
    FailureCode.TIMEOUT: 504,
    FailureCode.UPSTREAM: 502,
}


class ApiError(Exception):
    """An answer other than the one asked for. `message` is one line for people and may be shown as it is."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        """The field of the request that is wrong."""
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(math.ceil(retry_after))

    @classmethod
    def of(cls, failure: Failure, headers: Mapping[str, str] | None = None) -> "ApiError":
        status, retry_after = STATUS[failure.code], failure.retry_after
        return cls(status, failure.message, code=failure.code, retry_after=retry_after, headers=headers)
