"""Files and times that a user names on the command line."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from blindai.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILE_BYTES: Final = 8 << 20


def parse_time(text: str | None) -> datetime:
    """Return the moment that an option names; now, where it names none.

    Raises:
        ConfigurationError: If it is no RFC 3339 time with a time zone.
    """
    if text is None:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        msg = f"--at: expected a time such as 2026-03-31T12:00:00Z, found {text!r}"
        raise ConfigurationError(msg) from error
    if moment.tzinfo is None:
        msg = f"--at: {text!r} has no time zone; add Z for UTC"
        raise ConfigurationError(msg)
    return moment


def read_bounded(path: Path) -> bytes:
    """Return a file's content, if it is not too large for anything that is evidence.

    Raises:
        ConfigurationError: If it cannot be read or is too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise ConfigurationError(msg) from error
    if len(content) > MAX_FILE_BYTES:
        msg = f"{path} is larger than {MAX_FILE_BYTES:,} bytes: no evidence is"
        raise ConfigurationError(msg)
    return content


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: beside its place first, then renamed.

    Raises:
        ConfigurationError: If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        msg = f"cannot write {path}: {error.strerror}"
        raise ConfigurationError(msg) from error
