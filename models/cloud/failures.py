"""What went wrong with a provider, in upcall's terms and in words that quote neither the key nor the prompt."""

import re
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import httpx2
import openai
from any_llm.exceptions import AnyLLMError

from models.cloud.http import AnsweredError
from models.cloud.settings import CloudSettings
from models.data_url import is_data_url
from models.interface import ChatRequest, Failure, FailureCode

_TIMEOUTS = (TimeoutError, httpx2.TimeoutException, openai.APITimeoutError)
_CONNECTS = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError, aiohttp.ClientConnectorError,
             aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)  # fmt: skip
_TRANSPORT = (httpx2.TransportError, openai.APIConnectionError, aiohttp.ClientError)
_API_ERRORS = (openai.APIError, AnsweredError)

# Providers also report errors inside a stream that began with status 200; then only their type tells.
_STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "overloaded_error": 529,
}
_CONTEXT = re.compile(r"context.{0,12}(length|window|size|limit)|prompt is too long|input is too long", re.IGNORECASE)
_NO_CREDIT = re.compile(r"insufficient_quota|billing|credit balance", re.IGNORECASE)
_SHORTEST_QUOTE = 12
_LONGEST_REASON = 300
_MOST_SEARCHED = 2_000_000
"""Characters of prompt; beyond, looking for quotes would hold up other answers, and the reason is left out."""


class CloudError(Exception):
    """A try at the provider that ended without (the rest of) an answer."""

    def __init__(self, failure: Failure, retry: bool = False, charged: bool = False) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.retry = retry
        """Another try may help and cannot repeat an answer that has begun."""
        self.charged = charged
        """The provider got the request and may charge for it. For an error that it answers with, none does."""


class UnaskableError(ValueError):
    """A request that a provider's format has no words for; the message ends "cannot be asked this: "."""


@dataclass(frozen=True, slots=True)
class Told:
    """What an error says of itself, whichever SDK raised it."""

    status: int
    kind: str
    message: str
    retry_after: float | None


def explain(error: Exception, settings: CloudSettings, request: ChatRequest, *, begun: bool = False) -> CloudError:
    """`error` as a failure for people and a verdict on retrying; `begun` says that part of the answer has come."""
    name = settings.name
    if isinstance(error, AnyLLMError) and error.original_exception is not None:
        # any-llm guesses a class from the words of the message; the SDK's own error has the status and the headers.
        error = error.original_exception
    chain = list(_chain(error))
    # The innermost: aiohttp's own is one, too, and knows less.
    tls = next((link for link in reversed(chain) if isinstance(link, ssl.SSLError)), None)
    if tls is not None:
        why = getattr(tls, "verify_message", "") or tls.reason or "the TLS handshake failed"
        return CloudError(Failure(FailureCode.UNAVAILABLE, (
            f"No trusted connection to {name}: {why}; check base_url and ca_bundle, and who else answers there."
        )))  # fmt: skip
    if isinstance(error, _TIMEOUTS):
        connecting = any(isinstance(link, _CONNECTS) for link in chain)
        where = f"did not accept a connection within {settings.connect_timeout:g} s" if connecting else "timed out"
        failure = Failure(FailureCode.TIMEOUT, f"{name} {where}; check the network and base_url.")
        return CloudError(failure, retry=connecting, charged=not connecting)
    if isinstance(error, _TRANSPORT):
        if begun:
            return CloudError(broke_off(settings))
        connected = not any(isinstance(link, _CONNECTS) for link in chain)
        if not connected:
            reason = next((link.strerror for link in chain if isinstance(link, OSError) and link.strerror), "")
            message = f"{name} cannot be reached{f' ({reason})' if reason else ''}; check the network and base_url."
        else:
            message = f"{name} closed the connection without an answer; try again."
        return CloudError(Failure(FailureCode.UNAVAILABLE, message), retry=True, charged=connected)
    if isinstance(error, _API_ERRORS):
        return _from_status(_told(error), settings, request)
    if isinstance(error, UnaskableError):
        return CloudError(Failure(FailureCode.BAD_REQUEST, f"{name} cannot be asked this: {error}"))
    if isinstance(error, (AnyLLMError, ValueError)) and not _is_decoding(error):
        reason = _reason(str(error), request)
        return CloudError(Failure(FailureCode.BAD_REQUEST, f"{name} cannot be asked this{reason}"))
    failure = Failure(FailureCode.UPSTREAM, f"{name} answered with something that is no chat completion.")
    return CloudError(failure, charged=True)


