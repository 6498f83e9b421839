"""What the kernel keeps a process from, once it has begun. Nothing of it can be lifted by the process itself.

`confine` is for the processes that see prompts; `forbid_dumps` is for the one that holds the key, too.
"""

import os
import resource
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from daemon.confine import kernel, landlock, namespaces, seccomp
from daemon.confine.kernel import NotEnforcedError

Layer: TypeAlias = Literal["netns", "seccomp", "landlock"]
Barrier: TypeAlias = Literal["netns", "seccomp", "none"]


@dataclass(frozen=True, slots=True)
class Confinement:
    """What holds one process, each layer verified by trying what it forbids."""

    layers: tuple[Layer, ...] = ()
    missing: dict[Layer, str] = field(default_factory=dict)
    """Why a layer does not hold: one line for people."""

    @property
    def barrier(self) -> Barrier:
        """The strongest layer between the process and the network. Landlock is none: UDP passes it."""
        return "netns" if "netns" in self.layers else "seccomp" if "seccomp" in self.layers else "none"

    def __str__(self) -> str:
        return "+".join(self.layers) or "none"


def weakest(confinements: Iterable[Confinement]) -> Barrier:
    """The barrier of several processes: that of the least confined one; `none` for no process."""
    return min((confinement.barrier for confinement in confinements), key=get_args(Barrier)[::-1].index, default="none")


def confine(readable: Iterable[Path] = (), writable: Iterable[Path] = (), may_accept: bool = False) -> Confinement:
    """Give up, for good, the network, other programs and processes, and every file that is not named.

    Python's own files and what libraries ask about the machine stay readable. A directory stands for all that is in it.
    Call it while the process has one thread. Where the kernel lacks a layer the others are still put up.
    """
    layers: list[Layer] = []
    missing: dict[Layer, str] = {}
    try:
        namespaces.enter()
        layers.append("netns")
    except NotEnforcedError as error:
        missing["netns"] = str(error)
    namespaces.drop_capabilities()
    forbid_dumps()
    try:
        landlock.restrict([*_needed(), *readable], [Path(os.devnull), *writable])
        layers.append("landlock")
    except NotEnforcedError as error:
        missing["landlock"] = str(error)
    try:
        # The last one: it would deny the others the calls that they take.
        seccomp.install(may_accept)
        layers.insert(layers.count("netns"), "seccomp")
    except NotEnforcedError as error:
        missing["seccomp"] = str(error)
    return Confinement(tuple(layers), missing)


def forbid_dumps() -> None:
    """No core dump of this process is ever written, and others of the same user cannot look into it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The limit does not bind a program that the kernel pipes dumps to.
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


def _needed() -> list[Path]:
    """What Python imports later, and what it and the libraries read of the machine."""
    home = Path.home()
    imports = [Path(entry).resolve() for entry in sys.path if entry]
    libraries = [Path(prefix, "lib") for prefix in (sys.prefix, sys.base_prefix)]
    # A path entry that has the whole home below it would open the home.
    return [path for path in imports + libraries if not home.is_relative_to(path)] + [Path(name) for name in _MACHINE]


_MACHINE = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store", "/etc/ld.so.cache", "/etc/localtime",
    "/usr/share/zoneinfo", "/usr/share/locale", "/etc/mime.types", "/etc/ssl/openssl.cnf", "/dev/urandom", "/proc/self",
    "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/filesystems", "/proc/sys/vm",
    # Processors, caches, memory, battery: libraries follow links all over it, and it tells of hardware only.
    "/sys",
)  # fmt: skip
