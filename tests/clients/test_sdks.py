"""The official Python SDKs of OpenAI and Anthropic, unmodified, in everything that they are mostly used for."""

from typing import Any

import anthropic
import openai
import pytest
from pydantic import BaseModel

from tests.daemon.harness import Daemon

HELLO: Any = [{"role": "user", "content": "hello"}]
QUESTION: Any = {"role": "user", "content": "the weather in Oslo"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = "It is 4 degrees in Oslo."
GREETING = "Hello from the emulator."


class Answer(BaseModel):
    capital: str


@pytest.fixture
def to_openai(served: Daemon) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def to_anthropic(served: Daemon) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0)


def test_openai_tools_make_a_round_trip(to_openai: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
    called = to_openai.chat.completions.create(model="cloud", messages=[QUESTION], tools=tools).choices[0].message
    assert called.tool_calls
    results: Any = [{"role": "tool", "tool_call_id": call.id, "content": "4 degrees"} for call in called.tool_calls]
    told = to_openai.chat.completions.create(model="cloud", messages=[QUESTION, called, *results], tools=tools)

    assert told.choices[0].message.content == WEATHER


def test_openai_parses_an_answer_into_a_model(to_openai: openai.OpenAI) -> None:
    question: Any = [{"role": "user", "content": "the capital of Peru"}]
    parsed = to_openai.chat.completions.parse(model="cloud", messages=question, response_format=Answer)

    assert parsed.choices[0].message.parsed == Answer(capital="Lima")


def test_openai_completes_prompts_as_before_chats(to_openai: openai.OpenAI) -> None:
    whole = to_openai.completions.create(model="local", prompt=["one", "two"], max_tokens=3, logprobs=2)
    stream = to_openai.completions.create(model="cloud", prompt="hello", stream=True)
    weighed = list(
        to_openai.completions.create(
            model="local", prompt="one", max_tokens=5, logprobs=1, logit_bias={"2": -100}, temperature=0, stream=True
        )
    )

    assert [choice.index for choice in whole.choices] == [0, 1]
    assert all(choice.logprobs and choice.logprobs.token_logprobs for choice in whole.choices)
    assert whole.usage
    assert whole.usage.completion_tokens == 6
    assert "".join(chunk.choices[0].text for chunk in stream) == GREETING
    logprobs = [chunk.choices[0].logprobs for chunk in weighed]
    tokens = [token for each in logprobs if each for token in each.tokens or ()]
    offsets = [offset for each in logprobs if each for offset in each.text_offset or ()]
    assert len(tokens) > 1
    assert offsets == [len("".join(tokens[:number])) for number in range(len(tokens))]


@pytest.mark.parametrize("fault", [{"echo": True}, {"suffix": "end"}, {"prompt": [1, 2]}, {"best_of": 2}])
def test_what_a_chat_model_cannot_complete_is_refused(to_openai: openai.OpenAI, fault: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match=next(iter(fault))):
        to_openai.completions.create(**{"model": "local", "prompt": "x", **fault})


def test_openai_embeddings_are_unit_vectors_and_the_same_in_both_encodings(to_openai: openai.OpenAI) -> None:
    texts = ["a red boat", "ein rotes Boot", "tax law", "word " * 2000]
    packed = to_openai.embeddings.create(model="auto", input=texts)
    plain = to_openai.embeddings.create(model="auto", input=texts, encoding_format="float")
    boat, boot, law, long = (item.embedding for item in packed.data)

    assert sum(x * x for x in long) == pytest.approx(1, abs=1e-4)
    assert boat == pytest.approx(plain.data[0].embedding)
    assert _dot(boat, boot) > _dot(boat, law)
    assert packed.usage.total_tokens > 0


def test_token_numbers_are_no_text_to_embed(to_openai: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="strings"):
        to_openai.embeddings.create(model="auto", input=[[1, 2], [3]])


def test_openai_responses_stream_their_events_in_order(to_openai: openai.OpenAI) -> None:
    events = list(to_openai.responses.create(model="cloud", input="hello", stream=True))
    kinds = [event.type for event in events]

    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"
    ]  # fmt: skip
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == GREETING
    assert events[-1].response.output_text == GREETING
    assert events[-1].response.usage.output_tokens == 5


def test_openai_responses_call_tools_and_parse_without_a_state(to_openai: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "name": "get_weather", "parameters": PARAMETERS, "strict": False}]
    called = to_openai.responses.create(model="cloud", input=[QUESTION], tools=tools)
    calls = [item for item in called.output if item.type == "function_call"]
    results: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "4 degrees"} for call in calls]
    told = to_openai.responses.create(model="cloud", input=[QUESTION, *called.output, *results], tools=tools)
    parsed = to_openai.responses.parse(model="cloud", input="the capital of Peru", text_format=Answer)

    assert [call.arguments for call in calls] == ['{"city":"Oslo"}']
    assert called.output_text == "Let me look."
    assert told.output_text == WEATHER
    assert parsed.output_parsed == Answer(capital="Lima")


