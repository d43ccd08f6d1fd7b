"""The folder of a vault: its files, read with bounds and written whole or not at all.

Always true: one process uses it at a time; links are not followed; a model's file is synced,
with its name, before `write_model` returns; the registry is replaced by a rename.
"""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from blindai.errors import BlindAIError, ConfigurationError, SealedDataError
from blindai.inference.disk import claim_folder
from blindai.inference.registry import MAX_FILE_BYTES
from blindai.inference.sealed_file import (
    HEADER_SIZE,
    Header,
    Kind,
    parse_header,
    seal_stream,
    unseal_pieces,
)
from blindai.inference.upload import no_room

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from blindai.inference.disk import Disk
    from blindai.inference.registry import SealedModel, VaultKey
    from blindai.inference.sealed_file import Source

REGISTRY: Final = "registry.sealed"
_MODEL: Final = re.compile(r"[0-9a-f]{32}\.sealed")
_TEMPORARY: Final = re.compile(r"\.registry-[0-9a-f]{32}")
_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class VaultFolder:
    """Reads and writes the files of one vault.

    Args:
        path: Made where it is missing.
        disk: Writes.

    Raises:
        ConfigurationError: It cannot be used, or another server uses it.
    """

    def __init__(self, path: Path, disk: Disk) -> None:
        self.path = path
        self._disk = disk
        self._claim = claim_folder(path, "sealed models")

    def close(self) -> None:
        """Release the folder."""
        if self._claim >= 0:
            os.close(self._claim)
            self._claim = -1

    def clear(self, *, keep: Collection[bytes]) -> None:
        """Remove what was left by a power cut: all files of ours but those of `keep`."""
        kept = {_file_name(file_id) for file_id in keep}
        for name in self._names():
            if _TEMPORARY.fullmatch(name) or (_MODEL.fullmatch(name) and name not in kept):
                self._unlink(name)

    def has_models(self) -> bool:
        """Return whether any file could be a model's."""
        return any(map(_MODEL.fullmatch, self._names()))

    def prepare_registry(self, file: bytes) -> str:
        """Write a registry beside the one that counts; return its temporary name.

        Raises:
            Overloaded: The disk is full.
            SealedDataError: The disk fails.
        """
        name = f".registry-{secrets.token_hex(16)}"
        self._write(name, lambda write: write(memoryview(file)))
        return name

    def replace_registry(self, temporary: str) -> None:
        """Make a prepared registry the one that counts; if this fails, it may be either.

        Raises:
            Overloaded: The disk is full.
            SealedDataError: The disk fails.
        """
        try:
            self._disk.rename(self.path / temporary, self.path / REGISTRY)
            self._disk.sync_folder(self.path)
        except OSError as error:
            raise _disk_error(error) from error

    def write_model(
        self, source: Source, header: Header, data_key: bytes, check: Callable[[], None]
    ) -> None:
        """Seal a model into a file that counts for nothing before a registry names it.

        Args:
            source: The model in clear.
            header: Of the new file.
            data_key: 32 bytes.
            check: Called when all was read; what it raises leaves nothing behind.

        Raises:
            InvalidInput: The source has another size than the header.
            Overloaded: The disk is full.
            SealedDataError: The disk fails.
        """

        def fill(write: Callable[[memoryview], None]) -> None:
            seal_stream(source, write, header, data_key)
            check()

        name = _file_name(header.file_id)
        self._write(name, fill)
        try:
            self._disk.sync_folder(self.path)
        except OSError as error:
            self._unlink(name)
            raise _disk_error(error) from error

    def load_model(self, model: SealedModel, key: VaultKey) -> Iterator[memoryview]:
        """Yield a model in clear, chunk by chunk, each in the memory of the one before.

        Raises:
            SealedDataError: Its file is not as it was sealed, or cannot be read.
        """
        try:
            with _open(self.path / _file_name(model.file_id)) as (file, size):
                expected = Header(Kind.MODEL, key.version, model.file_id, model.size)
                _check_header(parse_header(_read(file, HEADER_SIZE)), expected, size)
                yield from unseal_pieces(file, expected, key.data_key)
        except OSError as error:
            msg = f"{model.title}: its file cannot be read: {error.strerror}"
            raise SealedDataError(msg) from error
        except SealedDataError as error:
            msg = f"{model.title}: {error}"
            raise SealedDataError(msg) from error

    def discard(self, file_ids: Collection[bytes]) -> None:
        """Remove models' files that no registry names; what cannot be removed stays."""
        for file_id in file_ids:
            self._unlink(_file_name(file_id))

    def _write(self, name: str, fill: Callable[[Callable[[memoryview], None]], None]) -> None:
        """Write and sync a new file; leave nothing behind if that fails."""
        try:
            descriptor = self._disk.create(self.path / name)
            try:
                fill(lambda piece: self._disk.write(descriptor, piece))
                self._disk.sync(descriptor)
            finally:
                self._disk.close(descriptor)
        except OSError as error:
            self._unlink(name)
            raise _disk_error(error) from error
        except BlindAIError:
            self._unlink(name)
            raise

    def _unlink(self, name: str) -> None:
        # It is in nobody's way: the next opening tries again.
        with suppress(OSError):
            self._disk.unlink(self.path / name)

    def _names(self) -> list[str]:
        try:
            return sorted(path.name for path in self.path.iterdir())
        except OSError as error:
            msg = f"expected a folder for sealed models at {self.path}: {error.strerror}"
            raise ConfigurationError(msg) from error


def load_registry(folder: Path) -> bytes | None:
    """Return the registry's file; `None`: there is none.

    Raises:
        SealedDataError: It is too large, or cannot be read.
    """
    try:
        with _open(folder / REGISTRY) as (file, size):
            if size > MAX_FILE_BYTES:
                msg = f"expected a registry of at most {MAX_FILE_BYTES} bytes, came {size}"
                raise SealedDataError(msg)
            return _read(file, MAX_FILE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        msg = f"{REGISTRY} cannot be read: {error.strerror}"
        raise SealedDataError(msg) from error


@contextmanager
def _open(path: Path) -> Iterator[tuple[io.FileIO, int]]:
    """Open a regular file; yield it and its size."""
    # NONBLOCK: opening a pipe must not wait for its writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with io.FileIO(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            msg = f"expected a regular file, came a folder, pipe or device: {path.name}"
            raise SealedDataError(msg)
        yield file, status.st_size


def _read(file: io.FileIO, at_most: int) -> bytes:
    data = b""
    while len(data) < at_most and (more := file.read(at_most - len(data))):
        data += more
    return data


def _check_header(found: Header, expected: Header, size: int) -> None:
    """Refuse the file of another model, of an earlier time, or of another length."""
    if found != expected:
        msg = (
            "its file is another than the registry names: its header was changed, or another "
            "file, or an earlier one, was put in its place"
        )
        raise SealedDataError(msg)
    if size != expected.sealed_size:
        what = "truncated" if size < expected.sealed_size else "extended"
        msg = f"the file was {what}: expected {expected.sealed_size} bytes, came {size}"
        raise SealedDataError(msg)


def _file_name(file_id: bytes) -> str:
    return f"{file_id.hex()}.sealed"


def _disk_error(error: OSError) -> BlindAIError:
    """Return the error of a disk that does not take what it is given."""
    if error.errno in _DISK_FULL:
        return no_room(error)
    return SealedDataError(f"the sealed models cannot be written: {error.strerror}")
