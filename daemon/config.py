"""Everything that can be set, by section; `daemon.config_file` reads it."""

import ipaddress
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from daemon.keys import checked_name


class ConfigError(Exception):
    """A setting is wrong; the message has one line per mistake and says what to do."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True)


KeyName: TypeAlias = Annotated[str, AfterValidator(checked_name)]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Server(Section):
    host: str = "127.0.0.1"
    """Address to listen on; any but a loopback address needs `token`."""
    port: int = Field(default=8484, ge=0, le=65535)
    """TCP port; 0 takes a free one and prints it."""
    socket: Path | None = None
    """Unix socket to listen on in the place of host and port; serves the user that runs upcall alone."""
    allowed_hosts: tuple[str, ...] = ()
    """Names, besides loopback addresses and `localhost`, that a request's Host header may carry."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of web pages that may use upcall, such as `https://chat.example.org`."""
    token: bool = False
    """Ask every request, but those for the dashboard's own files, for the token that `upcall key set server` stored."""
    max_concurrent: int = Field(default=64, ge=1)
    """Requests that one client address may have open."""
    max_body_bytes: int = Field(default=8 * 2**20, ge=1024)
    """Largest request body."""

    @property
    def is_loopback(self) -> bool:
        return _is_loopback(self.host)

    @model_validator(mode="after")
    def _not_open_to_anybody(self) -> "Server":
        if not self.is_loopback and not self.token:
            raise ValueError(
                f"{self.host} is not a loopback address: use 127.0.0.1, or set server.token = true, so that only who "
                "has the token is served"
            )
        return self


class Routing(Section):
    router: str = "mf"
    """Router that scores prompts for `auto`."""
    cloud_share: float = Field(default=0.2, ge=0, le=1)
    """Share of prompts that may go to the cloud; the threshold follows from it by calibration."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Raw score at and above which a prompt goes to the cloud; takes the place of `cloud_share`."""
    judge_seconds: float = Field(default=3, gt=0)
    """Seconds that the local model may take to judge a prompt for `causal_llm`; after them the prompt stays here."""
    unknown_models: Literal["auto", "refuse"] = "auto"
    """What a model name that upcall does not know means: as `auto`, or an error."""
    on_local_failure: Literal["error", "cloud"] = "error"
    """When the local model fails before its first word: tell the client, or let the prompt go up."""


class SecondLook(Section):
    enabled: bool = False
    """Hold the first tokens of a local answer back where the router was nearly undecided, and let the prompt go up
    where they show that the answer will not do. Off: its worth for answers in words is not measured."""
    band: float = Field(default=0.2, ge=0, le=1)
    """Share of ordinary prompts that are looked at twice: those whose scores lie closest below the threshold."""
    tokens: int = Field(default=4, ge=2, le=32)
    """First tokens of the answer to look at."""
    milliseconds: float = Field(default=500, gt=0)
    """Longest that an answer is held back, from its first token on."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Confidence, 0 to 1, below which a prompt goes up; where it is not set, it follows from `routing.cloud_share` by
    calibration."""


class Local(Section):
    model: str = "auto"
    """Name from `upcall models` or path of a GGUF file; `auto` is llama3-8b once pulled, else smollm2-135m."""
    context_length: int = Field(default=8192, ge=256)
    """Tokens that prompt and answer share; the model's own limit where that is lower."""
    max_tokens: int = Field(default=1024, ge=1)
    """Length of an answer whose request sets no limit."""
    threads: int = Field(default=0, ge=0)
    """Threads that compute; 0 takes the physical cores."""
    slots: int = Field(default=4, ge=1, le=64)
    """Requests that the local model answers at the same time."""
    queue: int = Field(default=16, ge=1)
    """Requests that may wait for the local model; the next one is told to come back later."""
    repack: bool = False
    """Rearrange weights at load: faster generation for slower loads, slower prompts and much more memory."""
    nice: int = Field(default=5, ge=0, le=19)
    """Niceness of the local model's process, so that routing and the desktop stay quick while it computes."""
    idle_seconds: float = Field(default=0, ge=0)
    """The model leaves memory after so long without a request, and is loaded again with the next; 0: never."""
    timeout: float = Field(default=600, gt=0)
    """Seconds that a request may take in all, its wait included."""
    cache_on_disk: bool = False
    """Keep what was computed of conversations across restarts. It holds what was said; `upcall privacy forget` deletes
    it."""
    cache_disk_mib: int = Field(default=512, ge=1)
    """Disk space for that; conversations that were not continued for the longest go first."""
    cache_in_privacy: bool = False
    """Keep it in privacy mode too. It stays on this machine, and can still be read by who has the disk."""
    trust_template: bool = False
    """Use the chat template inside a GGUF file that upcall has no template of its own for."""
    battery_floor: float | None = Field(default=None, gt=0, le=1)
    """Charge, 0 to 1, below which a discharging battery is spared: more prompts may go up, by `battery_share`."""
    battery_share: float = Field(default=0.5, ge=0, le=1)
    """In the place of `routing.cloud_share` while the battery is spared."""
    endpoint: str | None = None
    """URL of an OpenAI-compatible server in the place of a file, such as `http://192.168.1.20:8000/v1`; `model` is then
    the name that it knows the model by, and `context_length` holds where it names none."""
    key: KeyName = "none"
    """Name of the endpoint's API key in the keyring; `none` for one without."""
    on_premises: bool = False
    """Count the endpoint as part of this machine, so that privacy mode lets prompts go there."""

    @property
    def is_elsewhere(self) -> bool:
        """Its model runs on a machine that does not count as this one."""
        return self.endpoint is not None and not self.on_premises

    @model_validator(mode="after")
    def _endpoint_is_complete(self) -> "Local":
        if self.endpoint is None:
            return self
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"endpoint {self.endpoint!r} is no http or https URL, such as http://192.168.1.20:8000/v1")
        if self.model == "auto":
            raise ValueError(f"set local.model to the name that {self.endpoint} knows the model by")
        return self


