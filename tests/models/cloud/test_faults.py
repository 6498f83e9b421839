"""What becomes of a provider that misbehaves: an emulator that breaks on demand and grades its client, and worse."""

import asyncio
import time

import pytest

from models.interface import ChatRequest, FailureCode, Finish, Progress, TextDelta, Usage, Verbatim
from tests.emulators.servers import Emulator
from tests.emulators.upstream import Call, Upstream, answer
from tests.models.cloud.asking import ask, events, failure, text
from tests.models.cloud.conftest import Cloud
from tests.models.cloud.misbehaving import PROMPT, SECRET, error, hang, shown_nothing

# --- graded by llmock ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503, 529])
async def test_a_passing_fault_is_retried_and_the_grader_finds_nothing(
    cloud: Cloud, provider: str, llmock: Emulator, status: int
) -> None:
    fault = {"type": "fail", "status": status, "times": 1}
    llmock.fail({**fault, "retry_after": 1} if status == 429 else fault)
    got = await events(cloud(provider, llmock.base_url(provider), max_retries=2), ask("hello"))
    assert Finish("stop") in got
    verdict = llmock.verdict()
    assert (verdict["attempts"], verdict["findings"]) == (2, [])


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (429, FailureCode.RATE_LIMITED),
        (500, FailureCode.UPSTREAM),
        (502, FailureCode.UPSTREAM),
        (529, FailureCode.UPSTREAM),
    ],
)
async def test_a_lasting_fault_is_given_up_after_the_configured_retries(
    cloud: Cloud, provider: str, llmock: Emulator, status: int, code: FailureCode
) -> None:
    llmock.fail({"type": "fail", "status": status, "times": 9})
    ended = failure(await events(cloud(provider, llmock.base_url(provider), max_retries=2), ask("hello")))
    assert ended.code is code
    verdict = llmock.verdict()
    assert (verdict["attempts"], verdict["findings"]) == (3, [])


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, FailureCode.BAD_REQUEST),
        (401, FailureCode.AUTHENTICATION),
        (403, FailureCode.AUTHENTICATION),
        (404, FailureCode.UNAVAILABLE),
        (422, FailureCode.BAD_REQUEST),
    ],
)
async def test_what_trying_again_cannot_mend_is_asked_once(
    cloud: Cloud, provider: str, llmock: Emulator, status: int, code: FailureCode
) -> None:
    llmock.fail({"type": "fail", "status": status, "times": 9})
    ended = failure(await events(cloud(provider, llmock.base_url(provider), max_retries=2), ask("hello")))
    assert ended.code is code
    assert str(status) in ended.message
    verdict = llmock.verdict()
    assert (verdict["attempts"], verdict["findings"]) == (1, [])


async def test_a_long_retry_after_is_handed_on_at_once_and_kept_for_the_next_request(
    cloud: Cloud, provider: str, llmock: Emulator
) -> None:
    llmock.fail({"type": "fail", "status": 429, "retry_after": 600, "times": 9})
    model = cloud(provider, llmock.base_url(provider), max_retries=2)
    first = failure(await events(model, ask("hello")))
    assert (first.code, first.retry_after) == (FailureCode.RATE_LIMITED, 600)
    second = failure(await events(model, ask("hello again")))
    assert second.code is FailureCode.RATE_LIMITED
    assert 590 < (second.retry_after or 0) <= 600
    assert llmock.verdict()["attempts"] == 1


@pytest.mark.parametrize("kind", ["truncate", "disconnect", "malformed"])
async def test_a_broken_stream_is_a_failure_after_its_text_and_never_an_answer(
    cloud: Cloud, provider: str, llmock: Emulator, kind: str
) -> None:
    model = cloud(provider, llmock.base_url(provider), max_retries=2)
    llmock.fail({"type": "stream_fault", "kind": kind, "after_chunks": 6})
    broken = await events(model, ask("hello"))
    assert text(broken)
    assert failure(broken).code is FailureCode.UPSTREAM
    assert not any(isinstance(event, Finish) for event in broken)
    # A second try would have repeated the text, so there was none; the caller, who knows what it showed, may ask again.
    assert llmock.verdict()["attempts"] == 1
    assert Finish("stop") in await events(model, ask("hello"))
    assert llmock.verdict()["findings"] == []


