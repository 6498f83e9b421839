"""Llama 3.1's own form: the prompt that it was trained on, and calls that are nothing but JSON."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from models.interface import ToolCallDelta
from models.llama.context import Model
from models.llama.model import LlamaModel
from models.llama.sampler import Candidates, Sampler, Sampling
from models.llama.sandbox import SandboxedTemplate
from models.llama.schema import Grammar
from models.llama.template import ChatML, Llama3, Llama31, Renderer, choose_template
from models.llama.tools import CallForm, bare_opening, calls_rule
from models.llama.vocabulary import Vocabulary
from tests.models.llama.conftest import ask
from tests.models.llama.test_llama_tools import CLOCK, QUESTION, WEATHER, calls

FORM = """{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}
{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}{% if tools %}{{ 'Environment: ipython\n' }}{% endif %}
{{- 'Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n' + system + '<|eot_id|>' }}
{%- if tools %}{{ '<|start_header_id|>user<|end_header_id|>\n\nGiven the following functions, please respond with a '
+ 'JSON for a function call with its proper arguments that best answers the given prompt.\n\nRespond in the format '
+ '{"name": function name, "parameters": dictionary of argument name and its value}.Do not use variables.\n\n' }}
{%- for tool in tools %}{{ tool | tojson(indent=4) + '\n\n' }}{% endfor %}
{{- messages[0].content | trim + '<|eot_id|>' }}{% set messages = messages[1:] %}{% endif %}
{%- for message in messages %}{% if message.tool_calls %}{% set call = message.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + call.name + '", "parameters": ' }}
{{- call.arguments | tojson + '}<|eot_id|>' }}{% elif message.role == 'tool' %}
{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + message.content | tojson + '<|eot_id|>' }}{% else %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endif %}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"""
"""What the maker's template writes, in fewer words."""


def called(number: int, arguments: str = '{"city": "Évora", "unit": "c"}') -> dict[str, Any]:
    return {"id": f"id{number}", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}


def result(number: int) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"id{number}", "content": f'{{"degrees": "{number}"}}\n'}


CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": " Be brief.\n"},
    {"role": "user", "content": f" {QUESTION} \n"},
    {"role": "assistant", "content": "", "tool_calls": [called(1)]},
    result(1),
    {"role": "assistant", "content": "It is 1 degree."},
    {"role": "user", "content": "Thanks."},
]


@pytest.mark.parametrize("tools", [[], [WEATHER], [WEATHER, CLOCK]])
@pytest.mark.parametrize("chat", [CHAT, CHAT[1:], CHAT[:2], CHAT[1:2]])
def test_prompt_is_the_one_that_the_makers_template_writes(
    chat: list[dict[str, Any]], tools: list[dict[str, Any]]
) -> None:
    theirs = SandboxedTemplate(FORM, bos="<|begin_of_text|>", eos="")
    assert Llama31().render(chat, tools) == theirs.render(chat, tools)


def test_calls_that_were_made_at_once_are_told_one_by_one_with_their_results() -> None:
    at_once = [{"role": "assistant", "content": "", "tool_calls": [called(1), called(2)]}, result(2), result(1)]
    one_by_one = [
        {"role": "assistant", "content": "", "tool_calls": [called(1)]},
        result(1),
        {"role": "assistant", "content": "", "tool_calls": [called(2)]},
        result(2),
    ]
    assert Llama31().render(CHAT[:2] + at_once, [WEATHER]) == Llama31().render(CHAT[:2] + one_by_one, [WEATHER])


@pytest.mark.parametrize(
    ("tokens", "template", "expected"),
    [
        ("<|start_header_id|>", "", Llama3),
        ("<|start_header_id|> <|python_tag|>", "{{ '<|start_header_id|>' }}", Llama31),
        ("<|start_header_id|> <|python_tag|> <|im_start|>", "{{ '<|im_start|>' }}", ChatML),
    ],
)
def test_form_follows_from_the_tokens_and_from_what_the_files_template_writes(
    tokens: str, template: str, expected: type
) -> None:
    class Tokens:
        control_texts = frozenset(tokens.split())

    metadata = {"tokenizer.chat_template": template} if template else {}
    assert isinstance(choose_template(metadata, Tokens(), trusted=False), expected)  # type: ignore[arg-type]


@pytest_asyncio.fixture(loop_scope="session")
async def speaker(model: LlamaModel) -> AsyncIterator[LlamaModel]:
    """The default model, told to speak Llama 3.1's form."""
    await ask(model, "Hi", max_tokens=1)
    loaded = model._ready()
    before = loaded.renderer
    loaded.renderer = Renderer(Llama31(), loaded.model.vocabulary, context_length=loaded.context_length)
    yield model
    loaded.renderer = before


@pytest.mark.asyncio(loop_scope="session")
async def test_required_call_is_streamed_and_satisfies_the_schema(speaker: LlamaModel) -> None:
    answer = await ask(speaker, QUESTION, tools=[WEATHER], tool_choice="required", max_tokens=200)
    [(name, arguments)] = calls(answer)
    assert (name, set(arguments)) == ("get_weather", {"city", "unit"})
    assert answer.finish.reason == "tool_calls"
    assert answer.text() == ""
    assert len(answer.all(ToolCallDelta)) > 3


@pytest.fixture(scope="module")
def vocabulary(smollm2: Path) -> Iterator[Vocabulary]:
    model = Model(str(smollm2), repack=False, on_progress=lambda _: True)
    yield model.vocabulary
    model.close()


@pytest.mark.parametrize("lead", ["", "\n\n\n", "<|im_start|>"])
@pytest.mark.parametrize("head", ['{"name": ', '{ "type":"function", "name":'])
def test_call_that_the_model_begins_by_itself_is_held_to_the_schema(
    vocabulary: Vocabulary, lead: str, head: str
) -> None:
    written = write(vocabulary, f'{lead}{head}"get_weather", "parameters": {{"city": 7, "unit": "kelvin"}}')
    assert written.startswith(lead.replace("<|im_start|>", "") + head + '"get_weather", "parameters": {"city":')
    assert "7" not in written.partition('"city"')[2].partition('"')[0]
    assert "kelvin" not in written


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Bob", "parameters": {"city": 7}}',
        'Say {"name": "get_weather", "parameters": {"city": 7}}',
        '{"age": 7, "name": "get_weather", "parameters": 7}',
        '{\n\n\n"name": "get_weather", "parameters": 7}',
        "{" * 300 + '{"name": "get_weather", "parameters": 7}',
    ],
)
def test_what_is_no_call_from_its_first_character_on_is_left_alone(vocabulary: Vocabulary, text: str) -> None:
    assert write(vocabulary, text) == text


def write(vocabulary: Vocabulary, text: str) -> str:
    """What comes of a model that wants to write `text`, by token, where it may call `WEATHER` or answer."""
    grammar = Grammar()
    rules = grammar.text(calls_rule(grammar, [WEATHER], CallForm.BARE, parallel=False, opened=True))
    sampler = Sampler(
        Sampling(
            temperature=0,
            top_k=1,
            top_p=1,
            min_p=0,
            presence_penalty=0,
            frequency_penalty=0,
            seed=1,
            grammar=rules,
            grammar_opening=bare_opening([WEATHER]),
        ),
        vocabulary,
    )
    candidates, written = Candidates(vocabulary.size), b""
    for wanted in vocabulary.tokenize([(text, True)], add_bos=False):
        row = np.zeros(vocabulary.size, np.float32)
        row[wanted] = 20.0
        written += vocabulary.piece(sampler.sample(row, int(wanted), candidates))
    return written.decode("utf-8", "replace")
