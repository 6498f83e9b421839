"""Tools of `/v1/responses` beyond functions, as Codex offers them: there and back."""

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest

from daemon.api.reading import check
from daemon.api.responses import ResponseShape
from daemon.api.responses_request import ResponsesBody
from models.interface import ChatRequest, Event, Finish, TextDelta, ToolCallDelta, Usage
from tests.daemon.harness import Daemon

LOOK: dict[str, Any] = {"type": "function", "name": "look", "description": "Looks.", "parameters": {"type": "object"}}
GRAMMAR = "start: begin_patch hunk+ end_patch"
PATCH: dict[str, Any] = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": GRAMMAR},
}
RUN: dict[str, Any] = {"type": "custom", "name": "run", "format": {"type": "text"}}
FILES: dict[str, Any] = {
    "type": "namespace", "name": "mcp__files", "description": "Files of the house.", "tools": [LOOK, RUN]
}  # fmt: skip
TOOLS = [LOOK, PATCH, FILES]
TEXT = '*** Begin Patch\n+\t"naïve" \\d+ 😀 \u2028\n*** End Patch'


def read(**body: Any) -> ChatRequest:
    return check(ResponsesBody, {"input": "hello", **body}).request()


def names(tools: Sequence[Any]) -> list[str]:
    return [tool["function"]["name"] for tool in tools]


def answering(*events: Event) -> openai.OpenAI:
    """OpenAI's client, whose every request is answered with `events`."""

    def answer(request: httpx.Request) -> httpx.Response:
        raw = json.loads(request.content)
        exchange: Any = SimpleNamespace(id="x", created=1, model="m", usage=Usage(1, 2), explanation=None)
        shape = ResponseShape(exchange, raw, check(ResponsesBody, raw).toolbox)
        if not raw.get("stream"):
            return httpx.Response(200, json=shape.whole(events))
        body = b"".join((shape.start(), *map(shape.event, events), shape.end()))
        return httpx.Response(200, content=body, headers={"Content-Type": "text/event-stream"})

    client = httpx.Client(transport=httpx.MockTransport(answer))
    return openai.OpenAI(base_url="http://upcall/v1", api_key="none", http_client=client)


def called(name: str, *arguments: str, index: int = 0) -> list[Event]:
    return [ToolCallDelta(index, "", "call_1", name), *(ToolCallDelta(index, piece) for piece in arguments)]


def outcome(*events: Event, tools: Sequence[Any] = TOOLS) -> tuple[list[Any], list[Any]]:
    """The items of an answer, which are the same whole and streamed, and the stream's events."""
    asked: Any = {"model": "m", "input": "hello", "tools": tools}
    client = answering(*events, Finish("tool_calls"))
    whole = client.responses.create(**asked).output
    streamed = list(client.responses.create(**asked, stream=True))
    assert [item.to_dict() for item in streamed[-1].response.output] == [item.to_dict() for item in whole]
    return list(whole), streamed


def test_a_custom_tool_is_offered_as_a_function_of_one_text() -> None:
    said = read(tools=[PATCH, RUN], tool_choice={"type": "custom", "name": "apply_patch"})
    first, second = (tool["function"] for tool in said.tools)

    assert (first["name"], first["description"]) == ("apply_patch", "Edits files.")
    assert first["parameters"]["required"] == ["input"]
    described = first["parameters"]["properties"]["input"]["description"]
    assert described.endswith(f"It must follow this Lark grammar:\n{GRAMMAR}")
    assert "grammar" not in json.dumps(second)
    assert said.tool_choice == {"type": "function", "function": {"name": "apply_patch"}}


def test_a_regular_expression_is_called_one() -> None:
    form = {"type": "grammar", "syntax": "regex", "definition": r"\d+"}
    [tool] = read(tools=[{**RUN, "format": form}]).tools
    assert tool["function"]["parameters"]["properties"]["input"]["description"].endswith("regular expression:\n\\d+")


def test_the_tools_of_a_namespace_are_functions_with_its_name_and_its_description_once() -> None:
    choice = {"type": "function", "name": "look", "namespace": "mcp__files"}
    said = read(tools=TOOLS, tool_choice=choice)

    assert names(said.tools) == ["look", "apply_patch", "mcp__files__look", "mcp__files__run"]
    assert said.tools[2]["function"] == {
        "name": "mcp__files__look",
        "description": "Files of the house.\n\nLooks.",
        "parameters": {"type": "object"},
    }
    assert "description" not in said.tools[3]["function"]
    assert said.tool_choice == {"type": "function", "function": {"name": "mcp__files__look"}}


def test_tools_among_the_input_are_offered_too_and_once() -> None:
    # As Codex has them with OpenAI's newest models.
    said = read(tools=[LOOK], input=[{"type": "additional_tools", "role": "developer", "tools": [LOOK, FILES]},
                                     {"role": "user", "content": "hello"}], tool_choice="required")  # fmt: skip
    assert names(said.tools) == ["look", "mcp__files__look", "mcp__files__run"]
    assert said.messages == [{"role": "user", "content": "hello"}]


def test_tools_whose_names_would_be_the_same_are_told_apart() -> None:
    inner = {"type": "function", "name": "b__c"}
    tools = [
        {"type": "namespace", "name": "a", "tools": [inner]},
        {"type": "namespace", "name": "a__b__", "tools": [{"type": "function", "name": "c"}]},
        {"type": "function", "name": "a__b__c"},
        {"type": "custom", "name": "a__b__c"},
    ]
    offered = names(read(tools=tools).tools)
    assert sorted(offered) == ["a__b__c", "a__b__c_", "a__b__c__", "a__b__c___"]
    assert offered[2] == "a__b__c"

    calls = [outcome(*called(name, '{"input": "x"}'), tools=tools)[0][0] for name in offered]
    assert [(call.type, call.namespace, call.name) for call in calls] == [
        ("function_call", "a", "b__c"),
        ("function_call", "a__b__", "c"),
        ("function_call", None, "a__b__c"),
        ("custom_tool_call", None, "a__b__c"),
    ]


