"""Tool names that MCP servers have and OpenAI refuses, for their length: sent short, and whole again in the answer."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

LONGEST: Final = 64
"""Characters (https://platform.openai.com/docs/api-reference/chat/create#chat_create-tools); Anthropic takes 128."""
_TOLD_APART_BY: Final = 8


def shortened(body: Mapping[str, Any]) -> dict[str, Any]:
    """`body`, of a chat completion, with no name that is too long among its tools, its choice and its history."""
    short = {**body}
    if tools := body.get("tools"):
        short["tools"] = [_short(tool) for tool in tools]
    if "tool_choice" in body:
        short["tool_choice"] = _short_choice(body["tool_choice"])
    short["messages"] = [
        {**message, "tool_calls": [_short(call) for call in message["tool_calls"]]}
        if isinstance(message.get("tool_calls"), list)
        else message
        for message in body["messages"]
    ]
    return short


def _short_choice(choice: Any) -> Any:
    match choice:
        case {"type": "allowed_tools", "allowed_tools": {"tools": list(tools)} as allowed}:
            return {**choice, "allowed_tools": {**allowed, "tools": [_short(tool) for tool in tools]}}
    return _short(choice)


def whole_names(tools: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What each name stands for that `shortened` makes of those of `tools`."""
    return {_short(tool)["function"]["name"]: tool["function"]["name"] for tool in tools if _short(tool) is not tool}


def _short(holder: Any) -> Any:
    """A tool, call or choice whose function has a short name."""
    match holder:
        case {"function": {"name": str(name)}} if len(name) > LONGEST:
            digest = hashlib.sha256(name.encode()).hexdigest()[:_TOLD_APART_BY]
            name = f"{name[: LONGEST - 1 - _TOLD_APART_BY]}_{digest}"
            return {**holder, "function": {**holder["function"], "name": name}}
    return holder
