"""Ollama's wire format, where its client libraries do not look."""

import http.client
import json
from typing import Any

import pytest

from daemon.api.ollama_request import ChatBody, GenerateBody
from tests.daemon.conftest import StartDaemon
from tests.daemon.harness import Daemon, wait_until

HELLO = [{"role": "user", "content": "hello"}]
SHORT = {"num_predict": 4, "temperature": 0}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"


def post(daemon: Daemon, path: str, body: object, **headers: str) -> tuple[int, str, list[Any]]:
    """Status, content type, and the objects that came, one a line."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.server.port, timeout=240)
    try:
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        lines = response.read().splitlines()
        return response.status, response.headers.get_content_type(), [json.loads(line) for line in lines]
    finally:
        connection.close()


def test_a_chat_streams_as_lines_unless_it_is_told_not_to(upcall: Daemon) -> None:
    body = {"model": "local:latest", "messages": HELLO, "options": SHORT}
    status, kind, lines = post(upcall, "/api/chat", body)
    _, whole_kind, [whole] = post(upcall, "/api/chat", {**body, "stream": False})

    assert (status, kind, whole_kind) == (200, "application/x-ndjson", "application/json")
    assert "".join(line["message"]["content"] for line in lines) == whole["message"]["content"]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    for last in (lines[-1], whole):
        assert (last["done_reason"], last["eval_count"]) == ("length", 4)
        assert last["total_duration"] == last["prompt_eval_duration"] + last["eval_duration"] > 0
        assert last["prompt_eval_count"] > 4


def test_a_prompt_may_have_a_system_text_and_a_schema(upcall: Daemon) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    body = {"model": "local", "system": "Choose.", "prompt": "One or two?", "format": schema, "stream": False}
    _, _, [said] = post(upcall, "/api/generate", body)

    assert json.loads(said["response"])["n"] in (1, 2)


def test_a_local_tool_call_comes_with_arguments_that_are_an_object(upcall: Daemon) -> None:
    parameters = {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"],
                  "additionalProperties": False}  # fmt: skip
    schema = {
        "type": "object",
        "properties": {"name": {"const": "get_weather"}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
    # SmolLM2 calls a tool only when made to, which Ollama's format cannot; its answer is read as a call all the same.
    body = {
        "model": "local", "messages": [{"role": "user", "content": "The weather in Oslo?"}],
        "options": {"temperature": 0},
        "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}],
        "format": schema,
    }  # fmt: skip
    status, _, lines = post(upcall, "/api/chat", body)
    calls = [call for line in lines for call in line["message"].get("tool_calls", ())]

    assert status == 200
    assert calls
    assert all(call["function"] == {"name": "get_weather", "arguments": {"city": "Oslo"}} for call in calls)


def test_a_result_that_names_its_tool_answers_that_tools_call() -> None:
    calls = [{"id": id, "function": {"name": name}} for id, name in (("1", "f"), ("2", "g"), ("3", "f"))]
    results = [{"role": "tool", "content": "x", **named} for named in ({"tool_name": "g"}, {}, {"tool_name": "f"})]
    body = ChatBody.model_validate({"messages": [*HELLO, {"role": "assistant", "tool_calls": calls}, *results]})
    said = [message["tool_call_id"] for message in body.request().messages if message["role"] == "tool"]
    assert said == ["2", "1", "3"]


def test_null_is_as_good_as_nothing_wherever_it_stands() -> None:
    said = dict.fromkeys(("model", "system", "images", "suffix", "template", "raw", "context", "options", "format"))
    assert GenerateBody.model_validate({**said, "prompt": "hello"}).request().messages == HELLO

    call = {"id": None, "function": {"name": "f", "arguments": None}}
    made = {"role": "assistant", "content": None, "images": None, "tool_calls": [call]}
    tool = {"type": None, "function": {"name": "f", "description": None, "parameters": None}}
    chat = ChatBody.model_validate({"messages": [*HELLO, made], "tools": [tool]}).request()
    assert chat.messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert chat.tools == [{"type": "function", "function": {"name": "f"}}]


def test_an_empty_conversation_only_loads_the_model(upcall: Daemon) -> None:
    for path, body in (("/api/chat", {"messages": []}), ("/api/generate", {"keep_alive": 0})):
        _, _, [said] = post(upcall, path, {"model": "local", **body})
        assert (said["done"], said["done_reason"]) == (True, "load")


def test_a_prompt_that_does_not_fit_is_an_error_and_never_cut_short(upcall: Daemon) -> None:
    long = [{"role": "user", "content": "word " * 20_000}]
    status, _, [said] = post(upcall, "/api/chat", {"model": "local", "messages": long, "options": {"num_ctx": 2048}})

    assert status == 400
    assert "context" in said["error"]


@pytest.mark.parametrize(
    ("path", "body", "hint"),
    [
        ("/api/chat", {"messages": [{"role": "wizard", "content": "x"}]}, "role"),
        ("/api/chat", {"messages": HELLO, "options": {"temperature": 9}}, "options.temperature"),
        ("/api/chat", {"messages": [{**HELLO[0], "images": ["data:image/png;base64,xx"]}]}, "base64"),
        ("/api/chat", {"messages": [{**HELLO[0], "images": ["QUJD"]}]}, "PNG"),
        ("/api/chat", {"messages": HELLO, "format": "xml"}, "format"),
        ("/api/generate", {"prompt": "x", "suffix": "y"}, "/api/chat"),
        ("/api/generate", {"prompt": "x", "raw": True}, "/api/chat"),
        ("/api/embed", {}, "input"),
        ("/api/show", {"model": "nothing"}, "not found"),
        ("/api/pull", {"model": "llama3"}, "upcall pull"),
        ("/api/create", {"model": "llama3"}, "local.model"),
    ],
)
def test_a_mistake_is_one_line_under_error(upcall: Daemon, path: str, body: dict[str, Any], hint: str) -> None:
    status, _, [said] = post(upcall, path, {"model": "local", **body})

    assert 400 <= status < 500
    assert hint in said["error"]
    assert said.keys() == {"error"}


def test_a_picture_that_nobody_here_can_see_is_refused(upcall: Daemon) -> None:
    status, _, [said] = post(upcall, "/api/chat", {"messages": [{**HELLO[0], "images": [PIXEL]}]})

    assert status == 400
    assert "image" in said["error"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Content-Type": "application/json"}, 200),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Sec-Fetch-Site": "cross-site"}, 415),
        ({"Referer": "https://attacker.example/"}, 415),
        ({"Accept-Language": "en"}, 415),
        ({"Origin": "null"}, 403),
    ],
)
def test_a_missing_content_type_is_taken_from_programs_and_not_from_pages(
    upcall: Daemon, headers: dict[str, str], status: int
) -> None:
    assert post(upcall, "/api/show", {"model": "local"}, **headers)[0] == status


def test_the_other_formats_want_the_content_type(upcall: Daemon) -> None:
    for path in ("/v1/chat/completions", "/v1/messages", "/upcall/privacy"):
        assert post(upcall, path, {})[0] in (405, 415)


def test_a_model_that_was_freed_is_not_said_to_run(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(LOCAL__IDLE_SECONDS="1")
    daemon.call(
        "POST", "/api/generate", {"model": "local", "prompt": "Hi", "stream": False, "options": {"num_predict": 1}}
    )
    wait_until(lambda: daemon.call("GET", "/healthz")["local"]["state"] == "unloaded")

    assert daemon.call("GET", "/api/ps") == {"models": []}
    assert daemon.call("GET", "/v1/models/local")["ready"] is True
