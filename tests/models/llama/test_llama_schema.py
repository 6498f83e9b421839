"""Structured output: what the model writes under a grammar always satisfies the schema it was asked for."""

import json
import re
from typing import Any

import pytest

from models.interface import FailureCode
from models.llama.model import LlamaModel
from models.llama.schema import Grammar
from models.llama.tools import CallForm, calls_rule
from tests.models.llama.conftest import ask

pytestmark = pytest.mark.asyncio(loop_scope="session")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer"},
        "city": {"anyOf": [{"const": "Rome"}, {"type": "null"}]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
    "$defs": {"tag": {"enum": ["a", 'b "quoted"', "c\\d"]}},
}
EITHER = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}, "b": {"const": 3}},
    "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    "$defs": {"a": {"required": ["a"]}},
}


def wanted(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


@pytest.mark.parametrize("seed", range(6))
async def test_any_sampled_answer_satisfies_the_schema(model: LlamaModel, seed: int) -> None:
    answer = await ask(
        model,
        "Invent a person.",
        response_format=wanted(PERSON),
        temperature=1.5,
        seed=seed,
        max_tokens=300,
    )
    assert answer.finish.reason == "stop"
    person = json.loads(answer.text())
    assert set(person) <= {"name", "age", "city", "tags"}
    assert isinstance(person["name"], str)
    assert len(person["name"]) <= 12
    assert isinstance(person.get("age", 0), int)
    assert person.get("city") in ("Rome", None)
    assert 1 <= len(person["tags"]) <= 2
    assert set(person["tags"]) <= {"a", 'b "quoted"', "c\\d"}


async def test_json_object_is_an_object_whatever_the_prompt_asks(model: LlamaModel) -> None:
    answer = await ask(
        model,
        "Write a poem, not JSON.",
        response_format={"type": "json_object"},
        max_tokens=400,
        temperature=0.8,
        seed=5,
    )
    text = answer.text()
    assert text.startswith("{")
    if answer.finish.reason == "stop":
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "integer"}, int),
        ({"type": ["boolean", "null"]}, (bool, type(None))),
        ({"prefixItems": [{"const": 1}, {"enum": ["x"]}], "type": "array"}, list),
        ({"allOf": [{"properties": {"a": {"type": "null"}}, "required": ["a"]}]}, dict),
        (True, object),
    ],
)
async def test_each_kind_of_schema_holds(model: LlamaModel, schema: Any, said: Any) -> None:
    answer = await ask(model, "Answer briefly.", response_format=wanted(schema), max_tokens=200)
    if answer.finish.reason == "stop":
        assert isinstance(json.loads(answer.text()), said)
    else:
        assert schema is True  # the only one here without an end of its own


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "strange"},
        {"$ref": "https://example.com/schema.json"},
        {"$ref": "#/$defs/missing"},
        {"$ref": "#"},
        {"enum": []},
        {"type": "string", "minLength": 10**9},
        {"type": "array", "minItems": 3, "maxItems": 2},
        {"type": "object", "properties": {}, "required": ["missing"], "additionalProperties": False},
        {"type": "object", "properties": {}, "required": "missing"},
        {"properties": {"a": {"items": "no schema"}}},
        False,
        "no schema",
        {"anyOf": [{"type": "string"}] * 5000 + [{"properties": {str(i): {} for i in range(5000)}}]},
    ],
)
async def test_schema_that_cannot_be_followed_is_a_bad_request_and_the_model_lives_on(
    model: LlamaModel, schema: Any
) -> None:
    failure = (await ask(model, "Hi", response_format=wanted(schema))).failure
    assert failure.code is FailureCode.BAD_REQUEST
    assert "\n" not in failure.message
    assert (await ask(model, "Hi", max_tokens=2)).usage.completion_tokens == 2


@pytest.mark.parametrize(
    ("others", "value"),
    [({}, "[^ ]"), ({"additionalProperties": True}, "[^ ]"), ({"additionalProperties": {"enum": [1, 2]}}, "[12]")],
)
async def test_what_is_required_without_a_schema_of_its_own_is_there(
    model: LlamaModel, others: dict[str, Any], value: str
) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 0}}, "required": ["b", "a"], **others}
    answer = await ask(model, "Hi", response_format=wanted(schema), max_tokens=60, temperature=0.8, seed=1)
    assert re.match(rf'\{{\s*"a":\s*0,\s*"b":\s*{value}', answer.text())


async def test_a_reference_of_one_tool_never_leads_into_another_tools_schema() -> None:
    grammar = Grammar()

    def tool(name: str, item: Any) -> Any:
        parameters = {"properties": {"x": {"$ref": "#/$defs/Item"}}, "$defs": {"Item": item}}
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    tools = [tool(f"f{number}", {"const": f"<{number}>"}) for number in range(20)]
    calls_rule(grammar, tools, CallForm.TAGGED, parallel=True, opened=False)

    assert all(grammar.text("").count(f"<{number}>") == 1 for number in range(20))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("schema", [EITHER, {**EITHER, "anyOf": [{"$ref": "#/$defs/a"}, {"required": ["b"]}]}])
async def test_alternatives_stand_beside_what_holds_for_all_of_them(model: LlamaModel, schema: Any, seed: int) -> None:
    answer = await ask(model, "Hi", response_format=wanted(schema), max_tokens=300, temperature=1.5, seed=seed)
    assert json.loads(answer.text()) in ({"a": 1}, {"a": 2}, {"b": 3}, {"a": 1, "b": 3}, {"a": 2, "b": 3})


NODE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"kids": {"type": "array", "items": {"type": "object", "oneOf": [{"$ref": "#/$defs/node"}]}}},
        },
        "and": {
            "type": "object",
            "properties": {"left": {"$ref": "#/$defs/any"}, "right": {"$ref": "#/$defs/any"}},
            "oneOf": [{"$ref": "#/$defs/any"}, {"required": ["left"]}, True],
        },
        "any": {
            "type": "object",
            "properties": {"x": {}},
            "anyOf": [{"$ref": "#/$defs/and"}, {"$ref": "#/$defs/node"}],
        },
    }
}


@pytest.mark.parametrize(
    "schema",
    [
        {**NODE, "$ref": "#/$defs/node"},
        {**NODE, "$ref": "#/$defs/any"},
        {"type": "object", "properties": {"a": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"type": "object", "additionalProperties": {"type": "string"}, "anyOf": [{"required": ["a"]}]},
    ],
)
async def test_alternatives_that_lead_back_or_name_what_is_not_there_have_a_grammar(schema: Any) -> None:
    assert Grammar().schema(schema)


async def test_alternatives_of_the_wrong_kind_are_refused_and_no_crash() -> None:
    for wrong in ({"properties": None}, {"required": "a"}):
        with pytest.raises(ValueError, match="must be"):
            Grammar().schema({"type": "object", "properties": {"a": {}}, "required": [], "anyOf": [wrong]})


async def test_deeply_nested_schema_is_refused_not_a_crash(model: LlamaModel) -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(500):
        schema = {"type": "array", "items": schema, "minItems": 1}
    assert (await ask(model, "Hi", response_format=wanted(schema))).failure.code is FailureCode.BAD_REQUEST


async def test_grammar_of_one_request_leaves_another_beside_it_free(model: LlamaModel) -> None:
    import asyncio

    free, bound = await asyncio.gather(
        ask(model, "Tell me a story."), ask(model, "Tell me a story.", response_format=wanted({"type": "integer"}))
    )
    assert isinstance(json.loads(bound.text()), int)
    assert len(free.text().split()) > 5
