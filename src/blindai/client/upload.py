"""Where the bytes of an upload come from, read once and in constant memory.

Always true: the SHA-256 is over exactly the bytes that were handed out.
"""

from __future__ import annotations

import hashlib
import io
import os
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from blindai.errors import ConfigurationError, InferenceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blindai.client.results import ModelInfo

CHUNK_BYTES: Final = 1 << 20

Model = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]


class Source:
    """A model that is about to be sent.

    Args:
        file: Open for reading, in binary.
        size: Bytes from where it stands to its end; `None` where nobody knows.
        name: What to call the model where the caller did not say; `None`: nothing fits.
    """

    def __init__(self, file: IO[bytes], size: int | None, name: str | None) -> None:
        self.size = size
        self.name = name
        self._file = file
        self._digest = hashlib.sha256()

    def chunks(self, advance: Callable[[int], None]) -> Iterator[memoryview]:
        """Yield the model in pieces; each holds only until the next is asked for.

        Args:
            advance: Told the size of each piece.

        Raises:
            ConfigurationError: If the file has another size than when it was opened.
        """
        buffer = memoryview(bytearray(CHUNK_BYTES))
        sent = 0
        while count := self._read(buffer):
            sent += count
            if self.size is not None and sent > self.size:
                break
            self._digest.update(buffer[:count])
            advance(count)
            yield buffer[:count]
        if self.size is not None and sent != self.size:
            msg = f"the model's file changed while it was sent: it had {self.size} bytes"
            raise ConfigurationError(msg)

    def check_received(self, model: ModelInfo) -> ModelInfo:
        """Return `model` if it has the bytes that were sent.

        Raises:
            InferenceError: If the server holds anything else.
        """
        sent = self._digest.hexdigest()
        if model.sha256 != sent:
            msg = (
                f"sent a model with SHA-256 {sent}, the server says it holds {model.sha256} as "
                f"{model.name!r}: do not use it"
            )
            raise InferenceError(msg)
        return model

    def _read(self, buffer: memoryview) -> int:
        readinto = getattr(self._file, "readinto", None)
        if readinto is not None:
            return int(readinto(buffer) or 0)
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def open_source(model: Model) -> Iterator[Source]:
    """Open what a caller passed as a model.

    Args:
        model: A path, the bytes themselves, or a file that is open for reading in binary.

    Raises:
        ConfigurationError: If it is neither, or the file cannot be read.
    """
    if isinstance(model, bytes | bytearray | memoryview):
        data = memoryview(model).cast("B")
        with io.BytesIO(data) as memory:
            yield Source(memory, len(data), None)
    elif isinstance(model, str | os.PathLike):
        path = Path(model)
        try:
            file = path.open("rb")
        except OSError as error:
            msg = f"cannot read the model {path}: {error.strerror}"
            raise ConfigurationError(msg) from error
        with file:
            yield Source(file, os.fstat(file.fileno()).st_size, path.stem)
    elif hasattr(model, "read"):
        yield Source(model, _remaining(model), None)
    else:
        msg = f"expected a model as a path, bytes or an open file, found {type(model).__name__}"
        raise ConfigurationError(msg)


def _remaining(file: IO[bytes]) -> int | None:
    try:
        start = file.tell()
        end = file.seek(0, io.SEEK_END)
        file.seek(start)
    except (OSError, AttributeError, io.UnsupportedOperation):
        return None
    return end - start
