"""A server on the network in the place of the local engine: another upcall, which speaks the same API for real."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from daemon import resolve
from daemon.config import ConfigError, Local
from daemon.config_file import load
from tests.conftest import Require
from tests.daemon.harness import Daemon, client, running_daemon, wait_until
from tests.daemon.planted import planted, reports
from tests.emulators.upstream import Call, Upstream, chunk

HELLO: Any = [{"role": "user", "content": "hello"}]
Pointing = Callable[..., Daemon]


@pytest.fixture
def pointing(tmp_path: Path, models_ready: Path) -> Iterator[Pointing]:
    """`pointing(endpoint, SECTION__KEY="value", …)` starts a daemon without a model file of its own."""
    with ExitStack() as stack:

        def start(endpoint: str, wrapper: Any = (), credentials: Path | None = None, **settings: str) -> Daemon:
            own = {"LOCAL__ENDPOINT": endpoint, "LOCAL__MODEL": "local", **settings}
            (tmp_path / "near").mkdir()
            return stack.enter_context(running_daemon(tmp_path / "near", None, own, credentials, wrapper))

        yield start


def say(daemon: Daemon, **more: Any) -> Any:
    return client(daemon).chat.completions.create(model="local", messages=HELLO, max_tokens=3, **more)


def test_prompts_are_answered_by_the_server_that_the_settings_name(pointing: Pointing, upcall: Daemon) -> None:
    near = pointing(f"{upcall.url}/v1")
    answer = say(near, temperature=0)

    assert answer.choices[0].message.content == say(upcall, temperature=0).choices[0].message.content
    assert (answer.usage.completion_tokens, answer.model) == (3, "local")
    assert [chunk.choices[0].finish_reason for chunk in say(near, stream=True) if chunk.choices][-1] == "length"
    status = near.call("GET", "/healthz")["local"]
    assert (status["state"], status["detail"]) == ("ready", f"at {upcall.url}/v1")
    assert near.children("remote")
    assert f"ok   local model: local at {upcall.url}/v1, 8192 tokens" in near.cli("doctor").stdout


def test_the_gateway_reaches_nothing_while_its_model_is_on_the_network(
    pointing: Pointing, upcall: Daemon, targets: dict[str, Any], tmp_path: Path, require: Require
) -> None:
    near = pointing(f"{upcall.url}/v1", planted(tmp_path, targets))
    assert say(near).choices
    kernel = near.call("GET", "/healthz")["kernel"]
    require("landlock" in kernel["gateway"], "needs a kernel with Landlock")
    near.children("daemon.gateway")[0].send_signal(signal.SIGUSR1)
    wait_until(lambda: reports(tmp_path / "near"))

    ((listeners, outcome),) = reports(tmp_path / "near")
    assert listeners
    assert len(outcome) > 20
    assert [name for name, succeeded in outcome.items() if succeeded] == []
    assert kernel["barrier"] == "netns"


def test_privacy_mode_keeps_prompts_from_another_machine_and_says_what_would_allow_it(
    pointing: Pointing, upcall: Daemon
) -> None:
    near = pointing(f"{upcall.url}/v1")
    assert say(near).choices
    near.cli("privacy", "on")
    with pytest.raises(openai.InternalServerError, match=r"set local\.on_premises = true if it is yours"):
        say(near)

    wait_until(lambda: not near.children("remote"))
    assert near.call("GET", "/healthz")["local"]["state"] == "failed"
    assert "bad  local model: privacy mode is on" in near.cli("doctor").stdout
    near.cli("privacy", "off")
    assert say(near).choices


async def test_a_request_that_is_to_stay_here_reaches_no_other_machine(pointing: Pointing, upstream: Upstream) -> None:
    near = await asyncio.to_thread(pointing, f"{upstream.url}/v1")
    stay = {"x-upcall-privacy": "on"}
    with pytest.raises(
        openai.InternalServerError, match=r"x-upcall-privacy.*set local\.on_premises = true if it is yours"
    ):
        await asyncio.to_thread(say, near, extra_headers=stay)
    assert not upstream.calls
    assert (await asyncio.to_thread(say, near)).choices
    assert len(upstream.calls) == 1


def test_an_endpoint_on_the_premises_answers_in_privacy_mode(pointing: Pointing, upcall: Daemon) -> None:
    near = pointing(f"{upcall.url}/v1", LOCAL__ON_PREMISES="true", PRIVACY__MODE="true")

    assert say(near).choices
    assert say(near, extra_headers={"x-upcall-privacy": "on"}).choices
    assert near.call("GET", "/healthz")["kernel"]["barrier"] == "netns"


def test_a_server_that_is_not_there_is_named_and_the_daemon_stays_up(pointing: Pointing) -> None:
    near = pointing("http://127.0.0.1:9/v1")
    with pytest.raises(openai.InternalServerError):
        say(near)

    status = near.call("GET", "/healthz")["local"]
    assert status["state"] == "failed"
    assert len(status["detail"].splitlines()) == 1
    assert "bad  local model" in near.cli("doctor").stdout


async def test_the_key_comes_from_the_keyring_and_the_context_from_the_server(
    pointing: Pointing, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.models = [{"id": "local", "object": "model", "created": 1, "owned_by": "me", "max_model_len": 12345}]
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "lan").write_text("key-of-the-house")
    start = asyncio.to_thread(pointing, f"{upstream.url}/v1", credentials=tmp_path / "credentials", LOCAL__KEY="lan")
    near = await start
    answer = await asyncio.to_thread(say, near)
    status = (await asyncio.to_thread(near.call, "GET", "/healthz"))["local"]

    assert answer.choices[0].message.content == "Hello"
    assert upstream.calls[0].headers["authorization"] == "Bearer key-of-the-house"
    assert status["context_length"] == 12345


async def test_tool_calls_of_the_server_are_known_again_as_the_local_models(
    pointing: Pointing, upstream: Upstream, tmp_path: Path
) -> None:
    async def call_tool(call: Call) -> None:
        function = {"index": 0, "id": "call_1", "function": {"name": "look", "arguments": "{}"}}
        await call.send(chunk({"tool_calls": [function]}), chunk({}, finish_reason="tool_calls"), "[DONE]")

    upstream.script = call_tool
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "openai").write_text("a key, so that the cloud is possible")
    credentials = tmp_path / "credentials"
    near = await asyncio.to_thread(pointing, f"{upstream.url}/v1", credentials=credentials, ROUTING__THRESHOLD="0")
    tool: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    (call,) = (await asyncio.to_thread(say, near, tools=[tool])).choices[0].message.tool_calls
    begun = {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]}
    messages = [*HELLO, begun, {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    decision = await asyncio.to_thread(near.call, "POST", "/v1/route", {"messages": messages, "tools": [tool]})

    assert (decision["route"], decision["reason"]) == ("local", "conversation")


async def test_a_model_that_the_server_does_not_have_is_named_with_those_that_it_has(
    pointing: Pointing, upstream: Upstream
) -> None:
    upstream.models = [{"id": "llama3", "object": "model", "created": 1, "owned_by": "me"}]
    near = await asyncio.to_thread(pointing, f"{upstream.url}/v1")

    def detail() -> str:
        return str(near.call("GET", "/healthz")["local"]["detail"])

    await asyncio.to_thread(wait_until, lambda: "set local.model to one of: llama3" in detail())


def test_tokens_of_a_server_that_has_no_way_to_count_them_are_estimated(pointing: Pointing, upcall: Daemon) -> None:
    near = pointing(f"{upcall.url}/v1")
    text = Path(__file__).parents[2].joinpath("docs/architecture.md").read_text()
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    schema = {"type": "object", "properties": {"city": {"type": "string", "description": "Where it rains."}}}
    body: dict[str, Any] = {"model": "local", "messages": [{"role": "user", "content": text}]}
    body["tools"] = [{"name": "weather", "description": "Tells the weather of a city.", "input_schema": schema}]

    def counted(daemon: Daemon, **more: Any) -> int:
        return int(daemon.call("POST", "/v1/messages/count_tokens", {**body, **more})["input_tokens"])

    assert counted(near) == pytest.approx(counted(upcall), rel=0.25)
    shown = [{"role": "user", "content": [picture]}]
    assert counted(near, messages=shown) == pytest.approx(counted(upcall, messages=shown), rel=0.25)
    # What does not fit is no reason to say nothing: that is what a client counts for.
    assert counted(near, messages=[{"role": "user", "content": "word " * 20_000}]) > 20_000


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"endpoint": "192.168.1.20:8000", "model": "m"}, "no http or https URL"),
        ({"endpoint": "http://192.168.1.20:8000/v1"}, "set local.model to the name"),
    ],
)
def test_an_endpoint_that_cannot_work_is_refused_with_what_to_write(
    settings: dict[str, str], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[local]\n" + "".join(f'{name} = "{value}"\n' for name, value in settings.items()))

    with pytest.raises(ConfigError, match=said):
        load(file)


def test_the_server_has_all_of_the_time_that_a_request_may_take_for_its_first_token_and_between_two() -> None:
    cloud = resolve.remote(Local(endpoint="http://192.168.1.20:8000/v1", model="m", timeout=900))

    assert (cloud.first_byte_timeout, cloud.chunk_timeout, cloud.total_timeout) == (900, 900, 900)
