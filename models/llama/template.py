"""Chat messages to one prompt, in the form that a model was trained on."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from models.interface import FailureCode, Message
from models.llama.errors import RefusedError
from models.llama.sandbox import SandboxedTemplate
from models.llama.tools import CallForm
from models.llama.vocabulary import Vocabulary, control_pattern

# A private-use character around the number of a text set aside; where it occurs in a request it is set aside itself.
_MARK = "\uf8e7"
_LONGEST_TOKEN = 128
"""Characters. Longer tokens are rare in any vocabulary, and in text."""
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


class Template(Protocol):
    """Renders checked messages, whose contents are plain strings, with the opening of the answer at the end."""

    @property
    def calls(self) -> CallForm:
        """How the model writes tool calls."""
        ...

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str: ...


@dataclass(frozen=True, slots=True)
class ChatML:
    """`<|im_start|>` turns: Qwen, SmolLM2 and many others."""

    default_system: str = ""
    calls: CallForm = CallForm.TAGGED

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
        turns = _turns(messages, tools, self.default_system)
        return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"


@dataclass(frozen=True, slots=True)
class Llama3:
    """Header-and-eot turns of Llama 3."""

    calls: CallForm = CallForm.TAGGED

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
        return _headed([(role, text.strip()) for role, text in _turns(messages, tools, "")])


@dataclass(frozen=True, slots=True)
class Llama31:
    """Llama 3.1 to 3.3: tools in the first turn of the user, one call in a turn, results in turns of `ipython`."""

    calls: CallForm = CallForm.BARE

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
        system = ""
        if messages and messages[0]["role"] in ("system", "developer"):
            system, messages = messages[0]["content"].strip(), messages[1:]
        environment = "Environment: ipython\n" if tools else ""
        turns = [("system", f"{environment}{_LLAMA31_DATES}{system}")]
        for message in _one_call_each(messages):
            role: str = message["role"]
            text = message["content"].strip()
            calls = message.get("tool_calls") or ()
            if text or not calls:
                text = json.dumps(message["content"], ensure_ascii=False) if role == "tool" else text
                turns.append((_LLAMA31_ROLES.get(role, role), text))
            turns += [("assistant", _bare_call_text(call["function"])) for call in calls]
        if tools:
            at = next((at for at, (role, _) in enumerate(turns) if role == "user"), len(turns))
            signatures = "".join(json.dumps(tool, ensure_ascii=False, indent=4) + "\n\n" for tool in tools)
            asked = turns.pop(at)[1] if at < len(turns) else ""
            turns.insert(at, ("user", f"{_LLAMA31_TOOLS}{signatures}{asked}"))
        return _headed(turns)


@dataclass(frozen=True, slots=True)
class Gemma:
    """Gemma's two-party turns; what the system says opens the user's next turn, or ends the last where none follows."""

    calls: CallForm = CallForm.TAGGED

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
        turns, system = list[tuple[str, str]](), list[str]()
        for role, text in _turns(messages, tools, ""):
            if role == "system":
                system.append(text)
            elif role == "user":
                turns.append(("user", "\n\n".join([*system, text.strip()])))
                system = []
            else:
                turns.append(("model", text.strip()))
        if system:
            asked = [turns.pop()[1]] if turns and turns[-1][0] == "user" else []
            turns.append(("user", "\n\n".join([*asked, *system])))
        said = "".join(f"<start_of_turn>{role}\n{text}<end_of_turn>\n" for role, text in turns)
        return f"<bos>{said}<start_of_turn>model\n"


def choose_template(metadata: Mapping[str, str], vocabulary: Vocabulary, *, trusted: bool) -> Template:
    """upcall's own template for a known model, else the file's where `trusted`.

    Raises `ValueError`, with one line for people, where there is neither.
    """
    names = " ".join(metadata.get(key, "") for key in ("general.basename", "general.name")).lower()
    source = metadata.get("tokenizer.chat_template")

    def speaks(token: str) -> bool:
        # Models trained further in another form keep the tokens of the first; what the file's template writes tells.
        return token in vocabulary.control_texts and (not source or token in source)

    if speaks("<|start_header_id|>"):
        return Llama31() if "<|python_tag|>" in vocabulary.control_texts else Llama3()
    if speaks("<|im_start|>") and not speaks("<|im_sep|>"):  # Phi-4 has the tokens of ChatML in another form
        return ChatML(next((system for name, system in _DEFAULT_SYSTEMS.items() if name in names), ""))
    if speaks("<start_of_turn>"):
        return Gemma()
    if source is None:
        raise ValueError("the model has no chat template that upcall knows; choose an instruction-tuned chat model")
    if not trusted:
        raise ValueError(
            "upcall has no chat template of its own for this model and does not run the file's unasked; "
            "set trust_template = true if you trust its author"
        )
    return SandboxedTemplate(source, bos=vocabulary.bos_text, eos=vocabulary.eos_text)


class Renderer:
    """Renders and tokenizes requests so that no text in them can pass for one of the model's control tokens.

    Before a template runs, every control token's text in the request is set aside; after it, each comes back as a part
    of its own that the tokenizer reads as plain text.
    """

    def __init__(self, template: Template, vocabulary: Vocabulary, *, context_length: int) -> None:
        self.calls = template.calls
        self._template = template
        self._context_length = context_length
        self._vocabulary = vocabulary
        self._pattern = control_pattern(vocabulary, _MARK)

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Any:
        """The prompt's token ids, int32 of shape `(n,)`. Raises `RefusedError` for what the model cannot be told."""
        messages = [_in_the_open(_plain(message)) for message in messages]
        self._check_size(messages, tools)
        aside: list[str] = []

        def set_aside(value: Any) -> Any:
            if isinstance(value, str):
                return self._pattern.sub(lambda match: f"{_MARK}{_keep(aside, match.group())}{_MARK}", value)
            if isinstance(value, Mapping):
                return {set_aside(key): set_aside(item) for key, item in value.items()}
            return [set_aside(item) for item in value] if isinstance(value, list | tuple) else value

        text = self._template.render(*map(set_aside, (messages, list(tools))))
        parts = [(part, True) if i % 2 == 0 else (aside[int(part)], False) for i, part in enumerate(text.split(_MARK))]
        bos = self._vocabulary.bos_text
        return self._vocabulary.tokenize(parts, add_bos=not (bos and text.startswith(bos)))

    def _check_size(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> None:
        """Refuse what cannot fit before work is spent on it: tokenizing a megabyte takes seconds."""
        size = sum(len(str(part)) for part in (*messages, *tools))
        if size > self._context_length * _LONGEST_TOKEN:
            raise RefusedError(
                FailureCode.CONTEXT_LENGTH,
                f"The prompt has {size} characters, more than the local model's context of {self._context_length} "
                "tokens can hold: shorten the messages.",
            )


def _plain(message: Message) -> dict[str, Any]:
    """A message with its text parts joined; raises `RefusedError` for what a text model cannot read."""
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise RefusedError(
            FailureCode.BAD_REQUEST, f"Unknown message role {role!r}: use one of {', '.join(sorted(_ROLES))}."
        )
    if content is None or isinstance(content, str):
        return {**message, "content": content or ""}
    texts = []
    for part in content:
        kind = part.get("type")
        if kind not in ("text", "refusal"):
            raise RefusedError(
                FailureCode.BAD_REQUEST,
                f"The local model reads text only, not {kind!r} parts: remove them or ask the cloud model.",
            )
        texts.append(str(part.get(kind) or ""))
    return {**message, "content": "\n".join(texts)}


def _in_the_open(message: dict[str, Any]) -> dict[str, Any]:
    """A message without escapes in the arguments of its calls, behind which a control token could hide until a template
    has read them."""
    if not any("\\" in str(call["function"].get("arguments")) for call in message.get("tool_calls") or ()):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = dict(call["function"])
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            said = json.dumps(json.loads(function["arguments"]), ensure_ascii=False)
            function["arguments"] = said.encode("utf-8", "replace").decode()
        calls.append({**call, "function": function})
    return {**message, "tool_calls": calls}


def _headed(turns: Sequence[tuple[str, str]]) -> str:
    said = (f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>" for role, text in turns)
    return "".join(["<|begin_of_text|>", *said, "<|start_header_id|>assistant<|end_header_id|>\n\n"])


def _turns(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], default_system: str
) -> list[tuple[str, str]]:
    """Messages as `(system | user | assistant, text)`; tools, calls and results written out as Hermes and Qwen do."""
    turns: list[tuple[str, str]] = []
    for message in messages:
        role, text = message["role"], message["content"]
        if role == "developer":
            role = "system"
        elif role == "assistant":
            calls = [_call_text(call["function"]) for call in message.get("tool_calls") or ()]
            text = "\n".join(filter(None, [text, *calls]))
        elif role == "tool":
            role, text = "user", f"<tool_response>\n{text}\n</tool_response>"
            if turns and turns[-1][0] == "user" and turns[-1][1].endswith("</tool_response>"):
                text = f"{turns.pop()[1]}\n{text}"
        turns.append((role, text))
    if (not turns or turns[0][0] != "system") and (default_system or tools):
        turns.insert(0, ("system", default_system))
    if tools:
        turns[0] = ("system", f"{turns[0][1]}\n\n{_tools_text(tools)}".lstrip("\n"))
    return turns


def _tools_text(tools: Sequence[Mapping[str, Any]]) -> str:
    signatures = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{signatures}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n"
        '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )


def _call_text(function: Mapping[str, Any]) -> str:
    name = json.dumps(function.get("name"), ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {function.get("arguments") or "{}"}}}\n</tool_call>'


