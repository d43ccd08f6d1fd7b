"""Sentiment of tweets through the server, against plain onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Example


def test_it_is_as_accurate_as_plain_onnxruntime(result: dict[str, Any]) -> None:
    """The server changes no verdict, and the model knows sentiment."""
    assert result["accuracy"] == result["plain_accuracy"]
    assert result["accuracy"] > 0.8
    assert result["difference"] < 1e-6


def test_it_draws_what_it_found(result: dict[str, Any], example: Example) -> None:
    """The picture is of this run."""
    assert result["proved"]
    assert (example.folder / "build/shown.png").stat().st_size > 5_000


def test_it_sends_nothing_to_other_weights(example: Example, result: dict[str, Any]) -> None:
    """A policy that pins other weights ends the run before a tweet is sent."""
    assert result["proved"]
    assert example.refuses_other_weights()
