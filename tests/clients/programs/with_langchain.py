"""langchain-openai: prints what it got as JSON."""

import json
import sys

import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

URL = f"{sys.argv[1]}/v1"


def model(name: str, **more: object) -> ChatOpenAI:
    return ChatOpenAI(model=name, base_url=URL, api_key="none", max_retries=0, **more)


@tool
def get_weather(city: str) -> str:
    """Tell the weather."""
    return f"4 degrees in {city}"


class Answer(BaseModel):
    capital: str


whole = model("local", max_tokens=6, temperature=0).invoke("hello")
streamed = "".join(chunk.text for chunk in model("local", max_tokens=6, temperature=0).stream("hello"))

question = HumanMessage("the weather in Oslo")
called = model("cloud").bind_tools([get_weather]).invoke([question])
results = [ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"]) for call in called.tool_calls]
told = model("cloud").bind_tools([get_weather]).invoke([question, called, *results])

capital = model("cloud").with_structured_output(Answer).invoke("the capital of Peru")
responses = model("cloud", use_responses_api=True).invoke("hello")
embeddings = OpenAIEmbeddings(model="auto", base_url=URL, api_key="none", check_embedding_ctx_length=False)

try:
    model("local", temperature=9).invoke("hello")
    refused = None
except openai.BadRequestError as error:
    refused = error.message

print(
    json.dumps(
        {
            "whole": whole.text,
            "streamed": streamed,
            "tokens": (whole.usage_metadata or {}).get("output_tokens"),
            "calls": [[call["name"], call["args"]] for call in called.tool_calls],
            "told": told.text,
            "capital": capital.capital,
            "responses": responses.text,
            "embedding": len(embeddings.embed_documents(["a", "b"])[1]),
            "routed": model("auto", extra_body={"upcall": {"route": "cloud"}}).invoke("hello").text,
            "refused": refused,
        }
    )
)
