"""JSON schemas to GBNF, the grammar language of llama.cpp.

Enforced: types, `enum`, `const`, `properties`, `required`, `additionalProperties`, `items`, `prefixItems`, lengths of
arrays and strings, `anyOf`, `oneOf`, `allOf` of objects, `$ref` within the schema. What narrows a value further
(`pattern`, `minimum`, …) is not: a grammar cannot express most of it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Schema: TypeAlias = Mapping[str, Any] | bool

_MOST_RULES = 4000
_DEEPEST = 64
_LONGEST_REPEAT = 1000

# Whitespace is kept short: small models otherwise fill an answer with it.
_BASE = r"""
ws ::= | " " | "\n" [ \t]{0,20}
char ::= [^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})
string ::= "\"" char* "\""
integer ::= "-"? ("0" | [1-9] [0-9]{0,15})
number ::= integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})?
boolean ::= "true" | "false"
null ::= "null"
value ::= object | array | string | number | boolean | null
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? ws "}"
array ::= "[" ws (value ("," ws value)*)? ws "]"
""".strip()
_PRIMITIVES = frozenset({"string", "integer", "number", "boolean", "null", "object", "array"})


_CONSTRAINTS = frozenset(
    ("type", "properties", "required", "additionalProperties", "items", "prefixItems", "anyOf", "oneOf", "allOf",
     "minItems", "maxItems", "minLength", "maxLength")
)  # fmt: skip


class Grammar:
    """Collects rules; each method that adds some returns an expression for use in others.

    All raise `ValueError`, with one line for people, for a schema that cannot be turned into a grammar.
    """

    def __init__(self) -> None:
        self._rules: list[str] = []
        self._refs: dict[tuple[int, str], str] = {}
        self._kept: list[Schema] = []
        """While their addresses are in `_refs`: another schema could get the address of one that is gone."""

    def text(self, root: str) -> str:
        """The whole grammar, of which `root` is what an answer must be."""
        return "\n".join([f"root ::= {root}", _BASE, *self._rules])

    def schema(self, schema: Schema, document: Schema | None = None, depth: int = 0) -> str:
        """What satisfies `schema`, a part of `document` (or the whole)."""
        document = schema if document is None else document
        if depth > _DEEPEST:
            raise ValueError(f"the schema is nested more than {_DEEPEST} deep")
        if schema is True:
            return "value"
        if not isinstance(schema, Mapping):
            raise ValueError(f"{json.dumps(schema)[:60]} is not a schema that any value satisfies")
        if "$ref" in schema:
            return self._ref(schema["$ref"], document, depth)
        if "const" in schema:
            return literal(_dump(schema["const"]))
        if "enum" in schema:
            return self._any([literal(_dump(value)) for value in _list(schema, "enum")])
        for key in ("anyOf", "oneOf"):
            if key in schema:
                count = len(_list(schema, key))
                return self._any([self._alternative(schema, key, index, document, depth) for index in range(count)])
        if "allOf" in schema:
            return self.schema(_merged(schema, document), document, depth + 1)
        kinds = schema.get("type", _implied_type(schema))
        if isinstance(kinds, list):
            return self._any([self.schema({**schema, "type": kind}, document, depth + 1) for kind in kinds])
        return self._typed(kinds, schema, document, depth)

    def rule(self, expression: str) -> str:
        """A name for `expression`."""
        if len(self._rules) >= _MOST_RULES:
            raise ValueError(f"the schema needs more than {_MOST_RULES} grammar rules")
        self._rules.append(f"r{len(self._rules)} ::= {expression}")
        return f"r{len(self._rules) - 1}"

    def _typed(self, kind: Any, schema: Mapping[str, Any], document: Schema, depth: int) -> str:
        if kind is None:
            return "value"
        if kind not in _PRIMITIVES:
            raise ValueError(f"{json.dumps(kind)[:60]} is not a JSON type")
        if kind == "object" and ("properties" in schema or isinstance(schema.get("additionalProperties"), Mapping)):
            return self._object(schema, document, depth)
        if kind == "array" and ("items" in schema or "prefixItems" in schema or "minItems" in schema):
            return self._array(schema, document, depth)
        if kind == "string" and ("minLength" in schema or "maxLength" in schema):
            return rf'"\"" char{_repeat(schema, "minLength", "maxLength")} "\""'
        return str(kind)

    def _object(self, schema: Mapping[str, Any], document: Schema, depth: int) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", ())
        if not isinstance(properties, Mapping):
            raise ValueError("'properties' must be an object")
        if not isinstance(required, list | tuple) or not all(isinstance(name, str) for name in required):
            raise ValueError("'required' must be a list of names")
        if beyond := [name for name in required if name not in properties]:
            others = schema.get("additionalProperties", True)
            if others is False:
                raise ValueError(f"'required' names {beyond[0][:60]!r}, which 'additionalProperties' rules out")
            properties = {**properties, **dict.fromkeys(beyond, others)}
        more = schema.get("additionalProperties", False)
        extra = None
        if more is not False:
            extra = self.rule(f'string ":" ws {self.schema(more, document, depth + 1)}')
        # `first` lists the properties from here on if none came before, `rest` if one did; built from the last on.
        first = f'({extra} ("," ws {extra})*)?' if extra else '""'
        rest = f'("," ws {extra})*' if extra else '""'
        for name, part in reversed(list(properties.items())):
            value = self.schema(part, document, depth + 1)
            pair = self.rule(f'{literal(_dump(name))} ":" ws {value}')
            if name in required:
                first, rest = f"{pair} {rest}", f'"," ws {pair} {rest}'
            else:
                first, rest = f"{pair} {rest} | {first}", f'("," ws {pair})? {rest}'
            first, rest = self.rule(first), self.rule(rest)
        return self.rule(f'"{{" ws {first} ws "}}"')

    def _array(self, schema: Mapping[str, Any], document: Schema, depth: int) -> str:
        leading = [self.schema(item, document, depth + 1) for item in schema.get("prefixItems", ())]
        if leading:
            return self.rule('"[" ws ' + ' "," ws '.join(leading) + ' ws "]"')
        item = self.rule(self.schema(schema.get("items", True), document, depth + 1))
        least = schema.get("minItems", 0)
        repeat = _repeat(schema, "minItems", "maxItems", less=1)
        if schema.get("maxItems") == 0:
            return self.rule('"[" ws "]"')
        items = f'{item} ("," ws {item}){repeat}'
        return self.rule(f'"[" ws {items} ws "]"' if least else f'"[" ws ({items})? ws "]"')

    def _ref(self, pointer: Any, document: Schema, depth: int) -> str:
        target = _resolve(str(pointer), document)
        return self._once((id(document), str(pointer)), document, target, document, depth)

    def _alternative(self, schema: Mapping[str, Any], key: str, index: int, document: Schema, depth: int) -> str:
        part = schema[key][index]
        whole = _beside(schema, key, part, document)
        if whole is part:
            return self.schema(part, document, depth + 1)
        return self._once((id(schema), f"{key}/{index}"), schema, whole, document, depth)

    def _once(self, place: tuple[int, str], kept: Schema, schema: Schema, document: Schema, depth: int) -> str:
        """The rule for the `schema` that stands at that place of `kept`."""
        if place not in self._refs:
            self._kept.append(kept)
            # Named before it is built, so that a schema may contain itself.
            self._refs[place] = name = self.rule("")
            self._rules[int(name[1:])] = f"{name} ::= {self.schema(schema, document, depth + 1)}"
        return self._refs[place]

    def _any(self, expressions: Sequence[str]) -> str:
        return self.rule(" | ".join(expressions))


def literal(text: str) -> str:
    """A GBNF expression for exactly `text`."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(character, character) for character in text) + '"'


