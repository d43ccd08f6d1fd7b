"""A model on its way in: bytes to a temporary file, hashed and counted as they come.

Always true: the file has a random name; it becomes a model by being renamed, or is removed.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import secrets
from typing import TYPE_CHECKING, Final, Self

from blindai.errors import ConfigurationError, InvalidInput, Overloaded

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from blindai.inference.options import ModelOptions
    from blindai.inference.records import Measured, ModelRecord
    from blindai.inference.store import ModelStore

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG})


class Upload:
    """A model on its way in; made by `ModelStore.begin_upload`, used by one thread at a time.

    Use it in a `with` statement: what is not committed at its end leaves nothing behind.

    Attributes:
        name: That the model shall have.
        options: What its uploader said.
        known: What was found out of it before.
        path: Of the temporary file.
    """

    __slots__ = (
        "_counted",
        "_digest",
        "_expected_size",
        "_file",
        "_size",
        "_store",
        "known",
        "name",
        "options",
        "path",
    )

    def __init__(
        self,
        store: ModelStore,
        folder: Path,
        name: str,
        expected_size: int | None,
        options: ModelOptions,
        known: Measured | None,
    ) -> None:
        self.name = name
        self.options = options
        self.known = known
        self.path = folder / f".upload-{secrets.token_hex(16)}"
        self._store = store
        self._expected_size = expected_size
        self._digest = hashlib.sha256()
        self._size = 0
        self._counted = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        # Readable for nobody else, whatever the umask: the weights are somebody's secret.
        self._file = io.FileIO(os.open(self.path, flags, 0o600), "wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()

    @property
    def size(self) -> int:
        """Bytes that came so far."""
        return self._size

    @property
    def sha256(self) -> str:
        """SHA-256 of what came so far, in hexadecimal."""
        return self._digest.hexdigest()

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Add the next bytes.

        Raises:
            InvalidInput: More than was announced.
            LimitExceeded: More than a model may have.
            Overloaded: No room for them now.
        """
        self._check_open()
        view = memoryview(chunk).cast("B")
        more = len(view)
        if self._expected_size is not None and self._size + more > self._expected_size:
            msg = f"expected {self._expected_size} bytes, came more"
            raise InvalidInput(msg)
        self._store.grow_upload(self._size, more)
        self._size += more
        self._counted += more
        self._digest.update(view)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise no_room(error) from error

    def commit(self, *, expected_sha256: str | None = None, replace: bool = False) -> ModelRecord:
        """Load the model and give it its name. Slow: to be called in a worker thread.

        The upload ends, whatever the outcome.

        Args:
            expected_sha256: In hexadecimal, if known.
            replace: Take the name from a model with other weights.

        Raises:
            InvalidInput: Not the size or the SHA-256 that was announced.
            InvalidModel: The engine cannot load it.
            ModelConflict: The name belongs to other weights.
            LimitExceeded: One name too many.
            Overloaded: No room for it.
        """
        self._check_open()
        try:
            if self._expected_size is not None and self._size != self._expected_size:
                msg = f"expected {self._expected_size} bytes, came {self._size}: truncated"
                raise InvalidInput(msg)
            expected = self.sha256 if expected_sha256 is None else expected_sha256
            if expected.removeprefix("sha256:").lower() != self.sha256:
                msg = f"expected a model with SHA-256 {expected[:80]}, came {self.sha256}"
                raise InvalidInput(msg)
            os.fsync(self._file.fileno())
            return self._store.add(self, replace_other=replace)
        except OSError as error:
            raise no_room(error) from error
        finally:
            self.abort()

    def abort(self) -> None:
        """Give up what was not committed; does nothing after the end of the upload."""
        if self._file.closed:
            return
        self._file.close()
        self.path.unlink(missing_ok=True)
        self._store.end_upload(self.release())

    def release(self) -> int:
        """Return the bytes that count against the store's budget, and count them no more."""
        counted, self._counted = self._counted, 0
        return counted

    def _check_open(self) -> None:
        if self._file.closed:
            msg = "expected an upload that is under way, came one that has ended"
            raise ConfigurationError(msg)


def no_room(error: OSError) -> Overloaded:
    """Return the error of a disk that takes no more, or not this."""
    full = error.errno in _FULL
    what = "no room for the model" if full else "the model's file cannot be written"
    return Overloaded(f"{what}: {error.strerror}", retry_after=30.0)
