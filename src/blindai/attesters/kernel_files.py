"""Files through which a kernel answers: read with a bound, written in one system call.

Python's buffered files would hide the error of a write until the file is closed, and split
or join what the kernel takes as one message.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from blindai.errors import ConfigurationError, EvidenceError

if TYPE_CHECKING:
    from pathlib import Path

_PIECE: Final = 64 << 10
_DENIED: Final = frozenset({errno.EACCES, errno.EPERM})


def read_bounded(path: Path, *, at_most: int) -> bytes:
    """Return all that `path` holds.

    Raises:
        OSError: If the kernel refuses.
        EvidenceError: If it holds more than `at_most` bytes.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = bytearray()
        # In small pieces: some kernel files refuse to be read in large ones.
        while chunk := os.read(descriptor, min(_PIECE, at_most + 1 - len(content))):
            content += chunk
            if len(content) > at_most:
                msg = f"{path}: it holds more than the {at_most} bytes that are accepted"
                raise EvidenceError(msg)
        return bytes(content)
    finally:
        os.close(descriptor)


def write_once(path: Path, content: bytes) -> None:
    """Hand `content` to the kernel in one write; `path` has to exist.

    Raises:
        OSError: If the kernel refuses, or takes a part only.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        written = os.write(descriptor, content)
    finally:
        os.close(descriptor)
    if written != len(content):
        raise OSError(errno.EIO, f"took {written} of {len(content)} bytes", str(path))


def refused(what: str, error: OSError) -> ConfigurationError:
    """Return the error that says why the kernel refused `what`."""
    reason = error.strerror or str(error)
    if error.errno in _DENIED:
        reason += f" (this process runs as user {os.geteuid()})"
    return ConfigurationError(f"{what}: {reason}")
