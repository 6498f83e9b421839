"""Requests that schemathesis makes from an OpenAPI document, and many more by crossing them.

First all that have a parameter at or beyond one of its bounds. Making one up beside these takes some 50 ms, nearly all
of it for drawing values; crossing two takes none. So a few hundred are made up, right ones and wrong ones of each
operation, and each further one has its parts from two of the same operation.
"""

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any
from urllib.parse import urlencode

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.config import GenerationConfig
from schemathesis.core import NOT_SET
from schemathesis.generation import GenerationMode

WITHOUT_BODY = 10
"""Cases of an operation that takes no body: there is little to make up."""
FEW_TOKENS = 4
STAYING = 1 / 8
"""Of those that name what keeps an answer here: the local model takes a hundred times as long as all else."""
WRITTEN_ANEW = {
    "Accept", "Accept-Encoding", "Connection", "Content-Length", "Transfer-Encoding", "User-Agent",
    "X-Schemathesis-TestCaseId",
}  # fmt: skip
"""By whoever sends the request."""
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict", "n")


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes | None


def made_requests(document: Mapping[str, Any], making: int, total: int, seed: int) -> list[Request]:
    """`total` different requests: those at the bounds, and others crossed from `making`, as many of each operation that
    takes a body."""
    chance = random.Random(seed)
    operations = [result.ok() for result in schemathesis.openapi.from_dict(dict(document)).get_all_operations()]
    rich = [operation for operation in operations if operation.body]
    cases = {op.label: _cases(op, making // len(rich) if op in rich else WITHOUT_BODY) for op in operations}
    bounds = chain.from_iterable(map(_at_bounds, operations))
    made = dict.fromkeys(each if chance.random() < STAYING else _free_to_go_up(each) for each in bounds)
    made |= dict.fromkeys(_request(case, case.body) for drawn in cases.values() for case in chain(*drawn))
    while len(made) < total:
        right, wrong = cases[chance.choice(rich).label]
        # Half of them of right ones alone: a single wrong part decides the answer, and hides what the others would do.
        one, other = chance.choices(right if chance.random() < 0.5 else right + wrong, k=2)
        request = _request(one, _crossed(one.body, other.body, chance))
        made[request if chance.random() < STAYING else _free_to_go_up(request)] = None
    return list(made)


def _at_bounds(operation: Any) -> Iterator[Request]:
    cases = operation.schema.iter_coverage_cases(
        operation=operation, generation_modes=list(GenerationMode), generation_config=GenerationConfig()
    )
    for case in cases:
        sent = requests.Request(**case.as_transport_kwargs(base_url="http://localhost")).prepare()
        body = sent.body.encode() if isinstance(sent.body, str) else sent.body
        headers = tuple((name, value) for name, value in sent.headers.items() if name not in WRITTEN_ANEW)
        yield Request(sent.method or "GET", sent.path_url, headers, body)


def _free_to_go_up(request: Request) -> Request:
    stay = {("x-upcall-privacy", "on"), ("x-upcall-route", "local"), ("x-upcall-threshold", "1")}
    headers = tuple(each for each in request.headers if (each[0].lower(), each[1].rstrip("0").rstrip(".")) not in stay)
    if request.body and b'"messages"' in request.body and b'"user"' not in request.body:
        # The router has nothing to score, which would keep it here.
        headers = (*(each for each in headers if each[0].lower() != "x-upcall-route"), ("x-upcall-route", "cloud"))
    return replace(request, headers=headers)


def _cases(operation: Any, count: int) -> list[list[Any]]:
    """Half of them as the document allows, half of them not."""
    return [_drawn(operation, mode, count // 2) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)]


def _drawn(operation: Any, mode: GenerationMode, count: int) -> list[Any]:
    cases: list[Any] = []

    @settings(
        max_examples=count,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def collect(case: Any) -> None:
        cases.append(case)

    try:
        collect()
    except Unsatisfiable:
        assert not operation.body, f"nothing can be made up for {operation.label}"
    return cases


def _crossed(one: Any, other: Any, chance: random.Random) -> Any:
    """Each part from either; parts that both have are crossed themselves."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {
            key: _crossed(one[key], other[key], chance) if key in one and key in other else (one | other)[key]
            for key in one | other
            if chance.random() < (0.9 if key in one else 0.5)
        }
    if isinstance(one, list) and isinstance(other, list):
        return [*one[: chance.randint(0, len(one))], *other[chance.randint(0, len(other)) :]]
    return one if other is NOT_SET or chance.random() < 0.5 else other


def _request(case: Any, body: Any) -> Request:
    query = f"?{urlencode(case.query, doseq=True)}" if case.query else ""
    # What is asked for decides the answer's length, and generating text is not what is tested.
    encoded = None if body is NOT_SET else body if isinstance(body, bytes) else json.dumps(_shortened(body)).encode()
    return Request(case.method, case.formatted_path + query, tuple(case.headers.items()), encoded)


def _shortened(body: Any) -> Any:
    if isinstance(body, dict):
        return {
            key: FEW_TOKENS if key in LENGTHS and _is_long(value) else _shortened(value) for key, value in body.items()
        }
    return body


def _is_long(length: Any) -> bool:
    # Ollama takes a negative one for no limit.
    return isinstance(length, int | float) and (length > FEW_TOKENS or length < 0)
