"""An OpenAI-compatible server on the network (vLLM, llama-server, Ray Serve) in the place of the local engine."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

from models.cloud.failures import CloudError, explain
from models.cloud.model import CloudModel
from models.interface import CALL_ID_PREFIX, ChatRequest, Event, ModelStatus, ToolCallDelta

LOOK_SECONDS: Final = 10.0
"""What the server said of itself holds for so long."""
LOOK_TIMEOUT: Final = 5.0


class RemoteModel(CloudModel):
    """Asked as a cloud model is, but it is looked at before anyone asks, as the local engine can be."""

    _length = 0
    _trouble = ""
    _looked = float("-inf")
    _looking: "asyncio.Task[None] | None" = None

    async def chat(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        async with aclosing(super().chat(request)) as events:
            async for event in events:
                if isinstance(event, ToolCallDelta) and event.id:
                    # The ids in a conversation's history tell whose calls they were.
                    event = replace(event, id=CALL_ID_PREFIX + event.id)
                yield event

    async def status(self) -> ModelStatus:
        """What the server says of itself; waits for it the first time only, and then no longer than `LOOK_TIMEOUT`."""
        first = self._looking is None
        if self._looking is None or (self._looking.done() and time.monotonic() - self._looked > LOOK_SECONDS):
            self._looking = asyncio.create_task(self._look())
        if first:
            await asyncio.wait([self._looking])
        return ModelStatus(
            name=self._settings.model,
            state="failed" if self._trouble else "ready",
            context_length=self._length or self._settings.context_length,
            tools=self._settings.tools,
            images=self._settings.images,
            detail=self._trouble or f"at {self._settings.base_url}",
        )

    async def count_tokens(self, request: ChatRequest) -> int:
        """An upper bound where that fits. Raises `ValueError` for longer prompts, which only the server can count."""
        if (most := await super().count_tokens(request)) > (self._length or self._settings.context_length):
            raise ValueError(f"The server at {self._settings.base_url} says itself when a prompt is too long.")
        return most

    async def close(self) -> None:
        if self._looking:
            self._looking.cancel()
        await super().close()

    async def _look(self) -> None:
        try:
            connection = await self._connected()
            async with asyncio.timeout(LOOK_TIMEOUT):
                listed = await connection.client.models.list()
            names = {model.id: model for model in listed.data}
            known = names.get(self._settings.model)
            self._length = _context_length(known) if known else 0
            others = ", ".join(list(names)[:5]) or "none"
            missing = (
                f"{self._settings.base_url} has no model {self._settings.model!r}; set local.model to one of: {others}"
            )
            self._trouble = "" if known else missing
        except CloudError as error:
            self._trouble = error.failure.message
        except Exception as error:
            self._trouble = explain(error, self._settings, ChatRequest(messages=())).failure.message
        self._looked = time.monotonic()


def _context_length(model: Any) -> int:
    """0 where the server does not say: vLLM has it beside the model's name, llama-server under `meta`."""
    said = model.model_extra or {}
    meta = said.get("meta")
    length = said.get("max_model_len") or said.get("context_length") or (isinstance(meta, dict) and meta.get("n_ctx"))
    return length if isinstance(length, int) else 0
