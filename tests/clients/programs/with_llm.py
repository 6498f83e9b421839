"""`llm`, set up by its own files: prints what it got as JSON."""

import json
import os
import sys
import tempfile
from pathlib import Path

folder = Path(os.environ.setdefault("LLM_USER_PATH", tempfile.mkdtemp()))
models = [
    {"model_id": f"upcall-{name}", "model_name": name, "api_base": f"{sys.argv[1]}/v1", "supports_schema": True,
     "supports_tools": True}
    for name in ("local", "cloud")
]  # fmt: skip
folder.joinpath("extra-openai-models.yaml").write_text(json.dumps(models))

import llm  # noqa: E402 - it reads its folder when it is imported


def get_weather(city: str) -> str:
    """Tell the weather."""
    return f"4 degrees in {city}"


local, cloud = llm.get_model("upcall-local"), llm.get_model("upcall-cloud")
small = {"max_tokens": 6, "temperature": 0}
schema = {
    "type": "object",
    "properties": {"capital": {"type": "string"}},
    "required": ["capital"],
    "additionalProperties": False,
}
chain = cloud.chain("the weather in Oslo", tools=[get_weather], key="none")
try:
    local.prompt("hello", temperature=1.5, max_tokens=0, key="none", stream=False).text()
    refused = None
except Exception as error:
    refused = str(error)

print(
    json.dumps(
        {
            "whole": local.prompt("hello", stream=False, key="none", **small).text(),
            "streamed": "".join(local.prompt("hello", stream=True, key="none", **small)),
            "told": chain.text(),
            "capital": cloud.prompt("the capital of Peru", schema=schema, key="none", stream=False).text(),
            "refused": refused,
        }
    )
)
