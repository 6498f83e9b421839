"""Which wire format a path belongs to, and its way of saying that something went wrong."""

from aiohttp import web

from daemon.api import anthropic_message, completion
from daemon.api.errors import ApiError
from daemon.api.explain import new_request_id
from daemon.api.ollama_answer import error_object as ollama_error


def error_response(path: str, error: ApiError) -> web.Response:
    """`error` as the client that asked for `path` expects it."""
    if is_anthropic(path):
        id = error.headers.get("x-upcall-request-id") or new_request_id()
        body, status = anthropic_message.error_object(error, id), anthropic_message.status(error)
        return web.json_response(body, status=status, headers={**error.headers, "request-id": id})
    if path.startswith("/api/"):
        return web.json_response(ollama_error(error), status=error.status, headers=error.headers)
    return web.json_response(completion.error_object(error), status=error.status, headers=error.headers)


def is_anthropic(path: str) -> bool:
    return path == "/v1/messages" or path.startswith("/v1/messages/")
