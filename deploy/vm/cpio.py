"""Write a cpio archive of the format "newc", which Linux unpacks as its first file system.

Always true here: the same entries give the same bytes. Times, owners and numbers of files are
fixed, and entries stand in the order given.

Format: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"
_ALIGNMENT: Final = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, directory or device.

    Attributes:
        name: Its path, without a slash in front.
        mode: Kind and permissions, as `st_mode`.
        content: What a file holds.
        device: Major and minor number of a device.
    """

    name: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str) -> Entry:
    """Return a directory that only its owner may use."""
    return Entry(name, stat.S_IFDIR | 0o700)


def file(name: str, content: bytes, permissions: int = 0o400) -> Entry:
    """Return a file."""
    return Entry(name, stat.S_IFREG | permissions, content)


def archive(entries: Iterable[Entry]) -> bytes:
    """Return the archive."""
    parts = [_write(number, entry) for number, entry in enumerate(entries, start=1)]
    return b"".join((*parts, _write(0, Entry(_TRAILER, 0))))


def _write(number: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (
        *(number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0),
        *(*entry.device, len(name), 0),
    )
    header = _MAGIC + b"".join(b"%08x" % field for field in fields)
    return _aligned(header + name) + _aligned(entry.content)


def _aligned(part: bytes) -> bytes:
    return part + bytes(-len(part) % _ALIGNMENT)