async def test_a_stream_that_stalls_is_given_up_in_time(cloud: Cloud, provider: str, llmock: Emulator) -> None:
    llmock.fail({"type": "stream_fault", "kind": "stall", "after_chunks": 6, "stall_seconds": 30})
    model = cloud(provider, llmock.base_url(provider), chunk_timeout=5)
    stalled = await asyncio.wait_for(events(model, ask("hello")), 60)
    assert text(stalled)
    assert failure(stalled).code is FailureCode.TIMEOUT
    assert "within 5 s" in failure(stalled).message


async def test_a_slow_first_token_within_its_time_is_waited_for_once(
    cloud: Cloud, provider: str, llmock: Emulator
) -> None:
    llmock.fail({"type": "slow_first_token", "seconds": 1.0})
    model = cloud(provider, llmock.base_url(provider), max_retries=2, first_byte_timeout=30, chunk_timeout=20)
    assert Finish("stop") in await events(model, ask("hello"))
    assert llmock.verdict()["attempts"] == 1


# --- what the emulators cannot do ---------------------------------------------------------------------------------


async def test_a_provider_that_never_answers_costs_its_time_once(
    cloud: Cloud, provider: str, upstream: Upstream
) -> None:
    upstream.script = hang
    model = cloud(provider, upstream.base_url(provider), max_retries=2, first_byte_timeout=5)
    ended = failure(await asyncio.wait_for(events(model, ask("hello")), 60))
    assert ended.code is FailureCode.TIMEOUT
    assert "begin to answer within 5 s" in ended.message
    # It may be at work, and billing: asking twice could pay twice.
    assert len(upstream.calls) == 1
    await asyncio.wait_for(upstream.calls[0].left.wait(), 60)


async def test_headers_without_a_body_are_no_beginning(cloud: Cloud, provider: str, upstream: Upstream) -> None:
    async def headers_only(call: Call) -> None:
        await call.start()
        await asyncio.sleep(60)

    upstream.script = headers_only
    model = cloud(provider, upstream.base_url(provider), first_byte_timeout=0.3)
    assert failure(await asyncio.wait_for(events(model, ask("hello")), 60)).code is FailureCode.TIMEOUT


