"""What a token of the strong model costs, from the price list that genai-prices bundles (nothing is fetched).

The list takes tens of megabytes once it is loaded, so a short-lived process reads it: `python -m daemon.prices PROVIDER
MODEL` prints the two prices as JSON, or `null` for a model that the list does not know.
"""

import asyncio
import json
import sys
from dataclasses import asdict, dataclass

from models.interface import Usage


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per token."""

    prompt: float
    completion: float

    def of(self, usage: Usage) -> float:
        """What these tokens cost, in US dollars."""
        return usage.prompt_tokens * self.prompt + usage.completion_tokens * self.completion


async def look_up(provider: str, model: str) -> Price | None:
    """The list price of a model; `None` where the list has none."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, provider, model,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    output, _ = await process.communicate()
    values = json.loads(output or "null")
    return Price(**values) if values else None


def main() -> None:
    import genai_prices

    provider, model = sys.argv[1:]
    count = 1000
    try:
        paid = genai_prices.calc_price(
            genai_prices.Usage(input_tokens=count, output_tokens=count), model, provider_id=provider
        )
        price = Price(float(paid.input_price) / count, float(paid.output_price) / count)
        print(json.dumps(asdict(price)))
    except LookupError:
        print("null")


if __name__ == "__main__":
    main()
