"""Ten thousand requests that are nearly right: what schema-made requests seldom are, and clients often."""

import copy
import http.client
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.daemon.harness import Daemon

REQUESTS = 10_000
VALID: dict[str, Any] = {
    "model": "local",
    "messages": [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "done"},
        {"role": "user", "content": "And now?"},
    ],
    "max_tokens": 1,
    "temperature": 0.5,
    "stop": ["."],
    "seed": 1,
    "n": 1,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
    "response_format": {"type": "json_object"},
    "logit_bias": {"5": 1},
    "stream_options": {"include_usage": True},
}
ODD: list[Any] = [
    None, True, 0, -1, 1, 2**31, -(2**63), 2**64, 1e308, -0.0, "", "\u0000", "\U0001f600", "a" * 5000, [], [[]], [None],
    {}, {"": ""}, {"type": "text"}, {"$ref": "#"}, "auto", "router-mf-0.5", "json_schema", "required", "none", "tool",
]  # fmt: skip


@pytest.mark.timeout(1800)
def test_no_nearly_right_request_of_ten_thousand_is_a_server_error(upcall: Daemon) -> None:
    chance = random.Random(0)
    connection = http.client.HTTPConnection("127.0.0.1", upcall.server.port, timeout=120)
    statuses: dict[int, int] = {}
    for number in range(REQUESTS):
        body = json.dumps(_mutated(chance)).encode()
        if chance.random() < 0.1:
            body = _damaged(body, chance)
        # Every twentieth is answered for real.
        path = "/v1/chat/completions" if number % 20 == 0 else "/v1/route"
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        assert response.status < 500, (path, body.decode(errors="replace"), answer)
        statuses[response.status] = statuses.get(response.status, 0) + 1

    assert upcall.call("GET", "/healthz")["local"]["state"] == "ready"
    assert statuses[200] > REQUESTS / 20
    assert statuses[400] > REQUESTS / 20


def _mutated(chance: random.Random) -> Any:
    body = copy.deepcopy(VALID)
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
        holder, key = chance.choice(list(_places(body)))
        change = chance.random()
        if change < 0.2:
            holder.pop(key)
        elif change < 0.3 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(chance.choice(ODD))
    # What the local model writes is short, whatever was asked for.
    if isinstance(body.get("max_tokens"), int) and body["max_tokens"] > 4:
        body["max_tokens"] = 4
    return body


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(inside):
        yield value, key
        yield from _places(item)


def _damaged(body: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(body) or 1)
    return body[:at] + bytes([chance.randrange(256)]) + body[at + chance.choice((0, 1, 5)) :]
