"""The official `ollama` client: prints what it got as JSON."""

import json
import sys

import ollama

URL = sys.argv[1]
client = ollama.Client(host=URL)
hello = [{"role": "user", "content": "hello"}]


def get_weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: where
    """
    return f"4 degrees in {city}"


whole = client.chat("local", messages=hello, options={"num_predict": 6, "temperature": 0})
pieces = list(client.chat("local", messages=hello, options={"num_predict": 6, "temperature": 0}, stream=True))
generated = client.generate("local", "hello", options={"num_predict": 4})

question = {"role": "user", "content": "the weather in Oslo"}
called = client.chat("cloud", messages=[question], tools=[get_weather])
calls = called.message.tool_calls or []
results = [
    {"role": "tool", "tool_name": call.function.name, "content": get_weather(**call.function.arguments)}
    for call in calls
]
told = client.chat("cloud", messages=[question, called.message, *results], tools=[get_weather])

schema = {
    "type": "object",
    "properties": {"capital": {"type": "string"}},
    "required": ["capital"],
    "additionalProperties": False,
}
capital = client.chat("cloud", messages=[{"role": "user", "content": "the capital of Peru"}], format=schema)


def heard(model: str) -> list[dict[str, object]]:
    """An answer of `model`, whole and then in pieces, without what is each answer's own."""
    asked = {"messages": [{"role": "user", "content": "Please say it in unicode, and in many languages."}]}
    parts = [client.chat(model, **asked), *client.chat(model, **asked, stream=True)]
    own = {"created_at", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration"}
    return [part.model_dump(exclude=own) for part in parts]


direct, escalated = heard("cloud"), heard("router-mf-1")

try:
    client.pull("llama3")
    refusal = None
except ollama.ResponseError as error:
    refusal = [error.status_code, error.error]

print(
    json.dumps(
        {
            "whole": whole.message.content,
            "streamed": "".join(piece.message.content or "" for piece in pieces),
            "done_reason": pieces[-1].done_reason,
            "eval_count": pieces[-1].eval_count,
            "generated": generated.response,
            "calls": [[call.function.name, call.function.arguments] for call in calls],
            "told": told.message.content,
            "capital": capital.message.content,
            "embedding": len(client.embed("auto", ["a", "b"]).embeddings[1]),
            "models": [model.model for model in client.list().models],
            "capabilities": client.show("local").capabilities,
            "running": [model.model for model in client.ps().models],
            "refusal": refusal,
            "direct": direct,
            "escalated": escalated,
        }
    )
)
