"""From what people set to what the models take: names become files, presets become endpoints."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from daemon.config import Cloud, ConfigError, Endpoint, Local
from models.cloud.settings import CloudSettings, presets
from models.llama.settings import LlamaSettings
from models.store import NotPulled, Store

PREFERRED = ("llama3-8b", "smollm2-135m")
"""What `local.model = "auto"` takes: the first of these that has been pulled."""
_OVER_PRESET = (
    "base_url", "max_tokens", "max_tokens_field", "unsupported", "defaults", "context_length", "tools", "images",
)  # fmt: skip


def local(settings: Local, store: Store) -> LlamaSettings:
    """Raises `StoreError`, `NotPulled` among them, where the model's file is not there or not what it should be."""
    path, name = _file(settings.model, store)
    known = {entry.name: entry.sha256 for entry in store.entries()}
    return LlamaSettings(
        path=str(path),
        name=name,
        sha256=known.get(name, "") if path.parent == store.root else "",
        context_length=settings.context_length,
        slots=settings.slots,
        threads=settings.threads,
        threads_batch=settings.threads,
        repack=settings.repack,
        queue_limit=settings.queue,
        max_tokens=settings.max_tokens,
        timeout=settings.timeout,
        idle_unload=settings.idle_seconds,
        disk_bytes=settings.cache_disk_mib * 2**20,
        trust_template=settings.trust_template,
    )


def _file(model: str, store: Store) -> tuple[Path, str]:
    if model.endswith(".gguf") or "/" in model:
        path = Path(model).expanduser()
        if not path.is_file():
            raise NotPulled(f"there is no file {path}; set local.model to a GGUF file or a name from `upcall models`")
        return path, path.stem
    if model != "auto":
        return store.path(model), model
    for name in PREFERRED[:-1]:
        try:
            return store.path(name), name
        except NotPulled:
            continue
    return store.path(PREFERRED[-1]), PREFERRED[-1]


def _of_presets() -> set[str]:
    return {preset.provider for preset in presets().values()}


def remote(settings: Local) -> CloudSettings:
    """The server that takes the local engine's place, where `settings` name an endpoint."""
    return CloudSettings(
        name=settings.model,
        provider="openai",
        model=settings.model,
        base_url=settings.endpoint,
        key_name=None if settings.key == "none" else settings.key,
        max_retries=1,
        defaults={"max_tokens": settings.max_tokens},
        context_length=settings.context_length,
        first_byte_timeout=settings.timeout,
        chunk_timeout=settings.timeout,
        total_timeout=settings.timeout,
    )


def clouds(settings: Cloud) -> list[CloudSettings]:
    """The cloud models in order of preference. Raises `ConfigError`."""
    fallbacks = enumerate(settings.fallbacks)
    return [cloud(settings), *(cloud(each, f"cloud.fallbacks.{number}") for number, each in fallbacks)]


def cloud(settings: Endpoint, where: str = "cloud") -> CloudSettings:
    """The preset, where `settings.model` names one, with what is set over it. Raises `ConfigError`."""
    preset = presets().get(settings.model)
    provider = settings.provider or (preset.provider if preset else None)
    if provider is None:
        raise ConfigError(
            f"{where}.model: {settings.model!r} is no preset ({', '.join(presets())}); for any other model set "
            f"{where}.provider, too"
        )
    if preset and provider != preset.provider and not settings.base_url and provider in _of_presets():
        raise ConfigError(f"{where}.model: {settings.model} is {preset.provider}'s; set a model of {provider}'s, too")
    # Another provider's preset says nothing about this endpoint.
    own = CloudSettings(name=settings.model, provider=provider, model=settings.model)
    base = preset if preset and preset.provider == provider else own
    key = settings.key or base.key_name or provider
    timeouts = settings.timeouts
    said: dict[str, Any] = {name: getattr(settings, name) for name in _OVER_PRESET}
    try:
        return replace(
            base,
            provider=provider,
            key_name=None if key == "none" else key,
            connect_timeout=timeouts.connect,
            first_byte_timeout=timeouts.first_byte,
            chunk_timeout=timeouts.between,
            total_timeout=timeouts.total,
            max_retries=settings.max_retries,
            proxy=settings.proxy,
            ca_bundle=str(settings.ca_bundle) if settings.ca_bundle else None,
            **{name: value for name, value in said.items() if value is not None},
        )
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
