"""Landlock: no file but those that are named, no TCP, no signal and no abstract socket to others.

It came to Linux piece by piece (landlock(7)); what a kernel does not know yet is left out of the rules.
"""

import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

from daemon.confine import kernel
from daemon.confine.kernel import NotEnforcedError

_VERSION = 1
_RULE_PATH_BENEATH = 1

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15

_READ = _READ_FILE | _READ_DIR
_WRITE = _READ | _WRITE_FILE | _TRUNCATE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG
_OF_FILES = _WRITE_FILE | _READ_FILE | _TRUNCATE


def restrict(readable: Iterable[Path], writable: Iterable[Path]) -> None:
    """Leave this process, which must have one thread, only what is named, and verify it. Raises `NotEnforcedError`.

    A directory stands for all that is in it. What does not exist is passed over.
    """
    try:
        abi = kernel.call("landlock_create_ruleset", None, 0, _VERSION)
        files = _files(abi)
        tcp = 0b11 if abi >= 4 else 0
        scopes = 0b11 if abi >= 6 else 0
        # Fields that a kernel does not know must be zero, and then may be there.
        attributes = struct.pack("=QQQ", files, tcp, scopes)
        ruleset = kernel.call("landlock_create_ruleset", attributes, len(attributes), 0)
        try:
            for paths, rights in ((readable, _READ), (writable, _WRITE)):
                for path in paths:
                    _allow(ruleset, path, rights & files)
            kernel.call("landlock_restrict_self", ruleset, 0)
        finally:
            os.close(ruleset)
    except OSError as error:
        raise NotEnforcedError(error.strerror or str(error)) from None
    _verify()


def _files(abi: int) -> int:
    known = _REFER - 1
    if abi >= 2:
        known |= _REFER
    if abi >= 3:
        known |= _TRUNCATE
    if abi >= 5:
        known |= _IOCTL_DEV
    return known


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        # struct landlock_path_beneath_attr is packed.
        kernel.call("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
    finally:
        os.close(place)


def _verify() -> None:
    for path, flags, does in (
        ("/", os.O_RDONLY, "listed"),
        ("/etc/passwd", os.O_RDONLY, "read"),
        (__file__, os.O_WRONLY, "written"),
    ):
        try:
            os.close(os.open(path, flags))
        except PermissionError:
            continue
        raise NotEnforcedError(f"{path} can still be {does}")
