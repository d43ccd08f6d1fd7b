"""Logs carry what is in the allow-list, and never data."""

import ast
import io
import json
import logging
import sys
import threading
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import ConfigurationError
from blindai.server.events import EVENTS, FIELDS, JsonLines, log_event, log_to, place_of
from tests.docs.pages import ROOT

CANARY = "canary-93b7"
SOURCES = sorted((ROOT / "src" / "blindai").rglob("*.py"))


@pytest.fixture
def logged():
    """What a process logs that only serves, as a stream; afterwards all is as it was."""
    root, own, stream = logging.getLogger(), logging.getLogger("blindai.server"), io.StringIO()
    before = root.handlers, root.level, own.level, logging.raiseExceptions
    hooks = threading.excepthook, sys.unraisablehook
    log_to(stream)
    yield stream
    root.handlers, root.level, own.level, logging.raiseExceptions = before
    threading.excepthook, sys.unraisablehook = hooks


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_event_with_fields(caplog):
    """An event is its name and its fields."""
    with caplog.at_level(logging.INFO, "blindai.server"):
        log_event("model_loaded", size=3)
    assert caplog.messages == ["model_loaded size=3"]


@pytest.mark.parametrize("name", ["tensor", "token", "message", "body", "nonce", "name", "subject"])
def test_other_fields_cannot_be_logged(name):
    """A field that is not in the allow-list is an error, not a line."""
    assert name not in FIELDS
    with pytest.raises(ConfigurationError, match=name):
        log_event("model_loaded", **{name: "secret"})


def test_fields_and_events_of_others():
    """A field is its event's alone, and an event that is not listed is none."""
    with pytest.raises(ConfigurationError, match="address"):
        log_event("model_loaded", address="somebody's")
    with pytest.raises(ConfigurationError, match="anything"):
        log_event("anything")


def calls():
    """Yield each call of `log_event` in the source: its file, event and fields."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "log_event":
                fields = {keyword.arg for keyword in node.keywords} - {"level"}
                yield path.name, ast.literal_eval(node.args[0]), fields


def test_every_call_is_allowed():
    """What the source logs is in the list, also where no test gets to; and the list has no more."""
    found = list(calls())
    assert all(fields <= EVENTS[event] for _, event, fields in found), found
    assert {event for _, event, _ in found} == set(EVENTS)


def test_nothing_else_logs():
    """No other module formats a message of its own for a log, but the one without the server."""
    others = {path.name for path in SOURCES if "logging.getLogger(" in path.read_text()}
    assert others == {"events.py", "stapler.py"}


def test_json_lines(logged):
    """A line is JSON with time, level, event and fields, whatever is in them."""
    log_event("model_refused", level="error", file='a\n"b', error="InvalidModel")
    (line,) = lines(logged)
    assert datetime.fromisoformat(line.pop("time")).utcoffset() == timedelta(0)
    assert line == {
        "level": "error", "event": "model_refused", "file": 'a\n"b', "error": "InvalidModel",
    }  # fmt: skip


def test_libraries_are_not_quoted(logged):
    """Of what a library logs, the words, arguments and the exception's message stay out."""
    try:
        raise ValueError(CANARY)  # noqa: TRY301
    except ValueError:
        logging.getLogger("asyncio").exception("callback %s failed", CANARY)
    logging.getLogger(CANARY[:6]).warning(CANARY, extra={"fields": {"body": CANARY}})
    logging.getLogger("blindai.server").warning(CANARY)
    logging.getLogger("asyncio").info("not worth a line")
    assert CANARY not in logged.getvalue()
    first, second, third = lines(logged)
    assert (first["event"], first["logger"], first["error"]) == ("library", "asyncio", "ValueError")
    assert "test_events.py:" in first["place"]
    assert second["logger"] == CANARY[:6]
    assert third["event"] == "library"


@given(
    st.dictionaries(st.sampled_from(sorted(EVENTS["internal_error"])), st.text() | st.integers())
)
def test_any_value(fields):
    """A line is one line, and reads back as what was logged."""
    record = logging.makeLogRecord(
        {"name": "blindai.server", "event": "internal_error", "fields": fields}
    )
    line = JsonLines().format(record)
    assert "\n" not in line
    assert {name: json.loads(line)[name] for name in fields} == fields


def test_a_thread_that_fails(logged, capsys):
    """A thread's failure is told by its type and place; Python prints nothing."""

    def fail():
        raise ValueError(CANARY)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    (line,) = lines(logged)
    assert (line["event"], line["error"]) == ("library", "ValueError")
    assert CANARY not in logged.getvalue() + "".join(capsys.readouterr())


def test_a_stream_that_is_gone(logged, capsys):
    """A log that cannot be written says nothing elsewhere."""
    logged.close()
    log_event("model_refused", level="error", file=CANARY, error="InvalidModel")
    logging.getLogger().handlers = []
    assert CANARY not in "".join(capsys.readouterr())


def test_place_without_message():
    """An exception is placed by file and line; its message stays out."""

    def fail():
        msg = "secret"
        raise ValueError(msg)

    with pytest.raises(ValueError, match="secret") as caught:
        fail()
    place = place_of(caught.value)
    assert f"{Path(__file__).name}:" in place
    assert "secret" not in place
