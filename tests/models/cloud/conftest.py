"""A cloud model per test, pointed at an emulator or at the tests' own upstream."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from models.cloud.model import CloudModel
from models.cloud.settings import CloudSettings
from tests.emulators.servers import KEY


class Cloud:
    """Makes models and closes them."""

    def __init__(self) -> None:
        self.models: list[CloudModel] = []

    def __call__(
        self, provider: str, base_url: str | None, key: str | Callable[[str], str] = KEY, **settings: Any
    ) -> CloudModel:
        ids = {"openai": "gpt-4", "anthropic": "claude-sonnet-5"}
        values = {"name": "strong", "model": ids.get(provider, "some-model"), "key_name": "provider", "max_retries": 0}
        made = CloudSettings(provider=provider, base_url=base_url, **{**values, **settings})
        model = CloudModel(made, key if callable(key) else lambda _: key)
        self.models.append(model)
        return model


@pytest_asyncio.fixture
async def cloud() -> AsyncIterator[Cloud]:
    made = Cloud()
    yield made
    for model in made.models:
        await model.close()


@pytest.fixture(params=["openai", "anthropic"])
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)
