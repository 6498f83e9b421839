"""upcall's own description of itself: true, and no request that it allows or forbids breaks the daemon."""

import asyncio
from collections import Counter
from collections.abc import Iterator

import aiohttp
import pytest
from multidict import CIMultiDict

from daemon.api.openapi import document
from tests.daemon.conftest import Escalating
from tests.daemon.harness import Daemon
from tests.daemon.made_requests import Request, made_requests
from tests.emulators.upstream import Call, Upstream, chunk

REQUESTS = 10_000
MADE = 400
"""Of these are made up by schemathesis, beside those with every parameter at and beyond its bounds; the rest are
crossed from them."""
CONNECTIONS = 8
SHORT = {"ROUTING__THRESHOLD": "0", "LOCAL__MAX_TOKENS": "4", "LOCAL__CONTEXT_LENGTH": "256"}
"""Generating text is not what is tested: most goes to a cloud, and what stays is short."""
ENDLESS = "/upcall/events"
"""Answers for as long as it is listened to."""


def test_the_document_names_every_route_that_is_served(upcall: Daemon) -> None:
    served = upcall.call("GET", "/openapi.json")

    assert served == document()
    # The dashboard's page and files are no API.
    assert set(served["paths"]) == {path for path in upcall.paths() if path != "/" and not path.startswith("/web/")}


@pytest.mark.timeout(1800)
async def test_no_request_of_ten_thousand_made_from_the_document_and_at_its_limits_is_a_server_error(
    escalating: Escalating, upstream: Upstream
) -> None:
    upstream.script = _answer_shortly
    daemon = escalating(upstream.base_url("openai"), **SHORT)
    described = document()
    del described["paths"][ENDLESS]
    requests = made_requests(described, MADE, REQUESTS, seed=0)
    # Last, and after every answer, which a switch to privacy mode would rightly cut off.
    switches = [request for request in requests if request.method == "PUT"]
    rest = [request for request in requests if request.method != "PUT"]
    statuses = Counter[int]()
    async with aiohttp.ClientSession(daemon.url, timeout=aiohttp.ClientTimeout(total=600)) as session:
        for waiting in (iter(rest), iter(switches)):
            await asyncio.gather(*(_send(session, waiting, statuses) for _ in range(CONNECTIONS)))

    print(f"{statuses.total()} requests: {dict(statuses)}")
    assert statuses.total() == REQUESTS
    # Few that a schema allows are also chats that make sense; test_fuzz.py has those.
    assert statuses[200] > REQUESTS / 200
    assert statuses[400] > REQUESTS / 2
    assert daemon.call("GET", "/healthz")["local"]["state"] == "ready"


async def _answer_shortly(call: Call) -> None:
    choices = range(call.body.get("n") or 1)
    await call.send(*(chunk({"content": "Hi"}, index, finish_reason="stop") for index in choices), "[DONE]")


async def _send(session: aiohttp.ClientSession, waiting: Iterator[Request], statuses: Counter[int]) -> None:
    for request in waiting:
        headers = CIMultiDict(request.headers)
        if request.body:
            headers.setdefault("Content-Type", "application/json")
        async with session.request(request.method, request.target, data=request.body, headers=headers) as response:
            answer = await response.read()
            assert response.status < 500, (request, answer)
            statuses[response.status] += 1
