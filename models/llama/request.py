"""From a chat request to tasks for the engine: everything a client can get wrong is found here."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from models.interface import ChatRequest, FailureCode
from models.llama.errors import RefusedError
from models.llama.sampler import Sampler, Sampling
from models.llama.schema import Grammar
from models.llama.settings import LlamaSettings
from models.llama.task import Outbox, Task
from models.llama.template import Renderer
from models.llama.tools import OPEN, CallForm, bare_opening, calls_rule, tool_name
from models.llama.vocabulary import Vocabulary

_MOST_CHOICES = 16
_MOST_ALTERNATIVES = 20


def prepare(
    request: ChatRequest,
    outbox: Outbox,
    *,
    renderer: Renderer,
    vocabulary: Vocabulary,
    settings: LlamaSettings,
    context_length: int,
) -> list[Task]:
    """One task for each choice. Raises `RefusedError` for a request that cannot be answered as it stands."""
    _check(request)
    constraint = _constraint(request, renderer.calls)
    prompt = renderer.prompt(request.messages, offered_tools(request))
    max_tokens = _answer_length(request, len(prompt), settings, context_length)
    seed = request.seed if request.seed is not None else random.getrandbits(31)
    sampling = _sampling(request, settings, vocabulary)
    try:
        samplers = [
            # llama.cpp takes 32 bits of seed, and the greatest number for "any".
            Sampler(
                replace(sampling, seed=(seed + choice) % 0xFFFFFFFF, **constraint),
                vocabulary,
            )
            for choice in range(request.n)
        ]
    except ValueError as error:
        message = f"The schema makes a grammar that llama.cpp does not take ({error}): simplify it."
        raise RefusedError(FailureCode.BAD_REQUEST, message) from error
    return [
        Task(
            prompt=prompt,
            max_tokens=max_tokens,
            sampler=sampler,
            stops=tuple(filter(None, request.stop)),
            logprobs=request.top_logprobs if request.logprobs else None,
            choice=choice,
            outbox=outbox,
        )
        for choice, sampler in enumerate(samplers)
    ]


def offered_tools(request: ChatRequest) -> Sequence[Mapping[str, Any]]:
    """The tools that the model may call."""
    return () if request.tool_choice == "none" else request.tools


def _constraint(request: ChatRequest, form: CallForm) -> dict[str, Any]:
    """What of a `Sampling` says which grammar the answer must follow, and from where on."""
    grammar = Grammar()
    try:
        value = _format_rule(grammar, request.response_format or {"type": "text"})
        tools = offered_tools(request)
        if not tools:
            return {} if value is None else {"grammar": grammar.text(value)}
        choice = request.tool_choice or "auto"
        if isinstance(choice, Mapping):
            name = tool_name(choice)
            tools = [tool for tool in tools if tool_name(tool) == name]
            if not tools:
                raise ValueError(f"tool_choice names {name!r}, which is not among the tools")
        elif choice not in ("auto", "required"):
            raise ValueError(f"tool_choice {choice!r} is none of 'none', 'auto', 'required' and a function")
        free = choice == "auto" and value is None
        # Small models that must call, and may do so again, never stop.
        parallel = choice == "auto" and request.extra.get("parallel_tool_calls") is not False
        calls = calls_rule(grammar, tools, form, parallel=parallel, opened=free)
        if not free:
            return {"grammar": grammar.text(f"{calls} | {value}" if choice == "auto" else calls)}
        if form is CallForm.BARE:
            return {"grammar": grammar.text(calls), "grammar_opening": bare_opening(tools)}
        return {"grammar": grammar.text(calls), "grammar_trigger": OPEN}
    except (ValueError, TypeError, AttributeError) as error:
        message = f"The response format or the tools cannot be followed: {error}."
        raise RefusedError(FailureCode.BAD_REQUEST, message) from error


def _format_rule(grammar: Grammar, wanted: Mapping[str, Any]) -> str | None:
    """What OpenAI's `response_format` asks for; None for plain text."""
    kind = wanted.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return "object"
    if kind != "json_schema" or not isinstance(wanted.get("json_schema"), Mapping):
        raise ValueError(f"response_format {kind!r} is none of 'text', 'json_object' and 'json_schema'")
    return grammar.schema(wanted["json_schema"].get("schema", True))


def _check(request: ChatRequest) -> None:
    ranges = {
        "temperature": (request.temperature, 0, 5),
        "top_p": (request.top_p, 0, 1),
        "min_p": (request.min_p, 0, 1),
        "top_k": (request.top_k, -1, 1 << 20),
        "presence_penalty": (request.presence_penalty, -2, 2),
        "frequency_penalty": (request.frequency_penalty, -2, 2),
        "n": (request.n, 1, _MOST_CHOICES),
        "max_tokens": (request.max_tokens, 1, 1 << 31),
        "top_logprobs": (request.top_logprobs, 0, _MOST_ALTERNATIVES),
    }
    for name, (value, least, most) in ranges.items():
        if value is not None and not least <= value <= most:  # NaN is in no range
            raise RefusedError(FailureCode.BAD_REQUEST, f"{name} is {value}, but must be from {least} to {most}.")
    if not request.messages:
        raise RefusedError(FailureCode.BAD_REQUEST, "The request has no messages: send at least one.")


def _answer_length(request: ChatRequest, prompt_length: int, settings: LlamaSettings, context_length: int) -> int:
    rest = context_length - prompt_length
    if rest < (request.max_tokens or 1):
        answer = f" and an answer of up to {request.max_tokens}" if request.max_tokens else ""
        raise RefusedError(
            FailureCode.CONTEXT_LENGTH,
            f"The prompt has {prompt_length} tokens; with it{answer} the request exceeds the local model's context of "
            f"{context_length} tokens: shorten the messages{' or lower max_tokens' if answer else ''}.",
        )
    return request.max_tokens or min(rest, settings.max_tokens)


def _sampling(request: ChatRequest, settings: LlamaSettings, vocabulary: Vocabulary) -> Sampling:
    def choose(said: float | None, default: float) -> float:
        return default if said is None else said

    return Sampling(
        temperature=choose(request.temperature, settings.temperature),
        top_k=int(choose(request.top_k, settings.top_k)),
        top_p=choose(request.top_p, settings.top_p),
        min_p=choose(request.min_p, settings.min_p),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        seed=0,
        logit_bias=_biases(request.logit_bias or {}, vocabulary),
    )


def _biases(biases: Mapping[str, float], vocabulary: Vocabulary) -> list[tuple[int, float]]:
    found = []
    for text, bias in biases.items():
        if not (text.isascii() and text.isdigit() and int(text) < vocabulary.size and -100 <= bias <= 100):
            allowed = f"token ids below {vocabulary.size} to numbers from -100 to 100"
            raise RefusedError(FailureCode.BAD_REQUEST, f"logit_bias maps {allowed}, not {text!r} to {bias}.")
        found.append((int(text), float(bias)))
    return found
