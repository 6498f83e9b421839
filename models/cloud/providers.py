"""What any-llm needs to reach a provider: a connection made from the settings alone, and a request in its terms."""

import json
import os
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import httpx2
from any_llm import AnyLLM
from any_llm.providers.anthropic.base import BaseAnthropicProvider
from any_llm.providers.openai.base import BaseOpenAIProvider

from models.cloud.http import KEEP_ALIVE, SOCKET_OPTIONS, Http
from models.cloud.settings import CloudSettings
from models.cloud.tool_names import shortened
from models.interface import ChatRequest

_OPENAI = "https://api.openai.com/v1"
_ANTHROPIC = "https://api.anthropic.com"
_ENVIRONMENT = ("OPENAI_", "ANTHROPIC_", "ANY_LLM_")

_ANTHROPIC_NAMED = (
    "temperature", "top_p", "stop", "n", "tools", "tool_choice", "parallel_tool_calls", "response_format",
    "reasoning_effort",
)  # fmt: skip
_OPENAI_ONLY = {
    "presence_penalty", "frequency_penalty", "seed", "logit_bias", "logprobs", "top_logprobs", "min_p",
    "user", "store", "metadata", "modalities", "audio", "prediction", "service_tier", "prompt_cache_key",
    "prompt_cache_retention", "safety_identifier", "verbosity", "web_search_options", "stream_options",
    "max_completion_tokens",
}  # fmt: skip
"""Anthropic refuses a body with any of these. Its own compatibility endpoint ignores them, and so do we."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A way to one provider, with connections to reuse, that takes nothing from the environment."""

    provider: AnyLLM
    """Knows the provider; asks it where a request has to be translated."""
    http: Http
    """Asks it in its own format."""

    @property
    def client(self) -> Any:
        """The SDK's."""
        # Every provider that `connect` accepts keeps it here; any-llm itself cannot close one.
        return self.provider.client  # type: ignore[attr-defined]

    async def close(self) -> None:
        await self.client.close()
        await self.http.close()


def connect(settings: CloudSettings, key: str) -> Connection:
    """Needs a running event loop.

    Raises ValueError for a provider that is unknown or speaks neither chat format, OSError for a bad `ca_bundle`.
    """
    for name in [name for name in os.environ if name.startswith(_ENVIRONMENT)]:
        # The SDKs would take keys, addresses, extra headers and body logging from here.
        del os.environ[name]
    try:
        provider = AnyLLM.get_provider_class(settings.provider)
    except Exception as error:
        raise ValueError(f"Cloud model {settings.name} names an unknown provider: {settings.provider}.") from error
    # Each SDK takes clients of its own branch of httpx. Their ready-made clients would do, but for the proxies that
    # Anthropic's reads from the environment even where told not to.
    if issubclass(provider, BaseAnthropicProvider):
        http: ModuleType = httpx
        base_url = settings.base_url or _ANTHROPIC
    elif issubclass(provider, BaseOpenAIProvider):
        http = httpx2
        base_url = settings.base_url or provider.API_BASE or ""
    else:
        raise ValueError(f"Provider {settings.provider} speaks neither OpenAI's nor Anthropic's chat format.")
    if not base_url:
        raise ValueError(f"Cloud model {settings.name} needs a base_url.")
    tls = httpx.create_ssl_context(trust_env=False)
    # Beside what comes with httpx, what this machine trusts: a house's own authority.
    tls.load_default_certs()
    if settings.ca_bundle:
        tls = ssl.create_default_context(cafile=settings.ca_bundle)
    client = http.AsyncClient(
        trust_env=False,
        # A redirect would carry Anthropic's key header along to another host.
        follow_redirects=False,
        transport=http.AsyncHTTPTransport(
            limits=http.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=KEEP_ALIVE),
            proxy=settings.proxy,
            verify=tls,
            trust_env=False,
            socket_options=SOCKET_OPTIONS,
        ),
    )
    made = AnyLLM.create(
        settings.provider,
        api_key=key,
        api_base=base_url,
        unified_exceptions=True,
        max_retries=0,
        http_client=client,
        timeout=http.Timeout(None, connect=settings.connect_timeout),
    )
    return Connection(made, Http(settings, tls))


def arguments(settings: CloudSettings, request: ChatRequest, provider: AnyLLM) -> dict[str, Any]:
    """`request` as the keyword arguments of `AnyLLM.acompletion`. Raises ValueError for what cannot be said in it."""
    fields = _fields(settings, request)
    if isinstance(provider, BaseAnthropicProvider):
        return _anthropic(settings, request, fields)
    if request.verbatim is not None:
        fields = _without_anthropics_tools(fields)
    options = {**(fields.get("stream_options") or {}), "include_usage": True}
    body = {**fields, "messages": list(request.messages), "stream_options": options}
    # What is in extra_body goes out as it is and goes first: any-llm renames some of the fields that it knows and drops
    # others, and the SDK walks through every message. They only want to see that there is one.
    return {"model": settings.model, "messages": [{}], "stream": True, "extra_body": shortened(body)}


