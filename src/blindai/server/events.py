"""What the server logs: an event's name and fields of an allow-list, nothing else.

A field that is not listed here cannot be logged, so no request data, token or key can end up
in a log by way of a well-meant extra field. Exceptions are logged by type and place: their
messages may carry data.
"""

from __future__ import annotations

import logging
import traceback
from typing import Final, Literal

from blindai.errors import ConfigurationError

LOGGER: Final = logging.getLogger("blindai.server")
FIELDS: Final = frozenset(
    {
        "address",
        "entries",
        "error",
        "error_id",
        "file",
        "head",
        "models",
        "not_after",
        "place",
        "platform",
        "public_address",
        "running",
        "sha256",
        "simulated",
        "size",
    }
)
_FRAMES: Final = 6

Level = Literal["info", "warning", "error"]


def log_event(event: str, *, level: Level = "info", **fields: object) -> None:
    """Log an event.

    Args:
        event: Its name, in snake case.
        level: How bad it is.
        fields: Of `FIELDS` only.

    Raises:
        ConfigurationError: A field that is not in the allow-list.
    """
    if not fields.keys() <= FIELDS:
        msg = f"not to be logged: {', '.join(sorted(fields.keys() - FIELDS))}"
        raise ConfigurationError(msg)
    text = " ".join([event, *(f"{name}={value}" for name, value in fields.items())])
    LOGGER.log(logging.getLevelNamesMapping()[level.upper()], "%s", text)


def place_of(error: BaseException) -> str:
    """Return where an exception came from, innermost frame first, without its message."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    return " < ".join(f"{f.filename.rpartition('/')[2]}:{f.lineno}" for f in reversed(frames))