async def test_a_provider_that_says_that_it_is_at_work_is_waited_for(
    cloud: Cloud, provider: str, upstream: Upstream
) -> None:
    async def busy(call: Call) -> None:
        # DeepSeek's, while its queue is long (https://api-docs.deepseek.com/quick_start/rate_limit).
        await call.start()
        for pieces in ((), call.begin, (call.text("Hello"),)):
            for _ in range(6):
                await call.write(b": keep-alive\n\n")
                await asyncio.sleep(0.25)
            await call.send(*pieces)
        await call.send(*call.end)

    upstream.script = busy
    body = {"max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
    asked = ChatRequest(messages=body["messages"], verbatim=Verbatim("anthropic", body))
    model = cloud(provider, upstream.base_url(provider), first_byte_timeout=1.0, chunk_timeout=1.0)
    got = await asyncio.wait_for(events(model, asked), 60)
    assert text(got) == "Hello"
    # Who waits hears of it, once the answer has begun.
    assert got.count(Progress("working")) == 6


@pytest.mark.parametrize("verbatim", [True, False])
async def test_anthropics_pings_say_that_it_is_at_work_whatever_format_asked(
    cloud: Cloud, upstream: Upstream, verbatim: bool
) -> None:
    async def thinking(call: Call) -> None:
        await call.send(call.begin[0])
        for _ in range(6):
            await asyncio.sleep(0.25)
            await call.send({"type": "ping"})
        await call.send(call.begin[1], call.text("Hello"), *call.end)

    upstream.script = thinking
    body = {"max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
    asked = ask("hello", verbatim=Verbatim("anthropic", body) if verbatim else None)
    got = await asyncio.wait_for(
        events(cloud("anthropic", upstream.base_url("anthropic"), chunk_timeout=1.0), asked), 60
    )
    assert text(got) == "Hello"
    assert got.count(Progress("working")) == 6


@pytest.mark.parametrize(
    ("effort", "silence", "said"), [("high", "before", "Hello"), ("high", "amid", "Hel"), ("none", "before", "")]
)
async def test_a_model_that_reasons_may_be_silent_until_its_first_word(
    cloud: Cloud, upstream: Upstream, effort: str, silence: str, said: str
) -> None:
    async def silent(call: Call) -> None:
        await call.send(*call.begin)
        await asyncio.sleep(3 * (silence == "before"))
        await call.send(call.text("Hel"))
        await asyncio.sleep(3 * (silence == "amid"))
        await call.send(call.text("lo"), *call.end)

    upstream.script = silent
    model = cloud("openai", upstream.base_url("openai"), chunk_timeout=1.0)
    got = await asyncio.wait_for(events(model, ask("hello", extra={"reasoning_effort": effort})), 60)
    assert text(got) == said
    if said != "Hello":
        assert failure(got).code is FailureCode.TIMEOUT


@pytest.mark.parametrize(("cut_at", "lost"), [(1, 1), (2, 1), (3, 1)])
async def test_choices_that_break_off_are_lost_together_and_counted_as_one_try(
    cloud: Cloud, upstream: Upstream, cut_at: int, lost: int
) -> None:
    async def cutting(call: Call) -> None:
        await call.send(*call.begin, call.text("x"))
        if len(upstream.calls) == cut_at:
            call.cut()
        await call.send(*call.end)

    upstream.script = cutting
    got = await events(cloud("anthropic", upstream.base_url("anthropic")), ask("hello", n=3))
    assert (failure(got).code, failure(got).lost) == (FailureCode.UPSTREAM, lost)
    assert [event.choice for event in got if isinstance(event, TextDelta)] == list(range(cut_at))
    assert len(upstream.calls) == cut_at


async def test_what_choices_cost_that_a_refusal_ends_is_not_forgotten(cloud: Cloud, upstream: Upstream) -> None:
    async def refusing(call: Call) -> None:
        await (answer(call) if len(upstream.calls) == 1 else error(call, 401))

    upstream.script = refusing
    got = await events(cloud("anthropic", upstream.base_url("anthropic")), ask("hello", n=2))
    assert (failure(got).code, failure(got).lost) == (FailureCode.AUTHENTICATION, 1)


async def test_the_total_deadline_cuts_an_answer_that_never_ends(
    cloud: Cloud, provider: str, upstream: Upstream
) -> None:
    async def drip(call: Call) -> None:
        await call.send(*call.begin)
        while True:
            await call.send(call.text("x"))
            await asyncio.sleep(0.05)

    upstream.script = drip
    model = cloud(provider, upstream.base_url(provider), total_timeout=3)
    await model._connected()  # The first time, the provider's library is loaded for that.
    got = await asyncio.wait_for(events(model, ask("hello")), 60)
    assert text(got)
    assert failure(got).code is FailureCode.TIMEOUT
    assert "3 s in all" in failure(got).message


async def test_retries_end_with_the_total_deadline(cloud: Cloud, provider: str, upstream: Upstream) -> None:
    upstream.script = lambda call: error(call, 500)
    model = cloud(provider, upstream.base_url(provider), max_retries=50, total_timeout=3)
    await model._connected()  # As above.
    failure(await asyncio.wait_for(events(model, ask("hello")), 60))
    assert 1 < len(upstream.calls) < 10


async def test_a_provider_that_closes_without_a_word_is_asked_again(
    cloud: Cloud, provider: str, upstream: Upstream
) -> None:
    async def once(call: Call) -> None:
        if len(upstream.calls) == 1:
            call.cut()
            raise ConnectionError
        await answer(call)

    upstream.script = once
    got = await events(cloud(provider, upstream.base_url(provider), max_retries=1), ask("hello"))
    assert text(got) == "Hello"
    assert len(upstream.calls) == 2


async def test_a_cut_after_the_last_choice_ended_takes_nothing_from_the_answer(
    cloud: Cloud, provider: str, upstream: Upstream
) -> None:
    async def cut_late(call: Call) -> None:
        end = 1 if provider == "openai" else 2
        await call.send(*call.begin, call.text("Hello"), *call.end[:end])
        await asyncio.sleep(0.1)
        call.cut()

    upstream.script = cut_late
    got = await events(cloud(provider, upstream.base_url(provider)), ask("hello"))
    assert text(got) == "Hello"
    # Anthropic counts before it ends.
    assert got[-1] == (Finish("stop") if provider == "openai" else Usage(7, 3))


async def test_one_byte_at_a_time_is_read_like_any_other_stream(
    cloud: Cloud, provider: str, upstream: Upstream
) -> None:
    async def bytewise(call: Call) -> None:
        pieces: list[bytes] = []
        write = call.write

        async def keep(data: bytes) -> None:
            pieces.append(data)

        call.write = keep  # type: ignore[method-assign]
        await call.send(*call.begin, call.text("Olá 👋"), *call.end)
        for byte in b"".join(pieces):
            await write(bytes([byte]))

    upstream.script = bytewise
    assert text(await events(cloud(provider, upstream.base_url(provider)), ask("hello"))) == "Olá 👋"


async def test_a_line_of_50_mb_is_read_or_refused_but_never_hangs(cloud: Cloud, upstream: Upstream) -> None:
    async def wide(call: Call) -> None:
        await call.send(*call.begin, call.text("x" * 50_000_000), *call.end)

    upstream.script = wide
    got = await asyncio.wait_for(events(cloud("openai", upstream.base_url("openai")), ask("hello")), 240)
    assert len(text(got)) == 50_000_000


@pytest.mark.parametrize("piece", [b"x" * 2**20, b"data: " + b"x" * 2**20 + b"\n"], ids=["one line", "many lines"])
async def test_an_event_without_an_end_is_given_up(cloud: Cloud, upstream: Upstream, piece: bytes) -> None:
    sent = 0

    async def unending(call: Call) -> None:
        nonlocal sent
        await call.send(*call.begin)
        await call.write(b"data: ")
        while sent < 400:
            await call.write(piece)
            sent += 1

    upstream.script = unending
    got = await asyncio.wait_for(events(cloud("openai", upstream.base_url("openai")), ask("hello")), 240)
    assert failure(got).code is FailureCode.UPSTREAM
    assert sent < 400


@pytest.mark.parametrize(
    "body", [b"data: {not json}\n\n", b"data: [1, 2]\n\n", b"data: {}\n\n", b"\xff\xfe\n\n", b"<html>hello</html>"]
)
async def test_what_is_no_chat_stream_is_the_providers_failure(
    cloud: Cloud, provider: str, upstream: Upstream, body: bytes
) -> None:
    async def script(call: Call) -> None:
        await call.write(body)

    upstream.script = script
    assert (
        failure(await events(cloud(provider, upstream.base_url(provider)), ask("hello"))).code is FailureCode.UPSTREAM
    )


async def test_an_error_inside_the_stream_is_told_like_one_before_it(
    cloud: Cloud, provider: str, upstream: Upstream
) -> None:
    async def script(call: Call) -> None:
        await call.send(*call.begin, call.text("Hel"))
        await call.send({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})

    upstream.script = script
    got = await events(cloud(provider, upstream.base_url(provider), max_retries=2), ask("hello"))
    assert text(got) == "Hel"
    assert failure(got).code is FailureCode.UPSTREAM
    assert len(upstream.calls) == 1


@pytest.mark.parametrize(
    ("status", "kind", "message", "code"),
    [
        (400, "context_length_exceeded", "Too long.", FailureCode.CONTEXT_LENGTH),
        (
            400,
            "invalid_request_error",
            "prompt is too long: 210000 tokens > 200000 maximum",
            FailureCode.CONTEXT_LENGTH,
        ),
        (400, "invalid_request_error", "temperature: must be at most 2", FailureCode.BAD_REQUEST),
        (413, "request_too_large", "Too many bytes.", FailureCode.BAD_REQUEST),
        (429, "insufficient_quota", "You exceeded your current quota.", FailureCode.RATE_LIMITED),
        (400, "invalid_request_error", "Your credit balance is too low.", FailureCode.RATE_LIMITED),
        (402, "billing_error", "Pay first.", FailureCode.RATE_LIMITED),
        (408, "timeout", "Too slow.", FailureCode.TIMEOUT),
        (307, "moved", "Elsewhere.", FailureCode.UNAVAILABLE),
    ],
)
async def test_each_refusal_has_its_own_code(
    cloud: Cloud, provider: str, upstream: Upstream, status: int, kind: str, message: str, code: FailureCode
) -> None:
    upstream.script = lambda call: error(call, status, kind, message)
    assert failure(await events(cloud(provider, upstream.base_url(provider)), ask("hello"))).code is code


async def test_an_account_without_credit_is_not_asked_again_at_once(
    cloud: Cloud, provider: str, upstream: Upstream
) -> None:
    upstream.script = lambda call: error(call, 429, "insufficient_quota", "You exceeded your current quota.")
    ended = failure(await events(cloud(provider, upstream.base_url(provider), max_retries=2), ask("hello")))
    assert "no credit" in ended.message
    assert len(upstream.calls) == 1


async def test_a_providers_reason_reaches_the_person_who_can_act_on_it(
    cloud: Cloud, provider: str, upstream: Upstream
) -> None:
    upstream.script = lambda call: error(call, 400, "invalid_request_error", "temperature: must be\nat most 2")
    ended = failure(await events(cloud(provider, upstream.base_url(provider)), ask("hello")))
    assert ended.message.endswith("temperature: must be at most 2")


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500])
async def test_no_failure_quotes_the_prompt_or_the_key_even_where_the_provider_does(
    cloud: Cloud, provider: str, upstream: Upstream, status: int
) -> None:
    upstream.script = lambda call: error(call, status, message=f"Cannot take {PROMPT[4:30]!r} with key {SECRET}")
    ended = failure(await events(cloud(provider, upstream.base_url(provider), key=SECRET), ask(PROMPT)))
    assert shown_nothing(ended.message)


