"""`/v1/embeddings`: vectors from the routers' own encoder, on this machine."""

import base64
import struct
from collections.abc import Sequence
from typing import Any, Literal

from aiohttp import web
from pydantic import Field, field_validator

from daemon.api.errors import ApiError
from daemon.api.reading import Loose, read
from daemon.routing.scorer import NoEncoderError, Scorer

MODEL = "use-multilingual"
DIMENSION = 512
MOST = 2048
"""Texts in one request, as OpenAI has it."""


class EmbeddingsBody(Loose):
    """`POST /v1/embeddings`."""

    model: str = Field(default=MODEL, max_length=256)
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Literal[512] | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if isinstance(value, list) and any(isinstance(item, int | list) for item in value):
            raise ValueError(
                "token numbers mean nothing to this encoder, which has a vocabulary of its own: send strings "
                "(in LangChain check_embedding_ctx_length=False)"
            )
        if isinstance(value, list) and not 0 < len(value) <= MOST:
            raise ValueError(f"send 1 to {MOST} strings")
        return value


class Embeddings:
    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/v1/embeddings", self.create)]

    async def create(self, request: web.Request) -> web.Response:
        body, _, _ = await read(request, EmbeddingsBody)
        texts = [body.input] if isinstance(body.input, str) else body.input
        vectors = await embed(self._scorer, texts)
        encode = _base64 if body.encoding_format == "base64" else list
        tokens = count(texts)
        return web.json_response(
            {
                "object": "list",
                "model": MODEL,
                "data": [
                    {"object": "embedding", "index": index, "embedding": encode(vector)}
                    for index, vector in enumerate(vectors)
                ],
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )


async def embed(scorer: Scorer, texts: Sequence[str]) -> list[Sequence[float]]:
    """Raises `ApiError` where there is no encoder."""
    try:
        return [await scorer.embed(text) for text in texts]
    except NoEncoderError as error:
        raise ApiError(503, str(error)) from None


def count(texts: Sequence[str]) -> int:
    """Words: the encoder's tokens are not to be had, since its graph makes them inside."""
    return sum(len(text.split()) for text in texts)


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
