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
from any_llm.exceptions import AnyLLMError
from any_llm.providers.anthropic.base import BaseAnthropicProvider
from any_llm.providers.openai.base import BaseOpenAIProvider
from any_llm.types.completion import CompletionParams
from pydantic import ValidationError

from models.cloud.failures import UnaskableError
from models.cloud.http import KEEP_ALIVE, SOCKET_OPTIONS, Http
from models.cloud.settings import CloudSettings
from models.cloud.tool_names import shortened
from models.interface import ChatRequest

_OPENAI = "https://api.openai.com/v1"
_ANTHROPIC = "https://api.anthropic.com"
_ENVIRONMENT = ("OPENAI_", "ANTHROPIC_", "ANY_LLM_")

_GEMINI = "generativelanguage.googleapis.com"
_UNSIGNED: Mapping[str, Any] = {"extra_content": {"google": {"thought_signature": "skip_thought_signature_validator"}}}
"""In the place of a signature that is lost (https://ai.google.dev/gemini-api/docs/thought-signatures#faqs)."""

_TO_ANTHROPIC = (
    "temperature", "top_p", "stop", "tools", "tool_choice", "parallel_tool_calls", "response_format",
    "reasoning_effort",
)  # fmt: skip
"""Fields that any-llm puts in Anthropic's words."""
_ANTHROPICS_OWN = {
    "top_k", "thinking", "cache_control", "container", "context_management", "mcp_servers", "output_config", "speed",
    "inference_geo",
}  # fmt: skip
"""Anthropic refuses a body with any other. Its own compatibility endpoint ignores OpenAI's, and so do we."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A way to one provider, with connections to reuse, that takes nothing from the environment."""

    provider: AnyLLM
    """Knows the provider; translates requests to Anthropic, and asks those whose answers have to be translated."""
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

    Raises ValueError for a provider that is unknown, lacks a library or speaks neither chat format, OSError for a bad
    `ca_bundle`.
    """
    for name in [name for name in os.environ if name.startswith(_ENVIRONMENT)]:
        # The SDKs would take keys, addresses, extra headers and body logging from here.
        del os.environ[name]
    try:
        provider = AnyLLM.get_provider_class(settings.provider)
    except Exception as error:
        raise ValueError(f"Cloud model {settings.name} names an unknown provider: {settings.provider}.") from error
    name = settings.provider
    # Each SDK takes clients of its own branch of httpx. Their ready-made clients would do, but for the proxies that
    # Anthropic's reads from the environment even where told not to.
    if issubclass(provider, BaseAnthropicProvider):
        http: ModuleType = httpx
        base_url = settings.base_url or _ANTHROPIC
    elif issubclass(provider, BaseOpenAIProvider):
        http = httpx2
        base_url = settings.base_url or provider.API_BASE or ""
        if provider.SUPPORTS_MESSAGES_NATIVE:
            # DeepSeek's and Meta's have a client of Anthropic's SDK, too, and give it the same httpx, which it refuses.
            name = "openai"
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
    try:
        made = AnyLLM.create(
            name,
            api_key=key,
            api_base=base_url,
            unified_exceptions=True,
            max_retries=0,
            http_client=client,
            timeout=http.Timeout(None, connect=settings.connect_timeout),
        )
    except (AnyLLMError, ImportError) as error:
        message = f"provider {settings.provider} cannot be used here ({' '.join(str(error).split())}); where it speaks"
        raise ValueError(f'{message} OpenAI\'s format, set provider = "openai" and its base_url.') from None
    return Connection(made, Http(settings, tls))


def arguments(settings: CloudSettings, request: ChatRequest) -> dict[str, Any]:
    """`request` as the keyword arguments of `AnyLLM.acompletion`, for a provider of OpenAI's format."""
    fields = _fields(settings, request)
    if request.verbatim is not None:
        fields = _without_anthropics_tools(fields)
    body = {**fields, "messages": list(request.messages)}
    if "stream_options" not in settings.unsupported:
        body["stream_options"] = {**(fields.get("stream_options") or {}), "include_usage": True}
    # Those before the third ask for no signature.
    if urlsplit(settings.base_url or "").hostname == _GEMINI and "gemini-2" not in settings.model:
        body["messages"] = [_signed(message) for message in body["messages"]]
    # What is in extra_body goes out as it is and goes first: any-llm renames some of the fields that it knows and drops
    # others, and the SDK walks through every message. They only want to see that there is one.
    return {"model": settings.model, "messages": [{}], "stream": True, "extra_body": shortened(body)}


