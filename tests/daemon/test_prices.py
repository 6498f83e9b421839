"""Costs and savings at list prices, of real answers."""

from typing import Any

import pytest

from daemon.prices import Price, look_up
from models.interface import Usage
from tests.daemon.conftest import Escalating
from tests.daemon.harness import client, wait_until
from tests.emulators.servers import Emulator

HELLO: Any = [{"role": "user", "content": "hello"}]


async def test_the_price_list_knows_a_model_and_admits_what_it_does_not_know() -> None:
    price = await look_up("openai", "gpt-4")

    assert price
    assert price.of(Usage(1_000_000, 1_000_000)) == pytest.approx(90)
    assert await look_up("openai", "no-such-model") is None


def test_a_cloud_answer_names_its_cost_and_a_local_one_what_it_saved(escalating: Escalating, aimock: Emulator) -> None:
    daemon = escalating(aimock.base_url("openai"))

    def header(model: str, name: str) -> float | None:
        answer = client(daemon).chat.completions.with_raw_response.create(model=model, messages=HELLO, max_tokens=4)
        value = answer.headers.get(name)
        return None if value is None else float(value)

    wait_until(lambda: header("cloud", "x-upcall-cost-usd") is not None)
    assert (header("cloud", "x-upcall-cost-usd") or 0) > 0
    assert header("cloud", "x-upcall-saved-usd") == 0
    assert header("local", "x-upcall-cost-usd") == 0
    assert (header("local", "x-upcall-saved-usd") or 0) > 0


def test_a_price_is_per_token() -> None:
    assert Price(2e-6, 8e-6).of(Usage(100, 10)) == pytest.approx(0.00028)
