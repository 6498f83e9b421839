"""What works on this machine, what does not, and the command that mends it: the checks behind `upcall doctor`."""

import ctypes
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

from daemon import keys, privacy, resolve
from daemon.accounts.history import opened
from daemon.accounts.ledger import LedgerError, default_path
from daemon.client import DaemonError, NotRunning, TokenUnreadable, call
from daemon.config import Settings
from daemon.processes import listening
from daemon.routing.battery import charge
from models.fetch import file_sha256
from models.store import Store, StoreError

State: TypeAlias = Literal["ok", "note", "bad"]
FREE_DISK = 6 * 10**9
"""Bytes that llama3-8b and what is derived from it take."""

FEATURES = {
    **{"AVX": "avx", "AVX2": "avx2", "F16C": "f16c", "FMA": "fma", "AVX512": "avx512f", "AVX512_VNNI": "avx512_vnni"},
    **{"NEON": "asimd", "DOTPROD": "asimddp"},
}
"""Instructions that decide how fast llama.cpp computes: its name for each, and the kernel's."""
TIME_ERROR = 5
"""What adjtimex(2) returns while nothing keeps the clock right."""
BUILT_WITH = "import llama_cpp; print(llama_cpp.llama_print_system_info().decode())"
CONFINE = """
import sys
from pathlib import Path
from daemon.confine import confine
result = confine(readable=[Path(sys.prefix)], may_accept=True)
print(result.barrier, *(f"{layer}: {why}" for layer, why in result.missing.items()), sep="\\n")
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome."""

    check: str
    state: State
    text: str
    """One line: what was found and, unless it is well, what to do."""


def examine(settings: Settings) -> Iterator[Finding]:
    """Every check in turn; some take a second."""
    for check in CHECKS:
        yield from check(settings)


def _python(_: Settings) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", "ok", f"Python {version} in {sys.prefix}")


def _clock(_: Settings) -> Iterator[Finding]:
    # No modes are set, so this reads and needs no right to.
    kept = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(1024)) != TIME_ERROR
    yield clock(time.time(), Path(__file__).stat().st_mtime, kept)


def clock(now: float, installed: float, kept: bool) -> Finding:
    """Times in seconds since the epoch; `kept` says whether the kernel is told the right one."""
    said = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    fix = "`sudo timedatectl set-ntp true` has it set"
    if now < installed - 86400:
        text = f"it is {said}, before upcall was installed: the cloud's certificates and budgets fail; {fix}"
        return Finding("clock", "bad", text)
    if not kept:
        text = f"it is {said}, and nothing here keeps that right (a container's host may): if it is wrong, {fix}"
        return Finding("clock", "note", text)
    return Finding("clock", "ok", f"it is {said}, kept by the network's time")


def _llama_cpp(settings: Settings) -> Iterator[Finding]:
    if settings.local.endpoint:
        return
    # In a process of its own, since instructions that the processor lacks end it.
    asked = subprocess.run([sys.executable, "-P", "-c", BUILT_WITH], capture_output=True, text=True, timeout=60)
    cpu = Path("/proc/cpuinfo")
    yield compiled(asked.stdout, cpu.read_text() if cpu.exists() else "")


def compiled(system_info: str, cpuinfo: str) -> Finding:
    """Of what llama.cpp says of itself, nothing where it cannot be loaded, and what the kernel says of this machine."""
    fix = (
        f"compile it for this processor: `{sys.executable} -m pip install --force-reinstall --no-deps --no-cache-dir "
        f"llama-cpp-python=={metadata.version('llama-cpp-python')}`"
    )
    if not system_info.strip():
        return Finding("llama.cpp", "bad", f"it cannot be loaded; {fix}")
    built = set(re.findall(r"(\w+) = 1", system_info))
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    here = {name for name, flag in FEATURES.items() if flags and flag in flags[1].split()}
    if missing := sorted(here - built):
        return Finding("llama.cpp", "note", f"it was compiled without {', '.join(missing)} and is slow; {fix}")
    used = ", ".join(name for name in FEATURES if name in built)
    return Finding("llama.cpp", "ok", f"compiled for this processor ({used or platform.machine()})")