@pytest.mark.parametrize(("words", "told"), [(1000, True), (1_000_000, False)])
async def test_a_prompt_too_long_to_search_for_quotes_costs_the_reason_and_an_image_does_not(
    cloud: Cloud, provider: str, upstream: Upstream, words: int, told: bool
) -> None:
    upstream.script = lambda call: error(call, 400, "invalid_request_error", "temperature: must be at most 2")
    parts = [
        {"type": "text", "text": "word " * words},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 5_000_000}},
    ]
    request = ChatRequest(messages=[{"role": "user", "content": parts}])
    ended = failure(await events(cloud(provider, upstream.base_url(provider)), request))
    assert ended.code is FailureCode.BAD_REQUEST
    assert ("at most 2" in ended.message) == told


async def test_a_redirect_is_not_followed_with_the_key(cloud: Cloud, provider: str, upstream: Upstream) -> None:
    async def moved(call: Call) -> None:
        await error(call, 307, Location=f"{upstream.url}/elsewhere")

    upstream.script = moved
    failure(await events(cloud(provider, upstream.base_url(provider)), ask("hello")))
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_is_understood_in_seconds_and_as_a_date(
    cloud: Cloud, provider: str, upstream: Upstream, form: str
) -> None:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 90))
    upstream.script = lambda call: error(call, 429, **{"Retry-After": "90" if form == "seconds" else date})
    ended = failure(await events(cloud(provider, upstream.base_url(provider)), ask("hello")))
    assert 80 < (ended.retry_after or 0) <= 90


async def test_a_provider_that_keeps_failing_is_left_alone_and_found_again(
    cloud: Cloud, provider: str, upstream: Upstream
) -> None:
    upstream.script = lambda call: error(call, 500)
    model = cloud(provider, upstream.base_url(provider))
    now = [0.0]
    model._breaker._clock = lambda: now[0]
    for _ in range(7):
        assert failure(await events(model, ask("hello"))).code in (FailureCode.UPSTREAM, FailureCode.UNAVAILABLE)
    assert len(upstream.calls) == 5
    status = await model.status()
    assert status.state == "failed"
    assert "5 times in a row" in status.detail
    upstream.script = answer
    now[0] += model._breaker._first_rest
    assert text(await events(model, ask("hello"))) == "Hello"
    assert (await model.status()).state == "ready"
