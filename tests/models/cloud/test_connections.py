"""Connections to a provider: refused, left by the client, over TLS, through a proxy."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from models.interface import FailureCode, TextDelta
from tests.emulators.upstream import Call, Upstream, answer, certificate, serving
from tests.models.cloud.asking import ask, events, failure, text
from tests.models.cloud.conftest import Cloud
from tests.models.cloud.misbehaving import PROMPT, SECRET, error, hang, shown_nothing


async def test_a_refused_connection_is_retried_and_then_said(cloud: Cloud, provider: str, upstream: Upstream) -> None:
    model = cloud(provider, "http://127.0.0.1:9", key=SECRET, max_retries=1)
    ended = failure(await events(model, ask(PROMPT)))
    assert ended.code is FailureCode.UNAVAILABLE
    assert "cannot be reached" in ended.message
    assert shown_nothing(ended.message)


# --- the client leaves --------------------------------------------------------------------------------------------


async def test_closing_the_answer_closes_the_providers_connection(
    cloud: Cloud, provider: str, upstream: Upstream
) -> None:
    async def endless(call: Call) -> None:
        await call.send(*call.begin)
        while True:
            await call.send(call.text("x"))
            await asyncio.sleep(0.01)

    upstream.script = endless
    model = cloud(provider, upstream.base_url(provider))
    async with aclosing(model.chat(ask("hello"))) as got:
        async for event in got:
            if isinstance(event, TextDelta):
                break
    await asyncio.wait_for(upstream.calls[0].left.wait(), 60)
    upstream.script = answer
    assert text(await events(model, ask("hello"))) == "Hello"


async def test_cancelling_before_the_first_byte_closes_the_providers_connection(
    cloud: Cloud, provider: str, upstream: Upstream
) -> None:
    upstream.script = hang
    model = cloud(provider, upstream.base_url(provider))
    asking = asyncio.create_task(events(model, ask("hello")))
    await upstream.asked.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.wait_for(upstream.calls[0].left.wait(), 60)


async def test_cancelling_during_a_retry_pause_asks_no_more(cloud: Cloud, provider: str, upstream: Upstream) -> None:
    upstream.script = lambda call: error(call, 429, **{"Retry-After": "2"})
    model = cloud(provider, upstream.base_url(provider), max_retries=5)
    asking = asyncio.create_task(events(model, ask("hello")))
    await upstream.asked.wait()
    await asyncio.sleep(0.1)
    asking.cancel()
    await asyncio.sleep(2.5)
    assert len(upstream.calls) == 1


async def test_closing_the_model_ends_what_runs_with_a_failure(cloud: Cloud, provider: str, upstream: Upstream) -> None:
    async def begin_only(call: Call) -> None:
        await call.send(*call.begin, call.text("x"))
        await asyncio.sleep(60)

    upstream.script = begin_only
    model = cloud(provider, upstream.base_url(provider))
    asking = asyncio.create_task(events(model, ask("hello")))
    await upstream.asked.wait()
    await asyncio.sleep(0.2)
    await model.close()
    assert failure(await asyncio.wait_for(asking, 60)).code in (FailureCode.UPSTREAM, FailureCode.UNAVAILABLE)


# --- TLS and proxies ----------------------------------------------------------------------------------------------


async def over_tls(both: Path, ask_it: Callable[[Upstream], Awaitable[None]]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    servers: AsyncIterator[Upstream] = serving(context)
    async for server in servers:
        await ask_it(server)


async def test_a_certificate_authority_from_the_configuration_is_trusted(
    cloud: Cloud, provider: str, tmp_path: Path
) -> None:
    both, trusted = certificate(tmp_path, "127.0.0.1")

    async def ask_it(server: Upstream) -> None:
        model = cloud(provider, server.base_url(provider), ca_bundle=str(trusted))
        assert text(await events(model, ask("hello"))) == "Hello"

    await over_tls(both, ask_it)


async def test_a_certificate_authority_of_the_machine_is_trusted(
    cloud: Cloud, provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, trusted = certificate(tmp_path, "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))  # in the place of the machine's own list

    async def ask_it(server: Upstream) -> None:
        assert text(await events(cloud(provider, server.base_url(provider)), ask("hello"))) == "Hello"

    await over_tls(both, ask_it)


@pytest.mark.parametrize("wrong", ["unknown authority", "other host"])
async def test_a_wrong_certificate_is_refused_without_a_retry_before_anything_is_sent(
    cloud: Cloud, provider: str, tmp_path: Path, wrong: str
) -> None:
    both, trusted = certificate(tmp_path, "127.0.0.1" if wrong == "unknown authority" else "api.openai.com")

    async def ask_it(server: Upstream) -> None:
        bundle = None if wrong == "unknown authority" else str(trusted)
        model = cloud(provider, server.base_url(provider), key=SECRET, max_retries=50, ca_bundle=bundle)
        ended = failure(await asyncio.wait_for(events(model, ask(PROMPT)), 60))
        assert ended.code is FailureCode.UNAVAILABLE
        assert "No trusted connection" in ended.message
        assert shown_nothing(ended.message)
        assert server.calls == []

    await over_tls(both, ask_it)


async def test_plain_http_where_tls_is_spoken_is_said(cloud: Cloud, provider: str, upstream: Upstream) -> None:
    model = cloud(provider, upstream.base_url(provider).replace("http:", "https:"))
    ended = failure(await events(model, ask("hello")))
    assert ended.code is FailureCode.UNAVAILABLE
    assert "No trusted connection" in ended.message


async def test_a_missing_ca_bundle_is_said_by_name(cloud: Cloud, provider: str, upstream: Upstream) -> None:
    ended = failure(await events(cloud(provider, upstream.base_url(provider), ca_bundle="/nowhere.pem"), ask("hello")))
    assert "/nowhere.pem" in ended.message


async def test_a_proxy_from_the_configuration_is_used(cloud: Cloud, provider: str, upstream: Upstream) -> None:
    model = cloud(provider, "http://provider.invalid/v1", proxy=upstream.url)
    assert text(await events(model, ask("hello"))) == "Hello"
    assert upstream.calls[0].headers["host"] == "provider.invalid"
