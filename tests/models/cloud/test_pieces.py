"""The pieces of an answer as providers of OpenAI's format send them who do so in their own way."""

from typing import Any

from pydantic import TypeAdapter

from models.cloud.answer import Answer
from models.cloud.completions import Chunk
from models.interface import ChatRequest, ToolCallDelta

_CHUNK = TypeAdapter(Chunk)


def calls(*deltas: dict[str, Any]) -> list[tuple[int, str | None, str | None, str]]:
    answer = Answer(ChatRequest(messages=[]))
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    chunks = [{"choices": [{"index": 0, "delta": {"tool_calls": [delta]}}]} for delta in deltas]
    events = [event for chunk in (*chunks, last) for event in answer.read(_CHUNK.validate_python(chunk))]
    return [(e.index, e.id, e.name, e.arguments) for e in events if isinstance(e, ToolCallDelta)]


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
