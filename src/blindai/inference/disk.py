"""The few things that sealing does to a disk, in one place, so that tests can stop each.

Always true: what `sync` and `sync_folder` were called for survives a power cut; nothing else
is counted on. Files are made new, never through a link, and are readable for nobody else.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Disk:
    """Writes files; every method raises `OSError` where the system refuses."""

    def create(self, path: Path) -> int:
        """Return a descriptor that writes a file which was not there before."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags, 0o600)

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        """Write all of `data` at the end of a file."""
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def sync(self, descriptor: int) -> None:
        """Return when what was written to a file would survive a power cut."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Give a descriptor back."""
        os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file another name, in place of the file that has it."""
        source.rename(target)

    def sync_folder(self, folder: Path) -> None:
        """Return when the names in a folder would survive a power cut."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def unlink(self, path: Path) -> None:
        """Remove a file, if it is there."""
        path.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes, disk: Disk | None = None) -> None:
    """Write a file so that it is there as a whole or not at all, also after a power cut.

    Raises:
        OSError: The system refuses; what was there before is still.
    """
    disk = disk or Disk()
    new = path.with_name(f".{path.name}-{os.urandom(8).hex()}")
    descriptor = disk.create(new)
    try:
        try:
            disk.write(descriptor, data)
            disk.sync(descriptor)
        finally:
            disk.close(descriptor)
        disk.rename(new, path)
    except BaseException:
        disk.unlink(new)
        raise
    disk.sync_folder(path.parent)
