"""What a request can come to at a provider: tokens, whatever tokenizer counts them, and more than tokens."""

from collections.abc import Mapping
from typing import Any, Final

from models.interface import ChatRequest

_TOKENS_PER_MESSAGE: Final = 16
_BYTES_PER_TOKEN: Final = 4
"""What OpenAI says of English text (https://platform.openai.com/tokenizer)."""
_TOKENS_PER_IMAGE: Final = 6000
"""Above what either provider charges for the largest image that it does not scale down."""
_AT_LIST_PRICE: Final = {
    "service_tier": ("auto", "default", "flex", "standard_only"),
    "speed": ("standard",),
    "inference_geo": ("global",),
}
"""Values of fields, of which others cost more; the first is the provider's own default."""
_RUN_BY_CLIENTS: Final = ("function", "custom", "bash_", "computer_", "memory_", "text_editor_")
"""Types of tools, or what Anthropic's begin with, that cost no more than their tokens."""


def most_tokens(request: ChatRequest) -> int:
    """An upper bound of the prompt's tokens: no token is shorter than a byte."""
    said = sum(_most(part) for part in (request.messages, request.tools, request.response_format, request.extra))
    return max(said, _most(request.verbatim.body)) if request.verbatim else said


def likely_tokens(request: ChatRequest) -> int:
    """What the prompt's tokens come to about, in English or a program."""
    return -(-most_tokens(request) // _BYTES_PER_TOKEN)


def most_predicted(request: ChatRequest) -> int:
    """An upper bound of the tokens of a `prediction`, which OpenAI bills as answer where the answer differs from it."""
    return _most(request.extra.get("prediction"))


def runs_tools(request: ChatRequest) -> bool:
    """Whether the provider may run tools of its own for it, such as web search, which it charges for beside tokens."""
    offered = [*request.tools, *(request.verbatim.body.get("tools") or () if request.verbatim else ())]
    kinds = (str(tool.get("type") or "function") for tool in offered)
    # One of a kind that is not known here may be charged for.
    return "web_search_options" in request.extra or any(not kind.startswith(_RUN_BY_CLIENTS) for kind in kinds)


def unpriced(request: ChatRequest, defaults: Mapping[str, Any]) -> bool:
    """Whether it may cost more than its tokens at the list price, with what the settings' `defaults` add to it: in a
    dearer tier or place, spoken, or for a document that it only points at."""
    said = {**defaults, **request.extra, **(request.verbatim.body if request.verbatim else {})}
    return (
        any((said.get(name) or usual[0]) not in usual for name, usual in _AT_LIST_PRICE.items())
        or "audio" in (said.get("modalities") or ())
        or any(_points_at_more(message) for message in (*request.messages, *(said.get("messages") or ())))
    )


def _points_at_more(value: Any) -> bool:
    """Whether a document is in it that only the provider can weigh: at an address, or kept there."""
    match value:
        case {"type": "document", "source": {"type": "url" | "file"}}:
            return True
        case {"type": "file", "file": {"file_id": str()}} | {"type": "container_upload"}:
            return True
        case Mapping():
            return _points_at_more(value.get("content"))
        case list() | tuple():
            return any(_points_at_more(inner) for inner in value)
    return False


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
