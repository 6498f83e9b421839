"""The pieces of an answer as providers of OpenAI's format send them who do so in their own way."""

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from models.cloud.answer import Answer
from models.cloud.completions import Chunk
from models.cloud.tool_names import LONGEST, shortened
from models.interface import ChatRequest, Event, Finish, TextDelta, ToolCallDelta

_CHUNK = TypeAdapter(Chunk)


def calls(*deltas: dict[str, Any], offered: Sequence[str] = ()) -> list[tuple[int, str | None, str | None, str]]:
    tools = [{"type": "function", "function": {"name": name}} for name in offered]
    answer = Answer(ChatRequest(messages=[], tools=tools))
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    chunks = [{"choices": [{"index": 0, "delta": {"tool_calls": [delta]}}]} for delta in deltas]
    events = [event for chunk in (*chunks, last) for event in answer.read(_CHUNK.validate_python(chunk))]
    return [(e.index, e.id, e.name, e.arguments) for e in events if isinstance(e, ToolCallDelta)]


def read(*choices: dict[str, Any]) -> list[Event]:
    answer = Answer(ChatRequest(messages=[], beside=True))
    return [event for choice in choices for event in answer.read(_CHUNK.validate_python({"choices": [choice]}))]


def call(id: str, name: str | None, arguments: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "function": {"name": name, "arguments": arguments}, **more}


def test_calls_of_a_provider_that_numbers_none_are_told_apart_by_their_ids() -> None:
    # Gemini's: each call whole, and all of them number 0.
    assert calls(call("a", "f", '{"x": 1}'), call("b", "g", '{"x": 2}', index=0), call("c", "h", "")) == [
        (0, "a", "f", '{"x": 1}'),
        (1, "b", "g", '{"x": 2}'),
        (2, "c", "h", ""),
        (2, None, None, "{}"),
    ]


def test_pieces_of_one_call_stay_together_where_each_has_an_id_of_its_own() -> None:
    assert [(index, arguments) for index, _, _, arguments in calls(call("a", "f", ""), call("b", None, "{}"))] == [
        (0, ""),
        (0, "{}"),
    ]


def test_a_call_without_arguments_ends_before_the_next_begins() -> None:
    assert calls(
        call("a", "now", "", index=0), call("b", "weather", '{"x"', index=1), call("b", None, ": 1}", index=1)
    ) == [
        (0, "a", "now", ""),
        (0, None, None, "{}"),
        (1, "b", "weather", '{"x"'),
        (1, "b", None, ": 1}"),
    ]


def test_calls_that_a_server_mixes_come_one_after_the_other() -> None:
    begun = call("a", "f", '{"x"', index=0), call("b", "g", "", index=1), call("c", "h", "{", index=2)
    mixed = (
        *begun,
        call("b", None, '{"y": 2}', index=1),
        call("a", None, ": 1}", index=0),
        call("c", None, "}", index=2),
    )
    said = calls(*mixed)

    assert [index for index, *_ in said] == sorted(index for index, *_ in said)
    whole = ["".join(piece for number, _, _, piece in said if number == index) for index in range(3)]
    assert whole == ['{"x": 1}', '{"y": 2}', "{}"]


def test_words_between_calls_divide_none_of_them() -> None:
    answer = Answer(ChatRequest(messages=[]))
    deltas = [{"tool_calls": [call("a", "now", "", index=0)]}, {"content": "\n"}, {"content": "So."}]
    deltas += [{"tool_calls": [call("b", "f", "{}", index=1)]}, {"content": "Then."}]
    deltas += [{"tool_calls": [call("a", None, "  ", index=0)]}]
    chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    said = [event for chunk in (*chunks, last) for event in answer.read(_CHUNK.validate_python(chunk))]
    shape = ["".join(e.text) if isinstance(e, TextDelta) else getattr(e, "index", None) for e in said]
    assert shape == [0, 0, "\n", "So.", 1, "Then.", None]


def test_a_call_after_an_end_that_was_said_too_early_is_not_lost() -> None:
    answer = Answer(ChatRequest(messages=[]))
    pieces = [call("a", "now", "", index=0), call("b", "f", '{"x": 1}', index=1)]
    chunks = [{"choices": [{"index": 0, "delta": {"tool_calls": [p]}, "finish_reason": "tool_calls"}]} for p in pieces]
    said = [event for chunk in chunks for event in answer.read(_CHUNK.validate_python(chunk))]
    assert [(e.index, e.arguments) for e in said if isinstance(e, ToolCallDelta)][-1] == (1, '{"x": 1}')


def test_a_chunk_that_tells_of_a_content_filter_alone_has_no_words() -> None:
    # Azure's, with its asynchronous filter.
    offsets = {"content_filter_offsets": {"start_offset": 0, "end_offset": 9}, "content_filter_results": {}}
    assert read({"index": 0, "finish_reason": None, **offsets}, {"index": 0, "finish_reason": "stop"}) == [
        Finish("stop")
    ]


def test_an_end_without_a_reason_is_none() -> None:
    said = read(
        {"delta": {"content": "Hel"}, "finish_reason": ""},
        {"delta": {"content": "lo"}, "finish_reason": ""},
        {"delta": {}, "finish_reason": "length"},
    )
    assert said == [TextDelta("Hel"), TextDelta("lo"), Finish("length")]


def test_a_call_of_a_custom_tool_keeps_its_input_and_gets_no_arguments() -> None:
    deltas = (
        call("f", "f", "{}", index=0),
        {"index": 1, "id": "a", "type": "custom", "custom": {"name": "shell", "input": ""}},
        {"index": 1, "custom": {"input": "ls -l"}},
        call("g", "g", "", index=2),
    )
    said = read(*({"delta": {"tool_calls": [each]}} for each in deltas), {"delta": {}, "finish_reason": "tool_calls"})
    assert said == [
        ToolCallDelta(0, "{}", "f", "f"),
        ToolCallDelta(1, id="a", beside={"custom": {"name": "shell", "input": ""}}),
        ToolCallDelta(1, beside={"custom": {"input": "ls -l"}}),
        ToolCallDelta(2, "", "g", "g"),
        ToolCallDelta(2, "{}"),
        Finish("tool_calls"),
    ]


def test_a_tool_name_too_long_for_openai_goes_out_short_and_comes_back_whole() -> None:
    names = ["mcp__" + "a" * LONGEST + end for end in ("_read", "_write")] + ["short"]
    tools = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in names]
    history = [{"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {"name": names[1]}}]}]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [tools[1]]}}
    chosen = shortened({"messages": [], "tools": tools, "tool_choice": allowed})["tool_choice"]
    body = {"tools": tools, "tool_choice": tools[0], "messages": [{"role": "user", "content": "hi"}, *history]}

    sent = shortened(body)

    short = [tool["function"]["name"] for tool in sent["tools"]]
    assert max(map(len, short)) == LONGEST
    assert len(set(short)) == 3
    assert sent["tool_choice"]["function"]["name"] == short[0]
    assert chosen["allowed_tools"]["tools"] == [sent["tools"][1]]
    assert sent["messages"][1]["tool_calls"][0]["function"]["name"] == short[1]
    assert sent["messages"][0] is body["messages"][0]
    said = calls(*(call(str(i), name, "{}", index=i) for i, name in enumerate(short)), offered=names)
    assert [name for _, _, name, _ in said] == names
    assert tools[0]["function"]["name"] == names[0], "what was asked stays as it is"