def _signed(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """`message` as Gemini takes it, which wants to see a signature of its own at the first of the calls in each."""
    match message:
        case {"tool_calls": [{"extra_content": {"google": {"thought_signature": str()}}}, *_]}:
            return message
        case {"tool_calls": [Mapping() as first, *others]}:
            return {**message, "tool_calls": [{**first, **_UNSIGNED}, *others]}
    return message


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
    passed_over = {"n"} if request.max_tokens is None else {"n", "max_tokens", "max_completion_tokens"}
    passed_over |= {name for name in settings.defaults if name in request.extra and request.extra[name] is None}
    # OpenAI takes functions with an effort in the format of Responses alone, in whose place this is asked.
    if own and request.tools and not request.beside and settings.defaults.get("reasoning_effort") == "none":
        passed_over.add("reasoning_effort")
    fields.update({name: value for name, value in request.extra.items() if name not in passed_over})
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


def translated(settings: CloudSettings, request: ChatRequest, provider: BaseAnthropicProvider) -> dict[str, Any]:
    """`request` as the body of one to Anthropic. Raises ValueError or AnyLLMError for what cannot be said in it."""
    fields = _fields(settings, request)
    named = {name: fields[name] for name in _TO_ANTHROPIC if name in fields}
    messages = request.messages
    match named.get("response_format"):
        case {"type": "text"}:
            del named["response_format"]
        case {"type": "json_schema", "json_schema": {"schema": Mapping()}}:
            pass
        case {"type": "json_object" | "json_schema"}:
            del named["response_format"]
            messages = [*messages, {"role": "system", "content": _JSON_IN_WORDS}]
    if "temperature" in named:
        named["temperature"] = min(named["temperature"], _HIGHEST_TEMPERATURE)
    stop = named.pop("stop", ())
    if stop := [text for text in ([stop] if isinstance(stop, str) else stop) if text.strip()]:
        named["stop"] = stop
    try:
        params = CompletionParams(
            model_id=settings.model,
            messages=_anthropic_messages(messages),
            stream=True,
            max_tokens=fields.get("max_tokens") or fields.get("max_completion_tokens") or settings.max_tokens,
            **named,
        )
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        raise UnaskableError(f"{wrong['loc'][0]} is {wrong['input']!r:.60}. {wrong['msg']}.") from None
    try:
        body = provider._convert_completion_params(params, provider_name=provider.PROVIDER_NAME)
    except (AttributeError, LookupError, TypeError):
        message = "a tool, the choice of one, or the schema of the answer is not in the shape that OpenAI gives it."
        raise UnaskableError(message) from None
    own = _ANTHROPICS_OWN | settings.defaults.keys() - {*_TO_ANTHROPIC, "max_tokens", "max_completion_tokens", "user"}
    body |= {name: value for name, value in fields.items() if name in own}
    match fields:
        case {"user": str(user)} | {"metadata": {"user_id": str(user)}} if user:
            body["metadata"] = {"user_id": user}
    return body


_HIGHEST_TEMPERATURE = 1
"""Anthropic's; OpenAI's is 2."""
_JSON_IN_WORDS = "Answer with one JSON object and nothing else, without a block of code around it."
"""Anthropic takes a schema, and has no word for JSON of any shape."""


def _anthropic_messages(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """OpenAI messages with what any-llm's translation to Anthropic would lose or refuse put in words that it knows."""
    system: list[dict[str, Any]] = []
    rest: list[dict[str, Any]] = []
    for said in messages:
        content = said.get("content") or said.get("refusal")
        if said["role"] in ("system", "developer"):
            system += _parts(_without_blanks(content))
            continue
        message = {name: value for name, value in said.items() if name != "tool_calls"}
        if calls := said.get("tool_calls"):
            message["content"] = _without_blanks("".join(part.get("text", "") for part in _parts(content)))
            message["tool_calls"] = [_with_arguments(call) for call in calls]
        else:
            message["content"] = _without_blanks(content)
        if isinstance(message["content"], list):
            message["content"] = [_with_addresses(part) for part in message["content"]]
        # A turn without words may have a thought.
        if message["content"] or calls or said["role"] == "tool" or "extra_content" in said:
            rest.append(message)
    if not rest:
        raise UnaskableError("none of its messages says anything.")
    if len(system) == 1 and system[0].keys() == {"type", "text"}:
        return [{"role": "system", "content": system[0]["text"]}, *rest]
    return [{"role": "system", "content": system}, *rest] if system else rest


def _without_blanks(content: str | Iterable[Mapping[str, Any]] | None) -> str | list[Mapping[str, Any]]:
    """`content` without blank text, which Anthropic refuses; empty where there is nothing else."""
    if isinstance(content, str):
        return content if content.strip() else ""
    return [part for part in content or () if part.get("type") != "text" or part["text"].strip()] or ""


def _parts(content: str | Iterable[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
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
            raise UnaskableError(f"a part of the messages has a {name} that is no string.")
        if data and data.startswith("data:") and ";base64," not in data:
            raise UnaskableError("a data URL in the messages is not in base64.")
    return part


def _with_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(call.get("function"), Mapping):
        raise UnaskableError(
            f"tool call {call.get('id')!r:.60} in the history is no function's, and it takes no other."
        )
    function = dict(cast("Mapping[str, Any]", call["function"]))
    function["arguments"] = function.get("arguments") or "{}"
    try:
        json.loads(function["arguments"])
    except ValueError:
        raise UnaskableError(f"the arguments of tool call {call.get('id')!r:.60} in the history are no JSON.") from None
    return {**call, "function": function}
