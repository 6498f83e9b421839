"""Reads the price list that genai-prices bundles: `python -m daemon.accounts.price_list PROVIDER MODEL`.

It prints the fields of `daemon.accounts.prices.Price` as JSON, or `null` for a model that the list does not know.
Nothing else of upcall is imported, which would take as long as the list itself, at every start.
"""

import json
import sys
from typing import Any

import genai_prices

MILLION = 1_000_000


def main() -> None:
    """The command line."""
    provider, model = sys.argv[1:]
    try:
        listed = genai_prices.calc_price(genai_prices.Usage(), model, provider_id=provider).model_price
    except LookupError:
        print("null")
        return
    starts = sorted({tier.start for value in vars(listed).values() for tier in getattr(value, "tiers", ())})
    beyond = [(start, _price(listed, start + 1)) for start in starts]
    print(json.dumps({**_price(listed, 0), "beyond": beyond}))


def _price(listed: Any, prompt_tokens: int) -> dict[str, float | None]:
    """Of the list, for prompts of so many tokens."""

    def per_token(name: str) -> float | None:
        value = getattr(listed, name)
        reached = [tier.price for tier in getattr(value, "tiers", ()) if prompt_tokens > tier.start]
        value = reached[-1] if reached else getattr(value, "base", value)
        return None if value is None else float(value) / MILLION

    return {
        "prompt": per_token("input_mtok") or 0.0,
        "completion": per_token("output_mtok") or 0.0,
        "cached": per_token("cache_read_mtok"),
        "written": per_token("cache_write_mtok"),
        "written_long": per_token("cache_write_1h_mtok"),
    }


if __name__ == "__main__":
    main()
