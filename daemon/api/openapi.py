"""upcall's own OpenAPI document, made from the models that check the requests; served at `/openapi.json`."""

from importlib.metadata import version
from typing import Any

from aiohttp import web

from daemon.api import ollama_request as ollama
from daemon.api import sharing
from daemon.api.anthropic_request import CountBody, MessagesBody
from daemon.api.control import PrivacyBody
from daemon.api.embeddings import EmbeddingsBody
from daemon.api.feedback import FeedbackBody
from daemon.api.history import PARAMETERS
from daemon.api.openai import ChatBody
from daemon.api.responses_request import ResponsesBody
from daemon.api.text_completion import CompletionBody
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
            "/v1/completions": {
                "post": _operation(
                    "Answer a prompt, as OpenAI did before chats",
                    requestBody=_body(CompletionBody, schemas),
                    parameters=_headers(),
                    stream=True,
                )
            },
            "/v1/responses": {
                "post": _operation(
                    "Answer a conversation, as OpenAI does now, without keeping it",
                    requestBody=_body(ResponsesBody, schemas, "Responses"),
                    parameters=_headers(),
                    stream=True,
                )
            },
            "/v1/embeddings": {
                "post": _operation("Vectors of texts, as OpenAI does", requestBody=_body(EmbeddingsBody, schemas))
            },
            "/v1/feedback": {
                "post": _operation(
                    "Say whether a request was answered in the right place", requestBody=_body(FeedbackBody, schemas)
                )
            },
            "/v1/models": {"get": _operation("The model names that a request may carry, and what each can do")},
            "/v1/models/{id}": {"get": _operation("One of the models", parameters=ID)},
            **_anthropic(schemas),
            **_ollama(schemas),
            "/healthz": {"get": _operation("How upcall and its parts do")},
            "/upcall/privacy": {"put": _operation("Switch privacy mode", **switch)},
            "/upcall/routing": {
                "get": _operation("Threshold and expected share of a cloud share", parameters=sharing.PARAMETERS),
                "put": _operation("Let another share go up", requestBody=_body(sharing.RoutingBody, schemas)),
            },
            "/upcall/stats": {"get": _operation("What requests came to today, in 7 days and this month")},
            "/upcall/decisions": {"get": _operation("The latest requests, newest first", parameters=PARAMETERS)},
            "/upcall/decisions/{id}": {
                "get": _operation("One request, by the first characters of its id", parameters=ID)
            },
            "/upcall/events": {"get": _operation("Every request as it ends, and how upcall does", stream=True)},
            "/metrics": {"get": _operation("What requests came to since the start, for Prometheus", text=True)},
            "/openapi.json": {"get": _operation("This document")},
        },
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
    }


def _anthropic(schemas: dict[str, Any]) -> dict[str, Any]:
    messages, count = (_body(model, schemas, "Anthropic") for model in (MessagesBody, CountBody))
    return {
        "/v1/messages": {
            "post": _operation(
                "Answer a conversation, as Anthropic does", requestBody=messages, parameters=_headers(), stream=True
            )
        },
        "/v1/messages/count_tokens": {
            "post": _operation("Tokens of a conversation, by the local model's tokenizer", requestBody=count)
        },
    }


def _ollama(schemas: dict[str, Any]) -> dict[str, Any]:
    summaries = {
        "chat": ("Answer a conversation, as Ollama does", ollama.ChatBody),
        "generate": ("Answer a prompt, as Ollama does", ollama.GenerateBody),
        "embed": ("Vectors of texts, as Ollama does", ollama.EmbedBody),
        "embeddings": ("The vector of a text, as Ollama did before", ollama.EmbeddingsBody),
        "show": ("What a model can do, as Ollama does", ollama.ShowBody),
    }
    posts = {
        f"/api/{verb}": {"post": _operation(summary, requestBody=_body(model, schemas, "Ollama"))}
        for verb, (summary, model) in summaries.items()
    }
    refused = {f"/api/{verb}": {"post": _operation("Refused")} for verb in ("pull", "push", "create", "copy")}
    return {
        **posts,
        **refused,
        "/api/delete": {"delete": _operation("Refused")},
        "/api/tags": {"get": _operation("The models, as Ollama lists them")},
        "/api/ps": {"get": _operation("The model that is loaded, as Ollama says it")},
        "/api/version": {"get": _operation("The release of Ollama whose API this is")},
    }


def _operation(summary: str, *, stream: bool = False, text: bool = False, **more: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if text:
        content = {"text/plain": {"schema": {"type": "string"}}}
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


def _body(model: Any, schemas: dict[str, Any], wire: str = "") -> dict[str, Any]:
    """`wire` tells apart what two wire formats call by the same name."""
    schema = model.model_json_schema(ref_template=f"#/components/schemas/{wire}{{model}}")
    schemas.update({f"{wire}{name}": inner for name, inner in schema.pop("$defs", {}).items()})
    schemas[f"{wire}{model.__name__}"] = schema
    return {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{wire}{model.__name__}"}}},
    }


def _headers() -> list[dict[str, Any]]:
    return [{"name": name, "in": "header", "required": False, "schema": {**schema}} for name, schema in WISHES.items()]
