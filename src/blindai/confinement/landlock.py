"""Files and ports that a process may still reach; everything else is refused by the kernel.

Always true: it holds for the calling thread and for what it starts from then on, and only
ever gets stricter. Files that are open already stay open.

Specification: landlock(7); Linux, Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from blindai.confinement.kernel import call, is_missing
from blindai.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# The same on every architecture.
_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_VERSION: Final = 1
_PATH_BENEATH: Final = 1
_NET_PORT: Final = 2

_WRITE_FILE: Final = 1 << 1
_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_REMOVE_DIR: Final = 1 << 4
_REMOVE_FILE: Final = 1 << 5
_MAKE_DIR: Final = 1 << 7
_MAKE_REG: Final = 1 << 8
_TRUNCATE: Final = 1 << 14
_IOCTL_DEV: Final = 1 << 15
_EXECUTE: Final = 1 << 0

READ: Final = _READ_FILE | _READ_DIR
WRITE: Final = READ | _WRITE_FILE | _REMOVE_FILE | _REMOVE_DIR | _MAKE_DIR | _MAKE_REG | _TRUNCATE
USE_DEVICE: Final = _READ_FILE | _WRITE_FILE | _IOCTL_DEV
REMOVE_FOLDER: Final = _REMOVE_DIR
_FOR_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

_BIND_TCP: Final = 1 << 0
_CONNECT_TCP: Final = 1 << 1
_ABSTRACT_SOCKETS: Final = 1 << 0
_SIGNALS: Final = 1 << 1

# What an ABI handles: the number of file rights, network, scopes.
_RIGHTS_OF: Final = {1: 13, 2: 14, 3: 15, 4: 15}
_RIGHTS: Final = 16
_NETWORK_SINCE: Final = 4
_SCOPES_SINCE: Final = 6


@dataclass(frozen=True, slots=True)
class Allowed:
    """What stays within reach.

    Attributes:
        path: A folder with all in it, or a file; or its descriptor. Skipped where it is missing.
        rights: `READ`, `WRITE`, `USE_DEVICE` or `REMOVE_FOLDER`.
    """

    path: Path | int
    rights: int


def landlock_version() -> int:
    """Return the ABI that the kernel has; 0: none."""
    try:
        return call("syscall", _CREATE_RULESET, None, 0, _VERSION)
    except OSError as error:
        if is_missing(error):
            return 0
        msg = f"files cannot be restricted: {error.strerror}"
        raise ConfigurationError(msg) from error


def restrict_files(
    allowed: Sequence[Allowed],
    *,
    bind: Sequence[int] = (),
    connect: Sequence[int] = (),
) -> int:
    """Take away every file, port and process that is not named, from this thread on.

    Args:
        allowed: Files that may still be opened.
        bind: TCP ports that may still be listened on; 0 means whichever is free.
        connect: TCP ports that may still be connected to.

    Returns:
        The kernel's ABI: from 4 on, ports are restricted too, from 6 on signals.

    Raises:
        ConfigurationError: The kernel has no Landlock, or it is switched off.
    """
    version = landlock_version()
    if not version:
        msg = "files cannot be restricted: this kernel has no Landlock (Linux 5.13, lsm=landlock)"
        raise ConfigurationError(msg)
    handled = (1 << _RIGHTS_OF.get(version, _RIGHTS)) - 1
    try:
        ruleset = call("syscall", _CREATE_RULESET, *_ruleset(version, handled), 0)
        try:
            for entry in allowed:
                _allow(ruleset, entry, handled)
            if version >= _NETWORK_SINCE:
                for right, ports in ((_BIND_TCP, bind), (_CONNECT_TCP, connect)):
                    for port in ports:
                        _add(ruleset, _NET_PORT, struct.pack("<QQ", right, port))
            call("syscall", _RESTRICT_SELF, ruleset, 0)
        finally:
            os.close(ruleset)
    except OSError as error:
        msg = f"files cannot be restricted: {error.strerror}"
        raise ConfigurationError(msg) from error
    return version


def _ruleset(version: int, handled: int) -> tuple[ctypes.Array[ctypes.c_char], int]:
    """Return struct landlock_ruleset_attr and its size."""
    fields = [handled]
    if version >= _NETWORK_SINCE:
        fields.append(_BIND_TCP | _CONNECT_TCP)
    if version >= _SCOPES_SINCE:
        fields.append(_ABSTRACT_SOCKETS | _SIGNALS)
    packed = struct.pack(f"<{len(fields)}Q", *fields)
    return ctypes.create_string_buffer(packed, len(packed)), len(packed)


def _allow(ruleset: int, entry: Allowed, handled: int) -> None:
    if isinstance(entry.path, int):
        descriptor = entry.path
    else:
        try:
            descriptor = os.open(entry.path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            return
    try:
        rights = entry.rights & handled
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _FOR_FILES
        _add(ruleset, _PATH_BENEATH, struct.pack("<Qi", rights, descriptor))
    finally:
        if not isinstance(entry.path, int):
            os.close(descriptor)


def _add(ruleset: int, kind: int, attribute: bytes) -> None:
    call("syscall", _ADD_RULE, ruleset, kind, ctypes.create_string_buffer(attribute), 0)