def _bare_call_text(function: Mapping[str, Any]) -> str:
    arguments = function.get("arguments") or "{}"
    with contextlib.suppress(ValueError, RecursionError):
        arguments = json.dumps(json.loads(arguments), ensure_ascii=False)
    return f'{{"name": {json.dumps(function.get("name"), ensure_ascii=False)}, "parameters": {arguments}}}'


def _one_call_each(messages: Sequence[Message]) -> list[Message]:
    """Calls that were made at once, one after the other, each with its result behind it."""
    rest, apart = list(messages), list[Message]()
    while rest:
        message = rest.pop(0)
        calls = message.get("tool_calls") or ()
        apart.append({**message, "tool_calls": calls[:1]})
        results = []
        while len(calls) > 1 and rest and rest[0]["role"] == "tool":
            results.append(rest.pop(0))
        for number, call in enumerate(calls):
            if number:
                apart.append({"role": "assistant", "content": "", "tool_calls": [call]})
            apart += [result for result in results if result.get("tool_call_id") == call.get("id")]
        known = {call.get("id") for call in calls}
        apart += [result for result in results if result.get("tool_call_id") not in known]
    return apart


def _keep(aside: list[str], text: str) -> int:
    aside.append(text)
    return len(aside) - 1


_LLAMA31_ROLES = {"developer": "system", "tool": "ipython"}
# As in the maker's template, which writes this date into every prompt unless it is told another.
_LLAMA31_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
_LLAMA31_TOOLS = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    'answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument '
    "name and its value}.Do not use variables.\n\n"
)
# What the models' makers put where the conversation has no system message.
_DEFAULT_SYSTEMS = {
    "smollm": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "qwen2.5": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
}