def _fields(settings: CloudSettings, request: ChatRequest) -> dict[str, Any]:
    own = (
        settings.provider == "openai" and urlsplit(settings.base_url or _OPENAI).hostname == urlsplit(_OPENAI).hostname
    )
    said = {
        settings.max_tokens_field or ("max_completion_tokens" if own else "max_tokens"): request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "min_p": request.min_p,
        "top_k": request.top_k,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "seed": request.seed,
        "stop": list(request.stop) or None,
        "n": request.n if request.n > 1 else None,
        "logit_bias": request.logit_bias,
        "logprobs": request.logprobs or None,
        "top_logprobs": request.top_logprobs or None,
        "tools": list(request.tools) or None,
        "tool_choice": request.tool_choice,
        "response_format": request.response_format,
    }
    fields = {**settings.defaults, **{name: value for name, value in said.items() if value is not None}}
    # No field that passes unread lifts what the answer was weighed by.
    weighed = {"n"} if request.max_tokens is None else {"n", "max_tokens", "max_completion_tokens"}
    fields.update({name: value for name, value in request.extra.items() if name not in weighed})
    return {name: value for name, value in fields.items() if name not in settings.unsupported}


def _without_anthropics_tools(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` as a provider takes them that would refuse the tools which Anthropic itself defines."""
    tools = [tool for tool in fields.get("tools") or () if tool.get("type") == "function"]
    names = [tool["function"]["name"] for tool in tools]
    kept = {name: value for name, value in fields.items() if name not in _ABOUT_TOOLS}
    if not tools:
        return kept
    kept |= {name: fields[name] for name in _ABOUT_TOOLS if name in fields} | {"tools": tools}
    match fields.get("tool_choice"):
        case {"function": {"name": name}} if name not in names:
            kept["tool_choice"] = "auto"
    return kept


_ABOUT_TOOLS = ("tools", "tool_choice", "parallel_tool_calls")


def _anthropic(settings: CloudSettings, request: ChatRequest, fields: Mapping[str, Any]) -> dict[str, Any]:
    named = {name: fields[name] for name in _ANTHROPIC_NAMED if name in fields}
    messages = request.messages
    match named.get("response_format"):
        case {"type": "text"}:
            del named["response_format"]
        case {"type": "json_schema", "json_schema": {"schema": Mapping()}}:
            pass
        case {"type": "json_object" | "json_schema"}:
            del named["response_format"]
            messages = [*messages, {"role": "system", "content": _JSON_IN_WORDS}]
    limit = fields.get("max_tokens") or fields.get("max_completion_tokens") or settings.max_tokens
    left = {*fields} - {*named, "max_tokens", "response_format"} - _OPENAI_ONLY
    body = {name: fields[name] for name in fields if name in left}
    user = fields.get("user") or (fields.get("metadata") or {}).get("user_id")
    if user:
        body["metadata"] = {"user_id": user}
    return {
        "model": settings.model,
        "messages": _anthropic_messages(messages),
        "stream": True,
        "max_tokens": limit,
        **named,
        **({"extra_body": body} if body else {}),
    }


_JSON_IN_WORDS = "Answer with one JSON object and nothing else, without a block of code around it."
"""Anthropic takes a schema, and has no word for JSON of any shape."""


def _anthropic_messages(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """OpenAI messages with what any-llm's translation to Anthropic would lose or refuse put in words that it knows."""
    system: list[dict[str, Any]] = []
    rest: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] in ("system", "developer"):
            system += _parts(message["content"])
            continue
        message = dict(message)
        if isinstance(message.get("content"), list):
            message["content"] = [_with_addresses(part) for part in message["content"]]
        if message.get("tool_calls"):
            message["content"] = "".join(part.get("text", "") for part in _parts(message.get("content")))
            message["tool_calls"] = [_with_arguments(call) for call in message["tool_calls"]]
        else:
            message.pop("tool_calls", None)
        rest.append(message)
    if len(system) == 1 and system[0].keys() == {"type", "text"}:
        return [{"role": "system", "content": system[0]["text"]}, *rest]
    return [{"role": "system", "content": system}, *rest] if system else rest


def _parts(content: str | Iterable[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [dict(part) for part in content or ()]


def _with_addresses(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """A picture's address as OpenAI has it, which other providers of its format take without the object around."""
    image, file = part.get("image_url"), part.get("file")
    if isinstance(image, str):
        image = {"url": image}
        part = {**part, "image_url": image}
    for holder, name in ((image, "url"), (file, "file_data")):
        if holder is None:
            continue
        data = holder.get(name) if isinstance(holder, Mapping) else None
        if not isinstance(data, str | None):
            raise ValueError(f"A part of the messages has a {name} that is no string.")
        if data and data.startswith("data:") and ";base64," not in data:
            raise ValueError("A data URL in the messages is not in base64.")
    return part


def _with_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(call.get("function"), Mapping):
        raise ValueError(
            f"Tool call {call.get('id')} in the history is no function's, and this provider has no others."
        )
    function = dict(cast("Mapping[str, Any]", call["function"]))
    function["arguments"] = function.get("arguments") or "{}"
    try:
        json.loads(function["arguments"])
    except ValueError:
        raise ValueError(f"The arguments of tool call {call.get('id')} in the history are not JSON.") from None
    return {**call, "function": function}
