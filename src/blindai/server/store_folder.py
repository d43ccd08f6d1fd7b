"""The folder for the files of the models that a server runs: in memory, and gone with the server.

Always true: on trusted hardware it is in memory, or where the operator said that the TEE
encrypts; a server that ends removes its folder, and one that starts removes what servers left
that were killed: their models would stay readable, and take memory from those that serve.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from blindai.attestation.model import Platform
from blindai.errors import ConfigurationError
from blindai.inference.sandboxed import TRIAL_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blindai.server.config import ServerConfig

PREFIX: Final = "blindai-store-"
# Locked as long as a server uses the folder that it is in.
IN_USE: Final = ".in-use"
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a private folder is made in it
# Containers often have 64 MiB there, which is no room for models.
_ENOUGH_MEMORY: Final = 1 << 30
# A trial takes minutes at most.
_TRIAL_SECONDS: Final = 3600.0


@contextlib.contextmanager
def store_folder(config: ServerConfig) -> Iterator[Path]:
    """Yield the folder for the models' files; remove it at the end if it is ours.

    Raises:
        ConfigurationError: There is no memory for it.
    """
    if config.store is not None:
        yield config.store
        return
    parent = None
    if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK):
        remove_abandoned(_MEMORY, now=time.time())
        status = os.statvfs(_MEMORY)
        parent = _MEMORY if status.f_bavail * status.f_frsize >= _ENOUGH_MEMORY else None
    if parent is None and config.platform is not Platform.SIMULATION:
        msg = (
            f"no folder in memory for the models' files: {_MEMORY} is missing or smaller than "
            f"{_ENOUGH_MEMORY >> 30} GiB; set store to memory, or to storage that the TEE encrypts"
        )
        raise ConfigurationError(msg)
    if parent is None:
        remove_abandoned(Path(tempfile.gettempdir()), now=time.time())
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    claim = _claim(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(claim)


def remove_abandoned(parent: Path, *, now: float) -> None:
    """Remove folders of this user's servers that are no more; what cannot be removed stays.

    Args:
        parent: Where they are.
        now: Unix seconds.
    """
    for folder in _own_folders(parent, PREFIX):
        # One without a lock may be anybody's.
        with contextlib.suppress(OSError):
            claim = os.open(folder / IN_USE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(claim)
    for folder in _own_folders(parent, TRIAL_PREFIX):
        with contextlib.suppress(OSError):
            if now - folder.lstat().st_mtime > _TRIAL_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _own_folders(parent: Path, prefix: str) -> Iterator[Path]:
    for folder in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                yield folder


def _claim(folder: Path) -> int:
    """Say that a folder is in use; return the descriptor that says so until it is closed."""
    new = folder / f"{IN_USE}.new"
    claim = os.open(new, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    # Locked before it has its name: nobody ever sees it without.
    fcntl.flock(claim, fcntl.LOCK_EX)
    new.rename(folder / IN_USE)
    return claim
