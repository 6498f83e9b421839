"""Asks the local model how hard prompts are for it, for the router that has it judge them."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from daemon.processes.workers import Workers
from models.client import WorkerClient, WorkerGoneError
from models.interface import Labelled

REMEMBERED = 2048
"""Judgements kept in memory, by hash: a conversation brings its earlier turns with every request."""


class NotJudgedError(Exception):
    """The local model is not there, or would not judge."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one model made of some texts."""

    model_sha256: str
    """Of the model's file: what a judgement is worth differs from model to model."""
    logprobs: Sequence[Sequence[float]]
    """For each text, of each label being what follows it."""


class LocalJudge:
    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._client: WorkerClient | None = None
        self._sha256 = ""
        self._known: OrderedDict[bytes, Sequence[float]] = OrderedDict()

    async def model_sha256(self) -> str:
        """Of the local model's file. Raises `NotJudgedError`."""
        client = await self._connected()
        return self._sha256 or (await self._said(client, "", ())).model_sha256

    async def judge(self, texts: Sequence[str], labels: Sequence[str]) -> Judgement:
        """How likely each of the `labels` is to follow each text. Raises `NotJudgedError`."""
        client = await self._connected()
        sha256 = self._sha256
        keys = [_key(text, labels) for text in texts]
        # Apart from what is remembered: that may be forgotten, or be of another model, while the answers come.
        found = {key: self._recall(key) for key in keys if key in self._known}
        unknown = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        said = await asyncio.gather(*(self._said(client, text, labels) for text in unknown.values()))
        found |= {key: labelled.logprobs for key, labelled in zip(unknown, said, strict=True)}
        return Judgement(said[0].model_sha256 if said else sha256, [found[key] for key in keys])

    async def _connected(self) -> WorkerClient:
        client = await self._workers.get("local")
        if client is None:
            raise NotJudgedError
        if client is not self._client:
            # Another process may host another model.
            self._client, self._sha256 = client, ""
            self._known.clear()
        return client

    async def _said(self, client: WorkerClient, text: str, labels: Sequence[str]) -> Labelled:
        try:
            labelled = await client.label_logprobs(text, labels)
        except (ValueError, WorkerGoneError) as error:
            raise NotJudgedError from error
        if client is self._client:
            self._sha256 = labelled.model_sha256
            self._known[_key(text, labels)] = labelled.logprobs
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return labelled

    def _recall(self, key: bytes) -> Sequence[float]:
        self._known.move_to_end(key)
        return self._known[key]


def _key(text: str, labels: Sequence[str]) -> bytes:
    said = "\0".join([*labels, text]).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(said, digest_size=16).digest()