class Timeouts(Section):
    connect: float = Field(default=10, gt=0)
    """Seconds to a connection."""
    first_byte: float = Field(default=60, gt=0)
    """Seconds from the request to the first byte of the answer."""
    between: float = Field(default=30, gt=0)
    """Seconds between two chunks."""
    total: float = Field(default=600, gt=0)
    """Seconds for the whole answer, retries included."""


class Endpoint(Section):
    model: str
    """A preset (`gpt-4`, `claude-3-opus`) or, with `provider`, any model id of that provider."""
    provider: str | None = None
    """`openai` (or any endpoint that speaks it) or `anthropic`; the preset's where it is not set."""
    base_url: str | None = None
    """Endpoint; the provider's own where it is not set."""
    key: KeyName | None = None
    """Name of the API key in the keyring; the provider's name where it is not set, `none` for an endpoint without."""
    max_retries: int = Field(default=2, ge=0, le=10)
    """Tries after the first, before the first byte only."""
    timeouts: Timeouts = Timeouts()
    unknown_price: Literal["refuse"] | Annotated[float, Field(ge=0)] = "refuse"
    """Under a budget, what a model without a known price means: keep prompts here, or assume so many US dollars per
    million tokens."""
    proxy: str | None = None
    """HTTP proxy for the way to the cloud."""
    ca_bundle: Path | None = None
    """Certificates to trust instead of the system's."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Length of an answer whose request sets no limit, where the provider demands one, as Anthropic does; 4096 where it
    is not set."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    """How the endpoint calls that limit; not set: OpenAI's own takes the newer name, all others the older."""
    unsupported: tuple[str, ...] | None = None
    """Request fields that the model refuses, which are left out; the preset's where it is not set."""
    defaults: dict[str, Any] | None = None
    """Request fields to send where the request says nothing; the preset's where it is not set."""
    context_length: int | None = Field(default=None, ge=1)
    """Tokens that prompt and answer share; the preset's where it is not set."""
    tools: bool | None = None
    """Whether the model calls tools; the preset's where it is not set, else it does."""
    images: bool | None = None
    """Whether the model reads images; the preset's where it is not set, else it does not."""


class Cloud(Endpoint):
    model: str = "gpt-4"
    """Strong model: a preset (`gpt-4`, `claude-3-opus`) or, with `provider`, any model id of that provider."""
    idle_seconds: float = Field(default=300, gt=0)
    """The process that holds the keys ends after so long without work."""
    fallbacks: tuple[Endpoint, ...] = ()
    """Models to ask, in this order, where the one before fails before its first word."""

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Every model that may be asked, in order of preference."""
        return self, *self.fallbacks


class Privacy(Section):
    mode: bool = False
    """Keep everything on this machine; while this is set, `upcall privacy off` is refused."""
    enforcement: Literal["kernel", "best-effort"] = "kernel"
    """Privacy mode starts only where the kernel can hold the processes to it; or without, on upcall's own word."""


SensitiveKind: TypeAlias = Literal["secret", "payment", "contact", "identity"]


