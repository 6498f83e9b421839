"""OpenAI's `/v1/responses` in chat's words, as its clients without a state send it."""

import http.client
import json
from typing import Any

import pytest

from daemon.api.errors import ApiError
from daemon.api.reading import check
from daemon.api.responses_request import ResponsesBody
from models.interface import ChatRequest
from tests.daemon.harness import Daemon

LOOK: dict[str, Any] = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}
PATCH: dict[str, Any] = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"},
}
FILES: dict[str, Any] = {
    "type": "namespace",
    "name": "mcp__files",
    "description": "Files of the house.",
    "tools": [{**LOOK, "description": "Looks."}, {"type": "custom", "name": "run"}, {"type": "web_search"}],
}
OTHERS: list[dict[str, Any]] = [{"type": "web_search", "external_web_access": False}, {"type": "tool_search"}]
PICTURE = "data:image/png;base64,iVBORw0KGgo="


def read(**body: Any) -> ChatRequest:
    return check(ResponsesBody, {"input": "hello", **body}).request()


def text(words: str, kind: str = "input_text") -> dict[str, str]:
    return {"type": kind, "text": words}


def test_tools_that_cannot_be_functions_are_left_out_with_a_warning(upcall: Daemon) -> None:
    body = {"model": "gpt-5-codex", "input": "hello", "tools": [LOOK, PATCH, FILES, *OTHERS], "max_output_tokens": 1}
    connection = http.client.HTTPConnection("127.0.0.1", upcall.server.port, timeout=240)
    connection.request("POST", "/v1/responses", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()

    assert response.status == 200, response.read()
    assert response.headers["x-upcall-reason"] != "tools"
    assert response.headers["x-upcall-warning"] == (
        "unknown model name, routed as auto; left out tools of type tool_search, web_search"
    )
    connection.close()


def test_a_function_goes_on_with_what_chat_knows_of_it() -> None:
    said = read(tools=[{**LOOK, "defer_loading": True}, *OTHERS], tool_choice={"type": "function", "name": "look"})

    function = {"name": "look", "parameters": {"type": "object"}, "strict": False}
    assert said.tools == [{"type": "function", "function": function}]
    assert said.tool_choice == {"type": "function", "function": {"name": "look"}}


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ({"tools": OTHERS, "tool_choice": {"type": "web_search"}}, "tool_choice: 'web_search' is not among the tools"),
        ({"tools": [LOOK], "tool_choice": {"type": "custom", "name": "look"}}, "'look' is not among the tools"),
        ({"tools": [LOOK], "tool_choice": {"type": "function", "name": "hear"}}, "'hear' is not among the tools"),
        ({"tools": [FILES], "tool_choice": {"type": "function", "name": "look"}}, "'look' is not among the tools"),
        ({"tools": OTHERS, "tool_choice": "required"}, "tool_choice: there is no tool to call"),
        ({"tools": [{"type": "function"}]}, "a tool of type function needs a name"),
        ({"tools": [{"type": "namespace", "tools": [LOOK]}]}, "a tool of type namespace needs a name"),
        ({"tools": [{"type": "namespace", "name": "a", "tools": [{"type": "custom"}]}]}, "custom needs a name"),
        ({"input": [{"type": "custom_tool_call", "call_id": "1", "name": "f"}]}, "custom_tool_call needs input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "store: false (AI SDK: openai.chat('auto')"),
        ({"input": [{"type": "computer_call"}]}, "cannot be read; there are message, function_call"),
    ],
)
def test_what_cannot_be_done_here_is_refused_and_said(body: dict[str, Any], hint: str) -> None:
    with pytest.raises(ApiError) as refused:
        read(**body)
    assert (refused.value.status, hint in refused.value.message) == (400, True), refused.value.message


def test_what_a_provider_did_of_its_own_is_passed_over_in_a_history() -> None:
    said = read(
        input=[
            {"role": "user", "content": "hello"},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "x"}},
            {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "iVBORw0KGgo="},
            {"role": "assistant", "content": [text("Hi.", "output_text")]},
        ]
    )
    assert [message["content"] for message in said.messages] == ["hello", "Hi."]


def test_what_a_developer_says_is_the_system_message_that_every_server_knows_and_text_is_a_string() -> None:
    said = read(
        instructions="Be brief.",
        input=[
            {"role": "developer", "content": [text("Use tools."), text("Ask first.")]},
            {"role": "system", "content": "In English."},
            {"role": "user", "content": [text("hello")]},
            {"role": "assistant", "content": [text("Hi.", "output_text")]},
            {"role": "user", "content": [text("What is it?"), {"type": "input_image", "image_url": PICTURE}]},
        ],
    )
    assert said.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "Use tools.\nAsk first."},
        {"role": "system", "content": "In English."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "Hi."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is it?"},
                {"type": "image_url", "image_url": {"url": PICTURE}},
            ],
        },
    ]


@pytest.mark.parametrize("rest", [[], [{"role": "user", "content": "And now?"}]])
def test_pictures_in_results_follow_in_a_users_message_behind_the_last_of_them(rest: list[dict[str, Any]]) -> None:
    calls = [{"type": "function_call", "call_id": id, "name": "look", "arguments": "{}"} for id in ("1", "2")]
    outputs = [
        {"type": "function_call_output", "call_id": "1",
         "output": [text("A cat"), {"type": "input_image", "image_url": PICTURE}, text("or a dog.")]},
        {"type": "function_call_output", "call_id": "2", "output": "nothing"},
    ]  # fmt: skip
    said = read(input=[*calls, *outputs, *rest]).messages

    assert said[1:] == [
        {"role": "tool", "tool_call_id": "1", "content": "A cat\nor a dog."},
        {"role": "tool", "tool_call_id": "2", "content": "nothing"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURE}}]},
        *rest,
    ]


@pytest.mark.parametrize("tools", [None, [], OTHERS])
def test_nothing_is_said_about_tools_where_there_are_none(tools: list[Any] | None) -> None:
    said = read(tools=tools, tool_choice="auto", parallel_tool_calls=True)
    assert (said.tools, said.tool_choice, said.extra) == ([], None, {})
    assert read(tools=[LOOK], tool_choice="auto", parallel_tool_calls=False).extra == {"parallel_tool_calls": False}


def test_of_other_fields_those_go_on_that_chat_has_too() -> None:
    shared = {
        "user": "me", "safety_identifier": "me", "prompt_cache_key": "k", "prompt_cache_retention": "24h",
        "service_tier": "flex",
    }  # fmt: skip
    own = {"max_tool_calls": 3, "client_metadata": {"a": "b"}, "context_management": [{"type": "compaction"}]}
    said = read(**shared, **own, reasoning={"effort": "low", "summary": "auto"}, text={"verbosity": "low"})
    assert said.extra == {**shared, "reasoning_effort": "low", "verbosity": "low"}
