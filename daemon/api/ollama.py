"""Ollama's wire format, so that its clients find a server (https://github.com/ollama/ollama/blob/main/docs/api.md)."""

import hashlib
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from aiohttp import web

from daemon.api.answering import answer
from daemon.api.catalogue import Catalogue, Entry
from daemon.api.embeddings import DIMENSION, MODEL, count, embed
from daemon.api.errors import ApiError
from daemon.api.ollama_answer import OllamaShape, now
from daemon.api.ollama_request import Body, ChatBody, EmbedBody, EmbeddingsBody, GenerateBody, ShowBody
from daemon.api.reading import read
from daemon.api.wish import LATEST, asked
from daemon.config import Routing
from daemon.dispatcher import Dispatcher
from daemon.routing.scorer import Scorer
from models.interface import ChatRequest

VERSION = "0.12.6"
"""The release of Ollama whose API this is; clients refuse servers whose number is too low."""
MANAGEMENT = {
    "pull": "`upcall pull NAME` fetches models",
    "push": "upcall publishes no models",
    "create": "upcall takes GGUF files by path: set local.model in config.toml",
    "copy": "upcall takes GGUF files by path: set local.model in config.toml",
    "delete": "`upcall rm NAME` removes models",
}


class Ollama:
    def __init__(self, dispatcher: Dispatcher, routing: Routing, scorer: Scorer, catalogue: Catalogue) -> None:
        self._dispatcher = dispatcher
        self._routing = routing
        self._scorer = scorer
        self._catalogue = catalogue

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/api/chat", self.chat),
            web.post("/api/generate", self.generate),
            web.post("/api/embed", self.embed),
            web.post("/api/embeddings", self.embeddings),
            web.get("/api/tags", self.tags),
            web.get("/api/ps", self.ps),
            web.post("/api/show", self.show),
            web.get("/api/version", self.version),
            *(web.post(f"/api/{verb}", manage) for verb in MANAGEMENT if verb != "delete"),
            web.delete("/api/delete", manage),
        ]

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body, _, wishes = await read(request, ChatBody)
        if not body.messages:
            return _loaded({"message": {"role": "assistant", "content": ""}}, body.model)
        shape = partial(OllamaShape, kind="chat")
        return await self._answer(request, body, body.request(), wishes, shape)

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body, _, wishes = await read(request, GenerateBody)
        if not body.prompt:
            return _loaded({"response": ""}, body.model)
        shape = partial(OllamaShape, kind="generate")
        return await self._answer(request, body, body.request(), wishes, shape)

    async def _answer(
        self,
        request: web.Request,
        body: Body,
        chat: ChatRequest,
        wishes: Mapping[str, str],
        shape: "partial[OllamaShape]",
    ) -> web.StreamResponse:
        ask = asked(body.model, request.headers, wishes, self._routing)
        return await answer(request, self._dispatcher, chat, ask, "ollama", shape, body.stream is not False)

    async def embed(self, request: web.Request) -> web.Response:
        start = time.perf_counter()
        body, _, _ = await read(request, EmbedBody)
        texts = [body.input] if isinstance(body.input, str) else body.input
        vectors = await embed(self._scorer, texts)
        return web.json_response(
            {
                "model": MODEL,
                "embeddings": vectors,
                "total_duration": round((time.perf_counter() - start) * 1e9),
                "load_duration": 0,
                "prompt_eval_count": count(texts),
            }
        )

    async def embeddings(self, request: web.Request) -> web.Response:
        body, _, _ = await read(request, EmbeddingsBody)
        return web.json_response({"embedding": (await embed(self._scorer, [body.prompt]))[0]})

    async def tags(self, _: web.Request) -> web.Response:
        return web.json_response({"models": [_listed(entry) for entry in await self._catalogue.entries()]})

    async def ps(self, _: web.Request) -> web.Response:
        """The one model that is loaded, if it is."""
        loaded = [entry for entry in await self._catalogue.entries() if entry.loaded]
        running = {"size_vram": 0, "expires_at": "9999-12-31T23:59:59Z"}
        models = [_listed(entry) | running | {"context_length": entry.context_length} for entry in loaded]
        return web.json_response({"models": models})

    async def show(self, request: web.Request) -> web.Response:
        body, _, _ = await read(request, ShowBody)
        entry = await self._catalogue.find((body.model or body.name or "").removesuffix(LATEST))
        if entry is None:
            raise ApiError(404, f"model {body.model or body.name!r} not found; GET /api/tags lists what there is.")
        return web.json_response(
            {
                "modelfile": "",
                "parameters": "",
                "template": "",
                "license": "",
                "details": _details(entry),
                "model_info": {
                    "general.architecture": "upcall",
                    "general.basename": entry.id,
                    "upcall.context_length": entry.context_length,
                    "upcall.embedding_length": DIMENSION if entry.embeddings else 0,
                },
                "capabilities": list(_capabilities(entry)),
                "modified_at": _STARTED,
            }
        )

    async def version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": VERSION})


async def manage(request: web.Request) -> web.Response:
    """Models come and go by upcall's own commands, not over HTTP, where any page or program could ask for gigabytes."""
    verb = request.path.rsplit("/", 1)[-1]
    raise ApiError(403, f"upcall does not {verb} models over HTTP: {MANAGEMENT[verb]}.")


_STARTED = now()


def _loaded(content: dict[str, Any], model: str) -> web.Response:
    """An empty prompt asks Ollama to load a model; upcall's is loaded anyway."""
    return web.json_response({"model": model, "created_at": now(), **content, "done": True, "done_reason": "load"})


def _listed(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.id,
        "model": entry.id,
        "modified_at": _STARTED,
        "size": 0,
        # Clients tell models apart by it.
        "digest": hashlib.sha256(entry.id.encode()).hexdigest(),
        "details": _details(entry),
    }


def _details(entry: Entry) -> dict[str, Any]:
    return {
        "parent_model": entry.model or "",
        "format": "gguf",
        "family": "upcall",
        "families": ["upcall"],
        "parameter_size": "",
        "quantization_level": "",
    }


def _capabilities(entry: Entry) -> list[str]:
    if entry.embeddings:
        return ["embedding"]
    return ["completion", *(["tools"] if entry.tools else []), *(["vision"] if entry.images else [])]
