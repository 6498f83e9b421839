"""upcall's own OpenAPI document, made from the models that check the requests; served at `/openapi.json`."""

from importlib.metadata import version
from typing import Any

from aiohttp import web

from daemon.api.control import PrivacyBody
from daemon.api.history import PARAMETERS
from daemon.api.openai import ChatBody
from daemon.api.wish import WISHES

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "One line: what happened, why, what to do."},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field of the request that is wrong."},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
ID = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]


async def serve(_: web.Request) -> web.Response:
    return web.json_response(document())


def document() -> dict[str, Any]:
    """The document, of OpenAPI 3.1."""
    schemas: dict[str, Any] = {"Error": ERROR}
    chat: dict[str, Any] = {"requestBody": _body(ChatBody, schemas), "parameters": _headers()}
    switch: dict[str, Any] = {"requestBody": _body(PrivacyBody, schemas)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "upcall",
            "version": version("upcall"),
            "description": "Answers prompts on this machine and calls up to a cloud model only when it must.",
        },
        "paths": {
            "/v1/chat/completions": {
                "post": _operation("Answer a chat, as OpenAI does", **chat, stream=True),
            },
            "/v1/route": {"post": _operation("The decision that this chat would get, without an answer", **chat)},
            "/v1/models": {"get": _operation("The model names that a request may carry")},
            "/healthz": {"get": _operation("How upcall and its parts do")},
            "/upcall/privacy": {"put": _operation("Switch privacy mode", **switch)},
            "/upcall/stats": {"get": _operation("What requests came to today, in 7 days and this month")},
            "/upcall/decisions": {"get": _operation("The latest requests, newest first", parameters=PARAMETERS)},
            "/upcall/decisions/{id}": {
                "get": _operation("One request, by the first characters of its id", parameters=ID)
            },
            "/upcall/events": {"get": _operation("Every request as it ends, and how upcall does", stream=True)},
            "/openapi.json": {"get": _operation("This document")},
        },
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
    }


def _operation(summary: str, *, stream: bool = False, **more: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if stream:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    error = {
        "description": "An error",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    return {
        "summary": summary,
        "responses": {"200": {"description": "Done", "content": content}, "default": error},
        **more,
    }


def _body(model: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(schema.pop("$defs", {}))
    schemas[model.__name__] = schema
    return {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}},
    }


def _headers() -> list[dict[str, Any]]:
    return [{"name": name, "in": "header", "required": False, "schema": {**schema}} for name, schema in WISHES.items()]
