"""Asks the local model how hard prompts are for it, for the router that has it judge them."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from daemon.workers import Workers
from models.client import WorkerClient, WorkerGoneError

REMEMBERED = 2048
"""Judgements kept in memory, by hash: a conversation brings its earlier turns with every request."""


class NotJudgedError(Exception):
    """The local model is not there, or would not judge."""


class LocalJudge:
    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._client: WorkerClient | None = None
        self._sha256 = ""
        self._known: OrderedDict[bytes, Sequence[float]] = OrderedDict()

    async def model_sha256(self) -> str:
        """Of the local model's file. Raises `NotJudgedError`."""
        client = await self._connected()
        if not self._sha256:
            self._sha256 = await self._said(client, "", ())
        return self._sha256

    async def log_probabilities(self, texts: Sequence[str], labels: Sequence[str]) -> list[Sequence[float]]:
        """Of each label being what follows each text. Raises `NotJudgedError`."""
        client = await self._connected()
        unknown = {_key(text, labels): text for text in texts if _key(text, labels) not in self._known}
        await asyncio.gather(*(self._said(client, text, labels) for text in unknown.values()))
        return [self._known[_key(text, labels)] for text in texts]

    async def _connected(self) -> WorkerClient:
        client = await self._workers.get("local")
        if client is None:
            raise NotJudgedError
        if client is not self._client:
            # Another process may host another model.
            self._client, self._sha256 = client, ""
            self._known.clear()
        return client

    async def _said(self, client: WorkerClient, text: str, labels: Sequence[str]) -> str:
        try:
            labelled = await client.label_logprobs(text, labels)
        except (ValueError, WorkerGoneError) as error:
            raise NotJudgedError from error
        if client is self._client:
            self._known[_key(text, labels)] = labelled.logprobs
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return labelled.model_sha256


def _key(text: str, labels: Sequence[str]) -> bytes:
    said = "\0".join([*labels, text]).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(said, digest_size=16).digest()
