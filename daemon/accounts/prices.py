"""What a token of a cloud model costs: by the settings, or by the price list that genai-prices bundles.

Nothing is fetched. The list takes tens of megabytes once it is loaded, so a short-lived process reads it
(`daemon/accounts/price_list.py`).
"""

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from daemon import resolve
from daemon.config import Endpoint, ModelPrice
from models.interface import Usage

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per token."""

    prompt: float
    completion: float
    cached: float | None = None
    """Of the prompt's tokens that were in the provider's cache; `None`: as any other."""
    written: float | None = None
    """Of those that were put there; `None`: as any other."""
    written_long: float | None = None
    """Of those that were put there for an hour; `None`: as `written`."""
    beyond: "Sequence[tuple[int, Price]]" = ()
    """For prompts of more than so many tokens everything costs this instead; in rising order."""

    def of(self, usage: Usage) -> float:
        """What these tokens cost, in US dollars."""
        price = self._for(usage.prompt_tokens)
        written = price.prompt if price.written is None else price.written
        plain = usage.prompt_tokens - usage.cached_tokens - usage.written_tokens - usage.written_long_tokens
        return (
            max(plain, 0) * price.prompt
            + usage.cached_tokens * (price.prompt if price.cached is None else price.cached)
            + usage.written_tokens * written
            + usage.written_long_tokens * (written if price.written_long is None else price.written_long)
            + usage.completion_tokens * price.completion
        )

    def most(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What at most so many tokens can cost, in US dollars, cached or not."""
        price = self._for(prompt_tokens)
        dearest = max(price.prompt, price.written or 0, price.written_long or 0)
        return prompt_tokens * dearest + completion_tokens * price.completion

    def _for(self, prompt_tokens: int) -> "Price":
        return next((price for start, price in reversed(self.beyond) if prompt_tokens > start), self)


async def find(endpoint: Endpoint, own: Mapping[str, ModelPrice]) -> Price | None:
    """The price of a cloud model: the settings' `own`, else the list's, else the one that the endpoint assumes.

    `None` where it is not known and none is assumed.
    """
    cloud = resolve.cloud(endpoint)
    for name in (endpoint.model, cloud.model):
        if name in own:
            return _of_settings(own[name])
    if listed := await look_up(cloud.provider, cloud.model):
        return listed
    assumed = endpoint.unknown_price
    return None if assumed == "refuse" else Price(assumed / MILLION, assumed / MILLION)


async def look_up(provider: str, model: str) -> Price | None:
    """The list price of a model; `None` where the list has none."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "daemon.accounts.price_list", provider, model,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:  # the daemon stops before it knows
            process.kill()
            await process.wait()
    values = json.loads(output or "null")
    if not values:
        return None
    beyond = [(start, Price(**price)) for start, price in values.pop("beyond")]
    return Price(**values, beyond=beyond)


def _of_settings(price: ModelPrice) -> Price:
    def per_token(value: float | None) -> float | None:
        return None if value is None else value / MILLION

    return Price(
        price.prompt / MILLION,
        price.completion / MILLION,
        per_token(price.cached),
        per_token(price.written),
        per_token(price.written_long),
    )