def test_a_conversations_calls_and_results_are_those_of_the_functions_that_were_offered() -> None:
    said = read(
        tools=TOOLS,
        input=[
            {"role": "assistant", "content": "Let me see."},
            {"type": "custom_tool_call", "call_id": "1", "name": "apply_patch", "input": TEXT, "id": "ctc_1"},
            {"type": "function_call", "call_id": "2", "name": "look", "namespace": "mcp__files", "arguments": "{}"},
            {"type": "custom_tool_call", "call_id": "3", "name": "gone", "namespace": "old", "input": ""},
            {"type": "custom_tool_call_output", "call_id": "1", "output": "done"},
            {"type": "function_call_output", "call_id": "2", "output": "a cat"},
            {"type": "custom_tool_call_output", "call_id": "3", "output": [{"type": "input_text", "text": "no"}]},
        ],
    ).messages

    assert [message["role"] for message in said] == ["assistant", "tool", "tool", "tool"]
    calls = [(call["id"], call["type"], call["function"]["name"]) for call in said[0]["tool_calls"]]
    assert calls == [
        ("1", "function", "apply_patch"), ("2", "function", "mcp__files__look"), ("3", "function", "old__gone")
    ]  # fmt: skip
    arguments = [call["function"]["arguments"] for call in said[0]["tool_calls"]]
    assert [json.loads(each) for each in arguments] == [{"input": TEXT}, {}, {"input": ""}]
    assert [message["content"] for message in said[1:]] == ["done", "a cat", "no"]


def test_a_call_in_a_namespace_comes_back_with_it_beside_the_tools_own_name() -> None:
    [item], events = outcome(*called("mcp__files__look", '{"at":', ' "x"}'))

    assert (item.type, item.namespace, item.name, item.arguments) == (
        "function_call", "mcp__files", "look", '{"at": "x"}'
    )  # fmt: skip
    added = next(event.item for event in events if event.type == "response.output_item.added")
    assert (added.namespace, added.name) == ("mcp__files", "look")


def test_a_call_of_a_custom_tool_comes_back_as_its_text_and_is_streamed_as_such() -> None:
    written = json.dumps({"input": TEXT})
    pieces = [written[at : at + 3] for at in range(0, len(written), 3)]
    said, text, function = TextDelta("Now."), *called("apply_patch"), called("look", "{}", index=1)
    items, events = outcome(said, text, *(ToolCallDelta(0, piece) for piece in pieces), *function)

    assert [item.type for item in items] == ["message", "custom_tool_call", "function_call"]
    assert (items[1].name, items[1].call_id, items[1].input, items[1].namespace) == (
        "apply_patch", "call_1", TEXT, None
    )  # fmt: skip
    mine = [event for event in events if getattr(event, "output_index", None) == 1]
    kinds = [event.type.removeprefix("response.") for event in mine]
    deltas = [event.delta for event in mine if event.type == "response.custom_tool_call_input.delta"]
    assert kinds[0] == "output_item.added"
    assert set(kinds[1:-2]) == {"custom_tool_call_input.delta"}
    assert kinds[-2:] == ["custom_tool_call_input.done", "output_item.done"]
    assert len(deltas) > 10
    assert "".join(deltas) == mine[-2].input == TEXT
    assert mine[0].item.input == ""
    assert {event.item_id for event in mine[1:-1]} == {items[1].id}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input": ""}', ""),
        ('{"patch": "a\\nb"}', "a\nb"),
        ('{"why": 1, "input": "a"}', "a"),
        ('{"a": "b", "c": "d"}', '{"a": "b", "c": "d"}'),
        ("*** Begin Patch", "*** Begin Patch"),
        ('"text"', '"text"'),
        # JSON that is none: a backslash that was not doubled, a line that was not escaped, an end that never came.
        (r'{"input": "\d\u00e9\ux\n"}', "\\dé\\ux\n"),
        ('{"input": "a\nb"}', "a\nb"),
        (r'{"input": "a\u00', "a"),
        # Half a character.
        (r'{"input": "\ud83d\n\ude00\ud83d\ud83d\ude00"}', "\ufffd\n\ufffd\ufffd😀"),
        (r'{"input": "a\\"}', "a\\"),
        (r'{"input": "a", "input": "b"}', "a"),
    ],
)
def test_the_text_of_a_custom_call_is_the_same_however_it_comes_in_pieces(arguments: str, text: str) -> None:
    for step in (1, 2, 7, len(arguments)):
        pieces = [arguments[at : at + step] for at in range(0, len(arguments), step)]
        [item], events = outcome(*called("apply_patch", *pieces))
        assert item.input == text, step
        assert "".join(e.delta for e in events if e.type == "response.custom_tool_call_input.delta") == text, step


def test_the_local_model_calls_a_custom_tool(upcall: Daemon) -> None:
    client = openai.OpenAI(base_url=f"{upcall.url}/v1", api_key="none", max_retries=0)
    chosen: Any = {"type": "custom", "name": "run", "namespace": "mcp__files"}
    asked: Any = {"model": "local", "input": "hello", "tools": TOOLS, "tool_choice": chosen, "stream": True}
    *_, last = client.responses.create(**asked)

    [item] = last.response.output
    assert (item.type, item.namespace, item.name) == ("custom_tool_call", "mcp__files", "run")
    assert not item.input.startswith("{")