class Sensitive(Section):
    action: Literal["local", "ask", "off"] = "local"
    """What happens to a prompt that would go up and holds something sensitive: stay, be refused with 409, or go."""
    kinds: tuple[SensitiveKind, ...] = ("secret", "payment", "contact", "identity")
    """What is looked for. Best effort: what must not leave belongs under privacy mode."""
    keywords: tuple[str, ...] = ()
    """Words of your own, matched whole and in any case."""
    patterns: dict[str, str] = {}
    """Regular expressions of your own, by name."""

    @field_validator("patterns")
    @classmethod
    def _compile(cls, patterns: dict[str, str]) -> dict[str, str]:
        for name, pattern in patterns.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{name} is not a regular expression: {error}") from None
        return patterns


class Budget(Section):
    daily_usd: float | None = Field(default=None, ge=0)
    """Most that the cloud may cost in a day, by the local clock; beyond, prompts stay here."""
    monthly_usd: float | None = Field(default=None, ge=0)
    """Most that it may cost in a calendar month."""
    answer_tokens: int = Field(default=8192, ge=1)
    """Under a budget, the longest answer of the cloud where a request sets no limit: what it may cost needs a bound."""
    tools_usd: float | None = Field(default=None, ge=0)
    """Under a budget, what the provider's own tools, such as web search, may cost in one request, and are taken to have
    cost; without it, requests with such tools stay here."""

    @property
    def limited(self) -> bool:
        return self.daily_usd is not None or self.monthly_usd is not None


class ModelPrice(Section):
    prompt: float = Field(ge=0)
    """US dollars per million tokens of prompts, as everything here."""
    completion: float = Field(ge=0)
    """Of answers."""
    cached: float | None = Field(default=None, ge=0)
    """Of prompts, as far as the provider had them in its cache; `prompt` where it is not set."""
    written: float | None = Field(default=None, ge=0)
    """Of prompts, as far as they were put there; `prompt` where it is not set."""
    written_long: float | None = Field(default=None, ge=0)
    """Of those that were put there for an hour; `written` where it is not set."""


class Ledger(Section):
    enabled: bool = True
    """Record what became of each request, never a word of it; budgets need that."""
    days: int = Field(default=90, ge=1, le=36500)
    """How long a request's record is kept."""


class Feedback(Section):
    enabled: bool = True
    """Take verdicts on decisions; each keeps the embedding of its prompt, never the text, for `upcall calibrate
    --from-feedback` to learn from."""
    keep_in_privacy: bool = False
    """Keep embeddings in privacy mode too. They stay on this machine, and can still betray what was asked."""


class Telemetry(Section):
    otlp_endpoint: str | None = None
    """URL of an OpenTelemetry collector, such as `http://127.0.0.1:4318`, that gets a span for each finished request,
    without a word of it. Takes the extra `otel`; in privacy mode only this machine's own gets any."""

    @property
    def is_loopback(self) -> bool:
        return _is_loopback(urlsplit(self.otlp_endpoint or "").hostname or "")

    @field_validator("otlp_endpoint")
    @classmethod
    def _can_be_sent_to(cls, endpoint: str | None) -> str | None:
        if endpoint is None:
            return None
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{endpoint!r} is no http or https URL, such as http://127.0.0.1:4318")
        if find_spec("opentelemetry") is None:
            raise ValueError("traces take the extra otel, which is not installed: `pip install -e '.[otel]'`")
        return endpoint


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is logged. No level logs prompts or answers."""
    format: Literal["text", "json"] = "text"
    """Lines for people, or one JSON object per line."""


class Settings(BaseModel):
    """Everything that can be set."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    server: Server = Server()
    routing: Routing = Routing()
    second_look: SecondLook = SecondLook()
    local: Local = Local()
    cloud: Cloud = Cloud()
    budget: Budget = Budget()
    prices: dict[str, ModelPrice] = {}
    """Prices by model, in the place of the list's."""
    privacy: Privacy = Privacy()
    sensitive: Sensitive = Sensitive()
    ledger: Ledger = Ledger()
    feedback: Feedback = Feedback()
    telemetry: Telemetry = Telemetry()
    log: Log = Log()

    @model_validator(mode="after")
    def _ledger_is_kept(self) -> "Settings":
        if self.budget.limited and not self.ledger.enabled:
            raise ValueError("a budget needs the ledger: set ledger.enabled = true, or take the budget out")
        if self.telemetry.otlp_endpoint and not self.ledger.enabled:
            raise ValueError(
                "traces are made of the ledger: set ledger.enabled = true, or unset telemetry.otlp_endpoint"
            )
        return self
