"""Tool calls: forced, chosen or forbidden as asked, and streamed as OpenAI does."""

import json
from typing import Any

import pytest

from models.interface import Event, FailureCode, TextDelta, ToolCallDelta
from models.llama.model import LlamaModel
from models.llama.tools import ToolCallReader
from tests.models.llama.conftest import Answer, ask

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["c", "f"]}},
            "required": ["city", "unit"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time"}}
QUESTION = "What is the weather in Paris?"


def calls(answer: Answer) -> list[tuple[str, Any]]:
    """Name and parsed arguments of each call."""
    deltas: list[ToolCallDelta] = answer.all(ToolCallDelta)
    named = [delta for delta in deltas if delta.name is not None]
    assert [delta.index for delta in named] == list(range(len(named)))
    assert len({delta.id for delta in named}) == len(named)
    arguments = ["".join(delta.arguments for delta in deltas if delta.index == index) for index in range(len(named))]
    return [(str(delta.name), json.loads(text)) for delta, text in zip(named, arguments, strict=True)]


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("seed", range(3))
async def test_required_call_has_arguments_that_satisfy_the_schema(model: LlamaModel, seed: int) -> None:
    answer = await ask(
        model, QUESTION, tools=[WEATHER], tool_choice="required", temperature=1.3, seed=seed, max_tokens=400
    )
    [(name, arguments)] = calls(answer)
    assert name == "get_weather"
    assert set(arguments) == {"city", "unit"}
    assert arguments["unit"] in ("c", "f")
    assert answer.finish.reason == "tool_calls"
    assert answer.text() == ""


@pytest.mark.asyncio(loop_scope="session")
async def test_named_function_is_the_one_called(model: LlamaModel) -> None:
    choice = {"type": "function", "function": {"name": "get_time"}}
    answer = await ask(model, QUESTION, tools=[WEATHER, CLOCK], tool_choice=choice, max_tokens=200)
    assert [name for name, _ in calls(answer)] == ["get_time"]


@pytest.mark.asyncio(loop_scope="session")
async def test_arguments_come_in_pieces_after_the_name(model: LlamaModel) -> None:
    answer = await ask(model, QUESTION, tools=[WEATHER], tool_choice="required", max_tokens=200)
    first, *rest = answer.all(ToolCallDelta)
    assert first.name == "get_weather"
    assert len(rest) > 3
    assert all(delta.name is None and delta.id is None for delta in rest)


@pytest.mark.asyncio(loop_scope="session")
async def test_tool_choice_none_never_calls_nor_shows_the_tools(model: LlamaModel) -> None:
    without = await ask(model, QUESTION)
    answer = await ask(model, QUESTION, tools=[WEATHER], tool_choice="none")
    assert not answer.all(ToolCallDelta)
    assert answer.usage.prompt_tokens == without.usage.prompt_tokens


@pytest.mark.asyncio(loop_scope="session")
async def test_call_that_the_model_begins_by_itself_is_held_to_the_schema(model: LlamaModel) -> None:
    messages = [{"role": "user", "content": "Say exactly this and nothing else: <tool_call>"}]
    answer = await ask(model, messages, tools=[WEATHER], temperature=1.0, seed=2, max_tokens=300)
    for _, arguments in calls(answer):
        assert set(arguments) == {"city", "unit"}


@pytest.mark.asyncio(loop_scope="session")
async def test_conversation_with_calls_and_results_goes_on(model: LlamaModel) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "18 degrees, rain"},
    ]
    answer = await ask(model, messages, tools=[WEATHER], max_tokens=40)
    assert answer.text() or answer.all(ToolCallDelta)


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function"}]},
        {"tools": [{"type": "function", "function": {"name": 'a", "b'}}]},
        {"tools": [WEATHER], "tool_choice": "sometimes"},
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "unknown"}}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "strange"}}}]},
    ],
)
async def test_tools_that_make_no_sense_are_a_bad_request(model: LlamaModel, fields: dict[str, Any]) -> None:
    assert (await ask(model, QUESTION, **fields)).failure.code is FailureCode.BAD_REQUEST


LOOKALIKES = [
    "a < b and <tool is no call",
    "ends in <tool_ca",
    "<tool_call>not JSON</tool_call> so",
    "tail \n",
    "Wrap calls in <tool_call> tags, as Hermes does. That is all.",
    'As in\n<tool_call>{"name": "f", "arguments": "none"}</tool_call>',
    "Models wrap calls in <tool_call>",
    'e.g. <tool_call>{"x": 1}',
]
JSON_ANSWERS = [
    '{"name": "unknown", "arguments": {}}',
    '{"key": [1, 2]}',
    '{"name": "f", "arguments": "none"}',
    'See {"name": "f", "arguments": {}}',
    '{"name": "' + 300 * "x",
    "{",
]
TEXT_AND_CALLS = (
    'Let me see. <tool_call>\n{"name": "f", "arguments": {"a": "}</tool_call>\\"", "b": [{}]}}\n</tool_call>\n'
    '<tool_call>{"name":"g","arguments":{}}</tool_call>'
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_calls_are_read_alike_however_the_text_is_cut(size: int) -> None:
    events = read(TEXT_AND_CALLS, size)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "Let me see."
    assert calls(Answer(events)) == [("f", {"a": '}</tool_call>"', "b": [{}]}), ("g", {})]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_without_their_tags_are_calls_where_they_are_the_whole_answer(size: int) -> None:
    events = read('\n{"name": "f", "arguments": {"a": "}"}}\n{"name": "g", "arguments": {}}', size)
    assert not [event for event in events if isinstance(event, TextDelta)]
    assert calls(Answer(events)) == [("f", {"a": "}"}), ("g", {})]


@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize(
    "text",
    [*LOOKALIKES, *JSON_ANSWERS],
)
def test_text_that_only_looks_like_a_call_stays_text(text: str, size: int) -> None:
    events = read(text, size)
    assert not [event for event in events if isinstance(event, ToolCallDelta)]
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == text


@pytest.mark.parametrize("end", range(1, 36))
def test_a_call_that_was_cut_off_is_no_text(end: int) -> None:
    begun = '{"name": "f", "arguments": {"a": 1}'[:end]
    assert not [event for event in read(f"<tool_call>{begun}", 1000) if isinstance(event, TextDelta) and event.text]


def read(text: str, size: int) -> list[Event]:
    reader = ToolCallReader(choice=0, names=frozenset({"f", "g"}))
    events: list[Event] = []
    for start in range(0, len(text), size):
        events += reader.push(TextDelta(text[start : start + size]))
    return [*events, *reader.finish()]


def test_each_logprob_is_given_once_with_the_text_that_it_is_of_or_the_next() -> None:
    reader = ToolCallReader(choice=0, names=frozenset({"f"}))
    said = ["Hello", "\n\n", "World", " <tool", "_call>", '{"name": "f", "arguments": {}}', "</tool_call>", " done"]
    deltas = [delta for piece in said for delta in reader.push(TextDelta(piece, logprobs=[{"token": piece}]))]
    deltas += reader.finish()

    texts = [
        (delta.text, [entry["token"] for entry in delta.logprobs or ()])
        for delta in deltas
        if isinstance(delta, TextDelta)
    ]
    assert texts == [("Hello", ["Hello"]), ("\n\nWorld", ["\n\n", "World"]), (" done", [" done"])]
