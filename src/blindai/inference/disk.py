"""The few things that sealing does to a disk, in one place, so that tests can stop each.

Always true: what `sync` and `sync_folder` were called for survives a power cut; nothing else
is counted on. Files are made new, never through a link, and are readable for nobody else.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from blindai.errors import ConfigurationError

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


def claim_folder(path: Path, purpose: str) -> int:
    """Make a folder this process's alone; return the descriptor that holds the claim until closed.

    Args:
        path: Of the folder; made where it is missing, for nobody else to look into.
        purpose: What it is for, as a message says it.

    Raises:
        ConfigurationError: It cannot be used, or another server uses it.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        claim = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        msg = f"expected a folder for {purpose} at {path}: {error.strerror}"
        raise ConfigurationError(msg) from error
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(claim)
        taken = isinstance(error, BlockingIOError)
        why = "another server uses it" if taken else error.strerror
        msg = f"expected a folder of its own at {path}: {why}"
        raise ConfigurationError(msg) from error
    return claim