def _weak_model(settings: Settings) -> Iterator[Finding]:
    from models.llama.errors import LoadError
    from models.llama.fit import fit

    if settings.local.endpoint:
        yield _endpoint(settings)
        return
    try:
        llama = resolve.local(settings.local, Store())
    except StoreError as error:
        yield Finding("local model", "bad", str(error))
        return
    yield Finding("local model", "ok", f"{llama.name}, {llama.path}")
    try:
        for reason in fit(llama).reasons:
            yield Finding("fit", "ok", reason)
    except LoadError as error:
        yield Finding("fit", "bad", str(error))


def _endpoint(settings: Settings) -> Finding:
    import asyncio

    from models.remote import RemoteModel

    local = settings.local
    if privacy.is_on(settings) and local.is_elsewhere:
        text = (
            f"privacy mode is on, and {local.endpoint} is another machine; set local.on_premises = true if it is yours"
        )
        return Finding("local model", "bad", text)
    status = asyncio.run(RemoteModel(resolve.remote(local), keys.find).status())
    if status.state == "failed":
        return Finding("local model", "bad", f"{status.detail} (local.endpoint)")
    return Finding("local model", "ok", f"{status.name} {status.detail}, {status.context_length} tokens of context")


def _router(settings: Settings) -> Iterator[Finding]:
    from daemon.routing.scorer import CAUSAL, own_calibrations
    from routers.calibration import threshold_for_share
    from routers.causal_llm import reading
    from routers.interface import RouterError
    from routers.registry import load

    name, share = settings.routing.router, settings.routing.cloud_share
    try:
        if name == CAUSAL and settings.local.endpoint:
            raise RouterError(f"The router {name} asks a local model, and {settings.local.endpoint} cannot judge")
        if name == CAUSAL:
            judge = resolve.local(settings.local, Store())
            found = reading(judge.sha256 or file_sha256(Path(judge.path)))
            threshold = found.calibration.threshold(share)
            version, tried = found.version, f"is calibrated for {judge.name}"
        else:
            router = load(name, Store().path("use-multilingual"))
            score = float(router.score(["Why is the sky blue?"])[0])
            threshold = threshold_for_share(name, share, own_calibrations())
            version, tried = router.version, f"scores (a sample {score:.3f})"
    except (RouterError, StoreError, OSError) as error:
        yield Finding("router", "bad", f"{error}; until then nothing goes up")
        return
    fixed = settings.routing.threshold
    threshold = threshold if fixed is None else fixed
    yield Finding("router", "ok", f"{name}@{version} {tried}, threshold {threshold:.3f}")


def _cloud(settings: Settings) -> Iterator[Finding]:
    if privacy.is_on(settings):
        yield Finding("cloud", "note", "privacy mode is on: nothing goes up; `upcall privacy off` allows it")
    clouds = resolve.clouds(settings.cloud)
    for cloud in clouds:
        if cloud.key_name is None:
            yield Finding("key", "ok", f"{cloud.name} at {cloud.base_url} asks for no key")
            continue
        try:
            yield Finding("key", "ok", f"{cloud.key_name} for {cloud.name}: {keys.where(cloud.key_name)}")
        except (keys.KeyUnavailable, ValueError) as error:
            if len(clouds) == 1 and _daemon_has_key(settings):
                yield Finding("key", "ok", f"{cloud.key_name} for {cloud.name}: the daemon that runs has it")
                continue
            meanwhile = f"{cloud.name} is passed over" if len(clouds) > 1 else "prompts stay here"
            yield Finding("key", "note", f"{error} Until then {meanwhile}")


def _daemon_has_key(settings: Settings) -> bool:
    """A service may have one as a credential, which nobody else can see."""
    try:
        return bool(call(settings.server, "GET", "/healthz")["cloud"]["has_key"])
    except (NotRunning, DaemonError):
        return False


def _traces(settings: Settings) -> Iterator[Finding]:
    telemetry = settings.telemetry
    if telemetry.otlp_endpoint is None:
        return
    if privacy.is_on(settings) and not telemetry.is_loopback:
        text = f"privacy mode is on, and {telemetry.otlp_endpoint} is another machine: it gets none"
        yield Finding("traces", "note", text)
        return
    parts = urlsplit(telemetry.otlp_endpoint)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((str(parts.hostname), port), timeout=5).close()
        yield Finding("traces", "ok", f"a collector listens at {telemetry.otlp_endpoint}")
    except OSError as error:
        text = f"nothing listens at {telemetry.otlp_endpoint} ({error}); start a collector, or unset "
        yield Finding("traces", "bad", f"{text}telemetry.otlp_endpoint")


