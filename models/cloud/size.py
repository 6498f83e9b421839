"""How many tokens a prompt can come to at most, whatever tokenizer counts them."""

from collections.abc import Mapping
from typing import Any, Final

from models.interface import ChatRequest

_TOKENS_PER_MESSAGE: Final = 16
_TOKENS_PER_IMAGE: Final = 6000
"""Above what either provider charges for the largest image that it does not scale down."""


def most_tokens(request: ChatRequest) -> int:
    """An upper bound of the prompt's tokens: no token is shorter than a byte. English text has about four in each."""
    said = sum(_most(part) for part in (request.messages, request.tools, request.response_format, request.extra))
    return max(said, _most(request.verbatim.body)) if request.verbatim else said


def most_predicted(request: ChatRequest) -> int:
    """An upper bound of the tokens of a `prediction`, which OpenAI bills as answer where the answer differs from it."""
    return _most(request.extra.get("prediction"))


def _most(value: Any) -> int:
    if isinstance(value, Mapping):
        if value.get("type") in ("image_url", "image"):
            return _TOKENS_PER_IMAGE
        return _TOKENS_PER_MESSAGE + sum(_most(key) + _most(inner) for key, inner in value.items())
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    if isinstance(value, (list, tuple)):
        return sum(_most(inner) for inner in value)
    return 0 if value is None else len(str(value))
