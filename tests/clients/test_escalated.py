"""What clients see of an answer that began here, would not do, and came from the cloud: what they see of the cloud's.

The official SDKs, unmodified, in three wire formats; Ollama's runs in an environment of its own (`test_programs.py`).
"""

from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest

from tests.daemon.harness import Daemon

DOUBTED = "router-mf-1"
"""The router keeps every prompt here, and the second look doubts every answer."""
UNICODE = "Olá! Ação, coração: 你好, 👩\u200d👩\u200d👧\u200d👦 e café."
PROMPTS = {"text": "Please say it in unicode, and in as many languages as you know.", "tools": "the weather in Oslo"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
OWN = {"id", "created", "_request_id"}
"""Of each answer."""
Ask = Callable[[str, str, bool], tuple[str, list[dict[str, Any]]]]
"""Of a model, one of `PROMPTS`, streamed or not: the reason in the headers, and what came, as the SDK read it."""


@pytest.fixture(params=["openai", "anthropic"])
def ask(served: Daemon, request: pytest.FixtureRequest) -> Ask:
    return {"openai": _openai, "anthropic": _anthropic}[request.param](served)


def _openai(served: Daemon) -> Ask:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    tools: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]

    def ask(model: str, prompt: str, stream: bool) -> tuple[str, list[dict[str, Any]]]:
        more: Any = {"tools": tools} if prompt == "tools" else {}
        more |= {"stream_options": {"include_usage": True}} if stream else {}
        raw = client.chat.completions.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": PROMPTS[prompt]}], stream=stream, **more
        )
        answer = raw.parse()
        return raw.headers["x-upcall-reason"], [part.model_dump() for part in (answer if stream else [answer])]

    return ask


def _anthropic(served: Daemon) -> Ask:
    client = anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0)
    tools: Any = [{"name": "get_weather", "input_schema": PARAMETERS}]

    def ask(model: str, prompt: str, stream: bool) -> tuple[str, list[dict[str, Any]]]:
        more: Any = {"tools": tools} if prompt == "tools" else {}
        raw = client.messages.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": PROMPTS[prompt]}], max_tokens=40, stream=stream, **more
        )
        answer = raw.parse()
        return raw.headers["x-upcall-reason"], [part.model_dump() for part in (answer if stream else [answer])]

    return ask


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_sdks_read_an_escalated_answer_as_one_that_the_cloud_gave_at_once(
    ask: Ask, prompt: str, stream: bool
) -> None:
    _, direct = ask("cloud", prompt, stream)
    reason, escalated = ask(DOUBTED, prompt, stream)

    assert reason == "low_confidence"
    assert _common(escalated) == _common(direct)
    # The cloud's words and nothing before or between them, whatever the local model had begun to say.
    assert "".join(_texts(escalated)) == (UNICODE if prompt == "text" else "Let me look.")


def _common(value: Any) -> Any:
    """Without what is each answer's own."""
    if isinstance(value, dict):
        return {key: "" if key in OWN else _common(part) for key, part in value.items()}
    return [_common(part) for part in value] if isinstance(value, list) else value


def _texts(value: Any) -> list[str]:
    """What a person reads of an answer, in the order in which it came."""
    if isinstance(value, list):
        return [text for part in value for text in _texts(part)]
    if not isinstance(value, dict):
        return []
    own = [value[name] for name in ("content", "text") if isinstance(value.get(name), str)]
    return own + [text for part in value.values() for text in _texts(part)]