def _port(settings: Settings) -> Iterator[Finding]:
    server = settings.server
    where = server.socket or f"{server.host}:{server.port}"
    try:
        call(server, "GET", "/healthz")
        yield Finding("port", "ok", f"an upcall daemon answers on {where}")
        return
    except NotRunning:
        pass
    except TokenUnreadable as error:
        yield Finding("port", "note", str(error))
        return
    except DaemonError as error:
        yield Finding("port", "bad", f"{where}: the daemon there refuses ({error})")
        return
    if server.socket:
        yield Finding("port", "ok", f"nothing listens at {where}; `upcall serve` starts the daemon")
        return
    try:
        listening.listen(server).close()
        yield Finding("port", "ok", f"{where} is free; `upcall serve` starts the daemon")
    except OSError as error:
        yield Finding("port", "bad", listening.why_not(error, server))


def _kernel(settings: Settings) -> Iterator[Finding]:
    # In a process of its own, since what is given up cannot be had back.
    tried = subprocess.run([sys.executable, "-P", "-c", CONFINE], capture_output=True, text=True, timeout=60)
    barrier, *missing = tried.stdout.splitlines() or ["none", "the attempt itself failed"]
    enforced = barrier != "none" or settings.privacy.enforcement == "best-effort"
    yield Finding("kernel", "ok" if enforced else "bad", f"what sees prompts is held by: {barrier}")
    for layer in missing:
        yield Finding("kernel", "note", f"missing {layer}; docs/privacy.md says how to allow it")


def _battery(settings: Settings) -> Iterator[Finding]:
    found, floor = charge(), settings.local.battery_floor
    if found is None:
        yield Finding("battery", "ok", "there is none here")
        return
    use = "discharging" if found.discharging else "not discharging"
    spared = "is off" if floor is None else f"{floor:.0%}, so it is {'' if found.is_below(floor) else 'not '}spared"
    yield Finding("battery", "ok", f"{found.level:.0%}, {use}; local.battery_floor {spared}")


def _systemd(_: Settings) -> Iterator[Finding]:
    if shutil.which("systemctl") is None:
        yield Finding("systemd", "note", "there is none here; run `upcall serve` yourself")
    elif kept := [name for name, value in _NO_NAMESPACES.items() if _sysctl(name) == value]:
        text = f"{kept[0]} = {_NO_NAMESPACES[kept[0]]} keeps user namespaces from services, and upcall's needs one: "
        yield Finding("systemd", "note", f"{text}allow them (docs/privacy.md), or run `upcall serve` yourself")
    else:
        yield Finding("systemd", "ok", "`upcall service install` makes upcall a user service")


_NO_NAMESPACES = {
    "kernel.apparmor_restrict_unprivileged_userns": "1",
    "kernel.unprivileged_userns_clone": "0",
    "user.max_user_namespaces": "0",
}


def _sysctl(name: str) -> str:
    """Its value; nothing where the kernel has none of that name."""
    try:
        return Path("/proc/sys", *name.split(".")).read_text().strip()
    except OSError:
        return ""


def _disk(_: Settings) -> Iterator[Finding]:
    folder = Store().root
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    state: State = "ok" if free > FREE_DISK else "note"
    yield Finding("disk", state, f"{free / 1e9:.1f} GB free for models; llama3-8b takes {FREE_DISK / 1e9:.0f}")


def _ledger(settings: Settings) -> Iterator[Finding]:
    path = default_path()
    if not settings.ledger.enabled:
        yield Finding("ledger", "note", "ledger.enabled is false: nothing is recorded, and no budget can be kept")
        return
    try:
        if path.exists():
            with opened(path) as past:
                found = past.decisions(1)
            yield Finding("ledger", "ok", f"{path}" + ("" if found else ", with no request yet"))
        else:
            yield Finding("ledger", "ok", f"{path} will be made by `upcall serve`")
    except LedgerError as error:
        yield Finding("ledger", "bad", f"{error}: mv {path} {path}.broken, and restart upcall")


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    _python, _clock, _llama_cpp, _weak_model, _router, _cloud, _traces, _port, _kernel, _battery, _systemd, _disk,
    _ledger,
)  # fmt: skip