def broke_off(settings: CloudSettings) -> Failure:
    """An answer that stopped in the middle, however politely the stream was closed."""
    return Failure(FailureCode.UPSTREAM, f"{settings.name} broke off before the end of its answer; try again.")


def _from_status(told: Told, settings: CloudSettings, request: ChatRequest) -> CloudError:
    name, status = settings.name, told.status
    reason = _reason(told.message, request)
    about = f"{told.kind} {told.message}"
    if _NO_CREDIT.search(about) and status in (400, 402, 403, 429):
        return CloudError(
            Failure(FailureCode.RATE_LIMITED, f"The account at {name} has no credit left; add some there.")
        )
    if status in (401, 403):
        command = f"set another with `upcall key set {settings.key_name}`" if settings.key_name else "set a key_name"
        return CloudError(
            Failure(FailureCode.AUTHENTICATION, f"{name} refused the API key (HTTP {status}); {command}.")
        )
    if status == 429:
        when = f"{told.retry_after:.0f} s" if told.retry_after is not None else "a moment"
        return CloudError(
            Failure(FailureCode.RATE_LIMITED, f"{name} asks to slow down; try again in {when}.", told.retry_after), True
        )
    if status == 404:
        return CloudError(Failure(FailureCode.UNAVAILABLE, (
            f"{name} has no model {settings.model} at this address (HTTP 404); it may have been retired: "
            f"set another model id or base_url{reason}"
        )))  # fmt: skip
    if status == 408:
        return CloudError(
            Failure(FailureCode.TIMEOUT, f"{name} gave up waiting (HTTP 408); try again.", told.retry_after), True, True
        )
    if 400 <= status < 500:
        if _CONTEXT.search(about):
            message = (
                f"Prompt and answer do not fit the context of {name}; send less or ask for a shorter answer{reason}"
            )
            return CloudError(Failure(FailureCode.CONTEXT_LENGTH, message))
        return CloudError(Failure(FailureCode.BAD_REQUEST, f"{name} refused the request (HTTP {status}){reason}"))
    if 300 <= status < 400:
        return CloudError(Failure(FailureCode.UNAVAILABLE, f"{name} has moved (HTTP {status}); correct its base_url."))
    code = f"HTTP {status}" if status >= 500 else told.kind or "no reason given"
    return CloudError(
        Failure(FailureCode.UPSTREAM, f"{name} failed ({code}); try again later.", told.retry_after),
        retry=True,
        # A gateway before the provider gave up on an answer that the provider may still have made.
        charged=status == 504,
    )


def _told(error: openai.APIError | AnsweredError) -> Told:
    body: Any = error.body
    if isinstance(body, Mapping) and isinstance(body.get("error"), Mapping):
        body = body["error"]
    if not isinstance(body, Mapping):
        body = {}
    kinds = [str(body[key]) for key in ("code", "type") if body.get(key)]
    status, headers = 0, dict[str, str]()
    if isinstance(error, AnsweredError):
        status, headers = error.status, {**error.headers}
    elif isinstance(error, openai.APIStatusError):
        status, headers = error.status_code, {**error.response.headers}
    if status < 300:
        status = next((_STATUS_OF_TYPE[kind] for kind in kinds if kind in _STATUS_OF_TYPE), 0)
    return Told(status, " ".join(kinds), str(body.get("message") or ""), _retry_after(headers))


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds; the header holds them, or a date (RFC 9110, 10.2.3)."""
    value = next((value for name, value in headers.items() if name.lower() == "retry-after"), None)
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _reason(message: str, request: ChatRequest) -> str:
    """The provider's own words as the end of a sentence, or a full stop where they quote the prompt."""
    message = " ".join(message.split())[:_LONGEST_REASON]
    if not message or _quotes(message, request):
        return "."
    return f": {message}"


def _quotes(message: str, request: ChatRequest) -> bool:
    texts = [text for text in _texts([*request.messages, request.tools, request.extra]) if not is_data_url(text)]
    if sum(map(len, texts)) > _MOST_SEARCHED:
        return True
    for text in texts:
        text = " ".join(text.split())
        size = min(_SHORTEST_QUOTE, len(text))
        if size and any(message[i : i + size] in text for i in range(len(message) - size + 1)):
            return True
    return False


def _texts(value: Any) -> Iterator[str]:
    """Every string that a client wrote, which leaves out the words of the format itself."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in ("role", "type"):
                yield from _texts(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _texts(inner)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_decoding(error: Exception) -> bool:
    # JSON's and pydantic's errors are ValueErrors too, but speak of what the provider sent.
    return type(error).__name__ in ("JSONDecodeError", "ValidationError", "UnicodeDecodeError")