def _resolve(pointer: str, document: Schema) -> Schema:
    if pointer != "#" and not pointer.startswith("#/"):
        raise ValueError(f"$ref {pointer[:60]!r} leads out of the schema")
    target: Any = document
    for step in pointer.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(target, Mapping) or step not in target:
            raise ValueError(f"$ref {pointer[:60]!r} leads nowhere")
        target = target[step]
    return target  # type: ignore[no-any-return]


def _merged(schema: Mapping[str, Any], document: Schema) -> dict[str, Any]:
    """One object schema for an `allOf` of them."""
    merged = {key: value for key, value in schema.items() if key != "allOf"}
    for part in _list(schema, "allOf"):
        part = _target(part, document)
        if not isinstance(part, Mapping):
            raise ValueError("'allOf' must be a list of object schemas")
        merged |= {key: value for key, value in part.items() if key not in ("properties", "required")}
        if "properties" in part:
            said = merged.get("properties", {}), part["properties"]
            if not all(isinstance(each, Mapping) for each in said):
                raise ValueError("'properties' must be an object")
            merged["properties"] = {**said[0], **said[1]}
        if "required" in part:
            names = merged.get("required", []), part["required"]
            if not all(isinstance(each, list | tuple) for each in names):
                raise ValueError("'required' must be a list")
            merged["required"] = [*names[0], *names[1]]
    return merged


def _beside(schema: Mapping[str, Any], key: str, part: Schema, document: Schema) -> Schema:
    """One of the alternatives under `key`, with what `schema` asks for beside them."""
    rest = {name: value for name, value in schema.items() if name != key}
    held_to = rest.keys() & _CONSTRAINTS
    target = _target(part, document)
    if target is True and held_to:
        return rest
    # What leads on to alternatives of its own may lead back here.
    if not held_to or not isinstance(target, Mapping) or target.keys() & {"anyOf", "oneOf", "$ref"}:
        return part
    whole = _merged({**rest, "allOf": [*rest.get("allOf", ()), part]}, document)
    known = whole.get("properties", {})
    # One that only an alternative names may be anything, or not be there.
    whole["required"] = [name for name in whole.get("required", ()) if name in known]
    return whole


def _target(part: Any, document: Schema) -> Any:
    """What a schema is once its references are followed, as far as that leads."""
    hops = 0
    while isinstance(part, Mapping) and "$ref" in part and hops < _DEEPEST:
        part, hops = _resolve(str(part["$ref"]), document), hops + 1
    return part


def _implied_type(schema: Mapping[str, Any]) -> str | None:
    for kind, keys in {"object": ("properties", "additionalProperties"), "array": ("items", "prefixItems")}.items():
        if any(key in schema for key in keys):
            return kind
    return None


def _repeat(schema: Mapping[str, Any], least_key: str, most_key: str, *, less: int = 0) -> str:
    """GBNF's `{least,most}`, each lowered by `less`; an upper bound too large for llama.cpp's parser is left out."""
    least, most = schema.get(least_key, 0), schema.get(most_key)
    for bound in (least, most):
        if bound is not None and (not isinstance(bound, int) or bound < 0):
            raise ValueError(f"{least_key} and {most_key} must be whole numbers from 0")
    if least > _LONGEST_REPEAT or (most is not None and most < least):
        raise ValueError(f"{least_key} must be at most {_LONGEST_REPEAT} and at most {most_key}")
    least = max(least - less, 0)
    if most is None or most > _LONGEST_REPEAT:
        return f"{{{least},}}"
    return f"{{{least},{max(most - less, 0)}}}"


def _list(schema: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = schema[key]
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{key!r} must be a list that is not empty")
    return value


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
