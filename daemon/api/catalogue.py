"""The model names that a request may carry, and what each can do."""

from dataclasses import dataclass
from typing import Any

from aiohttp import web

from daemon import resolve
from daemon.api.embeddings import MODEL
from daemon.api.errors import ApiError
from daemon.config import Cloud
from daemon.processes.workers import Workers
from daemon.routing.scorer import Scorer

SHOWN_THRESHOLD = "0.5"
"""Of the routers in the list; any other from 0 to 1 may be named."""
CREATED = "1970-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Entry:
    id: str
    owned_by: str
    model: str | None
    """What answers; `None` where that differs from prompt to prompt."""
    context_length: int
    """Tokens that prompt and answer share; 0 where unknown."""
    tools: bool
    images: bool
    embeddings: bool = False
    ready: bool = True
    loaded: bool = False
    """It is in memory."""

    def rendered(self) -> dict[str, Any]:
        """For the lists of OpenAI and of Anthropic at once, whose fields do not clash."""
        return {
            "id": self.id,
            "object": "model",
            "created": 0,
            "owned_by": self.owned_by,
            "type": "model",
            "display_name": self.id if self.model is None else f"{self.id} ({self.model})",
            "created_at": CREATED,
            "context_length": self.context_length or None,
            "capabilities": {
                "chat": not self.embeddings,
                "tools": self.tools,
                "images": self.images,
                "embeddings": self.embeddings,
            },
            "ready": self.ready,
        }


class Catalogue:
    def __init__(self, cloud: Cloud, workers: Workers, scorer: Scorer) -> None:
        self._cloud = resolve.cloud(cloud)
        self._workers = workers
        self._scorer = scorer

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/v1/models", self.all), web.get(r"/v1/models/{id:.+}", self.one)]

    async def all(self, _: web.Request) -> web.Response:
        data = [entry.rendered() for entry in await self.entries()]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]}
        return web.json_response({"object": "list", "data": data, "has_more": False, **ends})

    async def one(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        entry = await self.find(name)
        if entry is None:
            message = f"There is no model {name!r}; GET /v1/models lists what there is."
            raise ApiError(404, message, code="model_not_found", param="model")
        return web.json_response(entry.rendered())

    async def find(self, name: str) -> Entry | None:
        return next((entry for entry in await self.entries() if entry.id == name), None)

    async def entries(self) -> list[Entry]:
        """`auto`, `local` and `cloud` first, then the routers, then the encoder."""
        weak, strong, standing = await self._workers.local_status(), self._cloud, self._workers.standing
        up = standing.has_key and not standing.privacy
        local = Entry(
            "local", "upcall", weak.name, weak.context_length, weak.tools, weak.images,
            ready=weak.state in ("ready", "unloaded"), loaded=weak.state == "ready",
        )  # fmt: skip
        cloud = Entry(
            "cloud", strong.provider, strong.name, strong.context_length, strong.tools, strong.images, ready=up
        )
        routed = ("upcall", None, max(weak.context_length, strong.context_length if up else 0),
                  weak.tools or (up and strong.tools), weak.images or (up and strong.images))  # fmt: skip
        routers = [f"router-{name}-{SHOWN_THRESHOLD}" for name in await self._scorer.routers()]
        encoder = Entry(MODEL, "upcall", MODEL, 0, tools=False, images=False, embeddings=True)
        return [Entry("auto", *routed), local, cloud, *(Entry(name, *routed) for name in routers), encoder]
