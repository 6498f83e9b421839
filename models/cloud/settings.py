"""Which cloud model answers, how it is reached, and how long to wait for it."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudSettings:
    """One cloud model. `dataclasses.asdict` makes it JSON, and `CloudSettings(**values)` reads it back.

    Raises ValueError for settings that cannot work. Times are in seconds.
    """

    name: str
    """What the configuration calls it, such as `gpt-4`."""
    provider: str
    """`openai`, `anthropic`, or the name of any other provider of any-llm that speaks OpenAI's chat format."""
    model: str
    """The id that the provider knows the model by."""
    base_url: str | None = None
    """None: the provider's own."""
    key_name: str | None = None
    """The entry of the keyring; None for a server that asks for no key."""

    connect_timeout: float = 10.0
    first_byte_timeout: float = 60.0
    """From sending the request to the first piece of the answer, of each try."""
    chunk_timeout: float = 60.0
    """Between two pieces of the answer."""
    total_timeout: float = 600.0
    """Everything: waiting, retries and the whole answer."""
    max_retries: int = 2

    proxy: str | None = None
    """URL of an HTTP proxy; the proxy variables of the environment are not read."""
    ca_bundle: str | None = None
    """PEM file of the certificate authorities to trust instead of the usual ones."""

    max_tokens: int = 4096
    """Answer length where the client names none and the provider asks for one, as Anthropic does."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    """None: the new name at OpenAI's own address, whose models refuse the old one; elsewhere the old, known to all."""
    unsupported: Sequence[str] = ()
    """Request fields that this model refuses; they are left out of what is sent."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Request fields that are sent where the client says nothing."""

    context_length: int = 0
    """Tokens that prompt and answer share; 0 where unknown."""
    tools: bool = True
    images: bool = False

    @property
    def one_choice_each(self) -> bool:
        """Whether a request gets one choice, as in Anthropic's format, so that `n` of them take as many requests."""
        return self.provider.lower().endswith("anthropic")

    def __post_init__(self) -> None:
        for name in ("name", "provider", "model"):
            if not getattr(self, name).strip():
                raise ValueError(f"The cloud model has no {name}: give one.")
        for name in ("base_url", "proxy"):
            url = getattr(self, name)
            if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
                raise ValueError(f"{name} of cloud model {self.name} is no http or https URL: {url!r}.")
        for name in ("connect_timeout", "first_byte_timeout", "chunk_timeout", "total_timeout", "max_tokens"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} of cloud model {self.name} must be above 0.")
        if self.max_retries < 0:
            raise ValueError(f"max_retries of cloud model {self.name} must not be negative; 0 turns retries off.")


def presets() -> dict[str, CloudSettings]:
    """The cloud models that are known by name, from presets.toml."""
    table = tomllib.loads(Path(__file__).with_name("presets.toml").read_text(encoding="utf-8"))
    return {name: CloudSettings(name=name, **values) for name, values in table.items()}
