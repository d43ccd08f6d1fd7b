"""The data key, wrapped under a key that only this code on this machine gets.

Always true: the sealing key itself encrypts nothing; what wraps is derived from it
(HKDF-SHA256, RFC 5869), and the data key is wrapped by AES Key Wrap (RFC 3394), which also
says whether it is the right one. `SealingKey` is whatever gives 32 bytes: an attester's
`sealing_key()`, or, for tests without hardware, `FileSealingKey`.
"""

from __future__ import annotations

import contextlib
import os
import stat
import warnings
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap,
    aes_key_wrap,
)

from blindai.errors import ConfigurationError, SealedDataError, SimulationWarning
from blindai.inference.disk import Disk

if TYPE_CHECKING:
    from pathlib import Path

KEY_SIZE: Final = 32
KEY_ID_SIZE: Final = 16
WRAPPED_SIZE: Final = KEY_SIZE + 8
_WRAP_PURPOSE: Final = b"blindai data key wrap v1"
_ID_PURPOSE: Final = b"blindai sealing key id v1"
_FILE_MODE: Final = 0o600


class FileSealingKey:
    """A sealing key in a file, for simulation: it protects nothing from who can read it.

    Warns each time that it is used. The file is made at the first use.

    Args:
        path: Of the file; mode 0600.
        disk: Writes it.
    """

    def __init__(self, path: Path, *, disk: Disk | None = None) -> None:
        self._path = path
        self._disk = disk or Disk()

    def sealing_key(self) -> bytes:
        """Return the 32 bytes of the file, which is made if it is not there.

        Raises:
            ConfigurationError: The file cannot be used, or others may read it.
        """
        message = (
            f"models are sealed under a key in a file, {self._path}: whoever reads it reads "
            "them. For tests only"
        )
        warnings.warn(message, SimulationWarning, stacklevel=2)
        try:
            with contextlib.suppress(FileExistsError):
                self._make()
            return self._load()
        except OSError as error:
            msg = f"sealing key: {self._path} cannot be used: {error.strerror}"
            raise ConfigurationError(msg) from error

    def _make(self) -> None:
        if os.path.lexists(self._path):
            return
        new = self._path.with_name(f".{self._path.name}-{os.urandom(8).hex()}")
        descriptor = self._disk.create(new)
        try:
            try:
                self._disk.write(descriptor, os.urandom(KEY_SIZE))
                self._disk.sync(descriptor)
            finally:
                self._disk.close(descriptor)
            # A link, and no rename: of two that start at once, the second keeps the first's.
            self._path.hardlink_to(new)
        finally:
            self._disk.unlink(new)
        self._disk.sync_folder(self._path.parent)

    def _load(self) -> bytes:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self._path, flags)
        try:
            status = os.fstat(descriptor)
            mode = stat.S_IMODE(status.st_mode)
            if not stat.S_ISREG(status.st_mode) or mode & ~_FILE_MODE:
                msg = f"sealing key: expected a file of mode 0600, {self._path} has {mode:04o}"
                raise ConfigurationError(msg)
            key = os.read(descriptor, KEY_SIZE + 1)
        finally:
            os.close(descriptor)
        if len(key) != KEY_SIZE:
            msg = f"sealing key: expected {KEY_SIZE} bytes in {self._path}, found another number"
            raise ConfigurationError(msg)
        return key


def sealing_key_id(sealing_key: bytes) -> bytes:
    """Return 16 bytes that tell one sealing key from another, and nothing about it.

    Raises:
        ConfigurationError: The key does not have 32 bytes.
    """
    return _derive(sealing_key, _ID_PURPOSE, KEY_ID_SIZE)


def wrap_data_key(sealing_key: bytes, data_key: bytes) -> bytes:
    """Return the data key, 40 bytes, as only the sealing key can open it.

    Raises:
        ConfigurationError: The sealing key does not have 32 bytes.
    """
    return aes_key_wrap(_derive(sealing_key, _WRAP_PURPOSE, KEY_SIZE), data_key)


def unwrap_data_key(sealing_key: bytes, wrapped: bytes) -> bytes:
    """Return the data key.

    Raises:
        ConfigurationError: The sealing key does not have 32 bytes.
        SealedDataError: It was wrapped under another key, or changed.
    """
    try:
        return aes_key_unwrap(_derive(sealing_key, _WRAP_PURPOSE, KEY_SIZE), wrapped)
    except InvalidUnwrap as error:
        msg = "the wrapped data key was changed"
        raise SealedDataError(msg) from error


def _derive(sealing_key: bytes, purpose: bytes, size: int) -> bytes:
    if len(sealing_key) != KEY_SIZE:
        msg = f"expected a sealing key of {KEY_SIZE} bytes, came {len(sealing_key)}"
        raise ConfigurationError(msg)
    return HKDF(SHA256(), size, salt=None, info=purpose).derive(sealing_key)
