"""Logs carry what is in the allow-list, and never data."""

import logging

import pytest

from blindai.errors import ConfigurationError
from blindai.server.events import FIELDS, log_event, place_of


def test_event_with_fields(caplog):
    """An event is its name and its fields."""
    with caplog.at_level(logging.INFO, "blindai.server"):
        log_event("model_loaded", size=3)
    assert caplog.messages == ["model_loaded size=3"]


@pytest.mark.parametrize("name", ["tensor", "token", "message", "body", "nonce"])
def test_other_fields_cannot_be_logged(name):
    """A field that is not in the allow-list is an error, not a line."""
    assert name not in FIELDS
    with pytest.raises(ConfigurationError, match=name):
        log_event("anything", **{name: "secret"})


def test_place_without_message():
    """An exception is placed by file and line; its message stays out."""

    def fail():
        msg = "secret"
        raise ValueError(msg)

    with pytest.raises(ValueError, match="secret") as caught:
        fail()
    place = place_of(caught.value)
    assert "test_events.py:" in place
    assert "secret" not in place
