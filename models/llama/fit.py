"""How to run a model on this machine: threads, context and slots that its cores and its free memory carry."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from models.llama.errors import LoadError
from models.llama.gguf import Head, read_head
from models.llama.native import lib
from models.llama.settings import KvType, LlamaSettings

_KEEP_FREE = 0.1
"""Share of the free memory that is left to everyone else."""
_SMALLEST_CONTEXT = 1024
_SCRATCH = 48 * 2**20
"""What llama.cpp needs besides weights, keys and values, and one batch's activations."""
_BYTES_PER_VALUE = {"f16": 2.0, "q8_0": 34 / 32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What there is to work with."""

    cores: int
    """Physical cores that this process may use, less what a container's quota takes away."""
    memory: int
    """Bytes that can be taken without swapping or being killed."""
    battery_percent: float | None = None
    """None: no battery, or it is being charged."""
    repack_works: bool = True
    """False where llama.cpp rearranges weights for AMX, which crashes on the first batch (as of 0.3.36)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The choice for one model and machine."""

    settings: LlamaSettings
    """Without zeros: all that was left open is decided."""
    needed: int
    """Bytes, all told."""
    reasons: tuple[str, ...]
    """Sentences for people: what was chosen, and why."""


def fit(settings: LlamaSettings, machine: Machine | None = None) -> Fit:
    """Decide what `settings` leave open, and lower what this machine cannot carry.

    Raises `LoadError`, with the numbers, for a model that does not fit even with the smallest context.
    """
    machine = machine or this_machine()
    head = read_head(Path(settings.path))
    reasons: list[str] = []
    threads = settings.threads or machine.cores
    reasons.append(f"{threads} threads: {'as set' if settings.threads else 'one for each physical core it may use'}")
    repack = settings.repack and machine.repack_works
    if settings.repack and not repack:
        reasons.append("weights stay as they are: llama.cpp's rearranged ones crash on this processor (AMX)")
    fixed = _fixed_bytes(head, settings, repack=repack)
    context, cells, kv_type = _context(head, settings, machine, fixed, reasons)
    needed = fixed + int(cells * _bytes_per_token(head, kv_type))
    reasons.append(f"{needed / 2**30:.2f} GiB needed of {machine.memory / 2**30:.2f} GiB free")
    if machine.battery_percent is not None:
        reasons.append(f"on battery, {machine.battery_percent:.0f} % left")
    chosen = replace(
        settings,
        threads=threads,
        threads_batch=settings.threads_batch or threads,
        repack=repack,
        context_length=context,
        cache_tokens=cells,
        kv_type=kv_type,
    )
    return Fit(settings=chosen, needed=needed, reasons=tuple(reasons))


def this_machine() -> Machine:
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return Machine(
        cores=_cores(),
        memory=_free_memory(),
        battery_percent=battery.percent if battery and battery.power_plugged is False else None,
        repack_works=b"AMX_INT8 = 1" not in lib.llama_print_system_info(),
    )


def _context(
    head: Head, settings: LlamaSettings, machine: Machine, fixed: int, reasons: list[str]
) -> tuple[int, int, KvType]:
    """Tokens per request, tokens of the shared cache, and how its values are stored."""
    trained = head.number("context_length", settings.context_length)
    wanted = min(settings.context_length, trained)
    budget = machine.memory * (1 - _KEEP_FREE) - fixed
    kinds: list[KvType] = [settings.kv_type, "q8_0"]
    for kv_type in kinds:
        affordable = int(budget / max(_bytes_per_token(head, kv_type), 1)) // 256 * 256
        if affordable >= wanted:
            break
    if affordable < min(wanted, _SMALLEST_CONTEXT):
        least = (fixed + _SMALLEST_CONTEXT * _bytes_per_token(head, kv_type)) / (1 - _KEEP_FREE)
        raise LoadError(
            f"{settings.path} needs {least / 2**30:.1f} GiB of memory, and {machine.memory / 2**30:.1f} GiB are free: "
            "close other programs or choose a smaller model"
        )
    if kv_type != settings.kv_type:
        reasons.append("keys and values in 8 bits, because memory is short")
    context = min(wanted, affordable)
    cells = max(min(settings.cache_tokens or context * min(settings.slots, 2), affordable), context)
    why = "as set"
    if context < wanted:
        why = "all that fits in memory"
    elif trained < settings.context_length:
        why = "all that the model was trained for"
    reasons.append(f"{context} tokens of context: {why}")
    reasons.append(f"{settings.slots} requests at once share {cells} tokens of cache")
    return context, cells, kv_type


def _fixed_bytes(head: Head, settings: LlamaSettings, *, repack: bool) -> int:
    """Weights (mapped from the file, and once more in memory if rearranged) and the buffers of a batch."""
    width = head.number("embedding_length", 4096) + head.number("feed_forward_length", 16384)
    batch = settings.ubatch * width * 4 * 2 + settings.slots * head.vocabulary * 4
    return head.size * (2 if repack else 1) + batch + _SCRATCH


def _bytes_per_token(head: Head, kv_type: str) -> float:
    """Of keys and values, in all layers; the plain transformer's, which others do not exceed."""
    heads = head.number("attention.head_count", 32)
    kv_heads = head.number("attention.head_count_kv", heads)
    width = head.number("embedding_length", 4096) // max(heads, 1)
    values = head.number("attention.key_length", width) + head.number("attention.value_length", width)
    return head.number("block_count", 32) * kv_heads * values * _BYTES_PER_VALUE[kv_type]


def _cores() -> int:
    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    return max(1, min(physical, allowed, _quota_cores() or physical))


def _quota_cores() -> int | None:
    """Whole cores of the tightest CPU quota above this process; None without one."""
    quotas = []
    for folder in _cgroups():
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            quotas.append(max(1, int(quota) // int(period)))
    return min(quotas, default=None)


def _free_memory() -> int:
    """Free memory of the machine, or of the tightest control group above this process."""
    free = psutil.virtual_memory().available
    for folder in _cgroups():
        limit, used = _read(folder / "memory.max"), _read(folder / "memory.current")
        if limit.isdigit() and used.isdigit():
            cache = next((line for line in _read(folder / "memory.stat").splitlines() if line.startswith("file ")), "0")
            free = min(free, int(limit) - int(used) + int(cache.split()[-1]))
    return max(free, 0)


def _cgroups() -> list[Path]:
    """The control groups (version 2) of this process, from its own upwards."""
    line = next((line for line in _read(Path("/proc/self/cgroup")).splitlines() if line.startswith("0::")), "")
    if not line:
        return []
    root = Path("/sys/fs/cgroup")
    own = root / line.removeprefix("0::").lstrip("/")
    return [own, *(parent for parent in own.parents if parent.is_relative_to(root))]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