def test_responses_that_lean_on_a_state_are_refused(to_openai: openai.OpenAI) -> None:
    for stateful in ({"store": True}, {"previous_response_id": "resp_1"}, {"background": True}):
        with pytest.raises(openai.BadRequestError, match="keeps no conversations"):
            to_openai.responses.create(**{"model": "local", "input": "hello", **stateful})


def test_both_sdks_list_the_models(to_openai: openai.OpenAI, to_anthropic: anthropic.Anthropic) -> None:
    names = [model.id for model in to_openai.models.list()]

    assert names[:3] == ["auto", "local", "cloud"]
    assert "router-mf-0.5" in names
    assert [model.id for model in to_anthropic.models.list()] == names
    assert to_openai.models.retrieve("local").context_length == 8192
    with pytest.raises(openai.NotFoundError):
        to_openai.models.retrieve("nothing")


def test_openai_errors_are_typed(to_openai: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        to_openai.chat.completions.create(model="local", messages=HELLO, temperature=2.5)
    with pytest.raises(openai.BadRequestError) as too_long:
        to_openai.chat.completions.create(model="local", messages=[{"role": "user", "content": "word " * 20_000}])
    assert too_long.value.code == "context_length_exceeded"


def test_anthropic_streams_the_same_text_as_the_whole_answer(to_anthropic: anthropic.Anthropic) -> None:
    settings: Any = {"model": "local", "messages": HELLO, "max_tokens": 6, "temperature": 0}
    whole = to_anthropic.messages.create(**settings)
    with to_anthropic.messages.stream(**settings) as stream:
        text = "".join(stream.text_stream)
        last = stream.get_final_message()

    assert whole.content[0].text == text
    assert last.stop_reason == whole.stop_reason == "max_tokens"
    assert last.usage.output_tokens == whole.usage.output_tokens == 6
    assert last.usage.input_tokens + last.usage.cache_read_input_tokens > 6
    assert whole._request_id


def test_anthropic_tools_make_a_round_trip(to_anthropic: anthropic.Anthropic) -> None:
    settings: Any = {
        "model": "cloud", "max_tokens": 100, "system": [{"type": "text", "text": "Be brief."}],
        "tools": [{"name": "get_weather", "input_schema": PARAMETERS}], "tool_choice": {"type": "auto"},
    }  # fmt: skip
    with to_anthropic.messages.stream(**settings, messages=[QUESTION]) as stream:
        called = stream.get_final_message()
    results: Any = [
        {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "4 degrees"}]}
        for block in called.content
        if block.type == "tool_use"
    ]
    history: Any = [QUESTION, {"role": "assistant", "content": called.content}, {"role": "user", "content": results}]
    told = to_anthropic.messages.create(**settings, messages=history)

    assert called.stop_reason == "tool_use"
    assert [block.type for block in called.content] == ["text", "tool_use"]
    assert called.content[1].input == {"city": "Oslo"}
    assert told.content[0].text == WEATHER


def test_anthropic_learns_which_stop_sequence_ended_an_answer(to_anthropic: anthropic.Anthropic) -> None:
    settings: Any = {"model": "local", "messages": HELLO, "max_tokens": 6, "temperature": 0}
    middle = to_anthropic.messages.create(**settings).content[0].text[2:5]
    said = to_anthropic.messages.create(**settings, stop_sequences=["nothing like this", middle])

    assert (said.stop_reason, said.stop_sequence) == ("stop_sequence", middle)


def test_anthropic_counts_tokens_as_the_local_model_does(to_anthropic: anthropic.Anthropic) -> None:
    counted = to_anthropic.messages.count_tokens(model="claude-opus-5", messages=HELLO, system="Be brief.")
    said = to_anthropic.messages.create(model="local", messages=HELLO, system="Be brief.", max_tokens=1)

    assert counted.input_tokens == said.usage.input_tokens + said.usage.cache_read_input_tokens


def test_anthropic_errors_are_typed(to_anthropic: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature") as refused:
        to_anthropic.messages.create(model="local", messages=HELLO, max_tokens=1, temperature=1.5)
    assert refused.value.body["error"]["type"] == "invalid_request_error"
    assert refused.value.body["request_id"] == refused.value.response.headers["request-id"]
    with pytest.raises(anthropic.BadRequestError):
        to_anthropic.messages.create(
            model="local", messages=[{"role": "user", "content": "word " * 20_000}], max_tokens=1
        )
    with pytest.raises(anthropic.NotFoundError):
        to_anthropic.messages.batches.list()


def _dot(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))
