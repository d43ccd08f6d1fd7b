"""What the server logs: an event, and fields that are its own; nothing else.

Always true: an event that is not listed here cannot be logged, nor a field that is not its own,
so no request data, token or key can end up in a log by way of a well-meant extra field. Names
of models are not among the fields, but for those of the operator's own files. Exceptions are
logged by type and place: their messages may carry data. What libraries log is told by their name
and level, and never in their words.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from blindai.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

LOGGER: Final = logging.getLogger("blindai.server")
_ALL: Final = logging.getLogger()


def _fields(text: str = "") -> frozenset[str]:
    return frozenset(text.split())


# Event → its fields. docs/how-to/observe.md says what each of them means.
EVENTS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "ready": _fields("platform simulated address public_address models"),
        "new_keys": _fields("not_after"),
        "stopping": _fields("running"),
        "run_does_not_end": _fields("running"),
        "stopped": _fields(),
        "model_loaded": _fields("sha256 size"),
        "model_deleted": _fields("models"),
        "model_pruned": _fields("sha256"),
        "model_refused": _fields("file error"),
        "pruning_failed": _fields("error"),
        "models_handed_over": _fields(),
        "models_taken_over": _fields(),
        "handover_withdrawn": _fields(),
        "api_keys_loaded": _fields(),
        "api_keys_unreadable": _fields(),
        "reloaded": _fields(),
        "not_reloaded": _fields("error"),
        "jwks_not_fetched": _fields("error"),
        "audit_head": _fields("entries head"),
        "audit_failed": _fields("entries"),
        "no_evidence": _fields("error"),
        "internal_error": _fields("error error_id place"),
        # What others say, by Python's logging.
        "library": _fields("logger error place"),
    }
)
FIELDS: Final = frozenset[str]().union(*EVENTS.values())
_FRAMES: Final = 6

Level = Literal["info", "warning", "error"]


def log_event(event: str, *, level: Level = "info", **fields: object) -> None:
    """Log an event.

    Args:
        event: Its name, in snake case; one of `EVENTS`.
        level: How bad it is.
        fields: Of the event only.

    Raises:
        ConfigurationError: An event or a field that is not in the allow-list.
    """
    allowed = EVENTS.get(event)
    if allowed is None or not fields.keys() <= allowed:
        strange = [event] if allowed is None else sorted(fields.keys() - allowed)
        msg = f"not to be logged: {', '.join(strange)}"
        raise ConfigurationError(msg)
    text = " ".join([event, *(f"{name}={value}" for name, value in fields.items())])
    LOGGER.log(
        logging.getLevelNamesMapping()[level.upper()],
        "%s",
        text,
        extra={"event": event, "fields": fields},
    )


def place_of(error: BaseException) -> str:
    """Return where an exception came from, innermost frame first, without its message."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    return " < ".join(f"{f.filename.rpartition('/')[2]}:{f.lineno}" for f in reversed(frames))


class JsonLines(logging.Formatter):
    """Writes a record as one line of JSON, with a time in UTC; see the module for what is left out.

    Only records that `log_event` made are told in full: it has looked at their fields.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
        }
        if record.name == LOGGER.name and hasattr(record, "fields"):
            line |= {"event": record.event, **record.fields}  # type: ignore[attr-defined]
        else:
            line |= {"event": "library", "logger": record.name}
            error = record.exc_info[1] if record.exc_info else None
            if error is not None:
                line |= {"error": type(error).__name__, "place": place_of(error)}
        return json.dumps(line, default=str)


def log_to(stream: TextIO, level: Level = "info") -> None:
    """Let all that this process logs go to a stream, as JSON; for a process that only serves.

    Args:
        stream: Of text.
        level: The least that is told of this server; of libraries, warnings at least.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    _ALL.handlers = [handler]
    _ALL.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))
    LOGGER.setLevel(level.upper())
    # What cannot be written is lost: its traceback would hold the record.
    logging.raiseExceptions = False
    # Python would print a traceback, with the exception's message.
    threading.excepthook = _log_failure
    sys.unraisablehook = _log_failure


def _log_failure(failure: threading.ExceptHookArgs | sys.UnraisableHookArgs) -> None:
    error = failure.exc_value
    name, place = ("", "") if error is None else (type(error).__name__, place_of(error))
    log_event("library", level="error", logger="python", error=name, place=place)
