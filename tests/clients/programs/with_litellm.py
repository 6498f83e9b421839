"""litellm as a client, in OpenAI's, Anthropic's and Ollama's format: prints what it got as JSON."""

import json
import sys

import litellm

URL = sys.argv[1]
litellm.suppress_debug_info = True
hello = [{"role": "user", "content": "hello"}]
openai = {"api_base": f"{URL}/v1", "api_key": "none", "num_retries": 0}
parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
tools = [{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}]

small = {"max_tokens": 6, "temperature": 0}
whole = litellm.completion("openai/local", messages=hello, **small, **openai)
chunks = litellm.completion("openai/local", messages=hello, stream=True, **small, **openai)
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
question = {"role": "user", "content": "the weather in Oslo"}
called = litellm.completion("openai/cloud", messages=[question], tools=tools, **openai).choices[0].message
calls = called.tool_calls or []
results = [{"role": "tool", "tool_call_id": call.id, "content": "4 degrees"} for call in calls]
told = litellm.completion("openai/cloud", messages=[question, called, *results], tools=tools, **openai)
anthropic = litellm.completion("anthropic/cloud", messages=hello, api_base=URL, api_key="none")
ollama = litellm.completion("ollama_chat/cloud", messages=hello, api_base=URL)
embedded = litellm.embedding("openai/auto", input=["a", "b"], **openai)

try:
    litellm.completion("openai/local", messages=hello, temperature=9, **openai)
    refused = None
except litellm.BadRequestError as error:
    refused = str(error)

print(
    json.dumps(
        {
            "whole": whole.choices[0].message.content,
            "streamed": streamed,
            "calls": [[call.function.name, json.loads(call.function.arguments)] for call in calls],
            "told": told.choices[0].message.content,
            "anthropic": anthropic.choices[0].message.content,
            "ollama": ollama.choices[0].message.content,
            "embedding": len(embedded.data[1]["embedding"]),
            "refused": refused,
        }
    )
)
