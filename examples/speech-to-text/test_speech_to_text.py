"""Recordings written down through the server, against plain onnxruntime and what was said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Example


def test_it_understands_what_plain_onnxruntime_does(result: dict[str, Any]) -> None:
    """Every token is the same."""
    assert result["same_tokens"]


def test_it_understands_what_was_said(result: dict[str, Any]) -> None:
    """Few words are wrong, and Beckett begins and ends as he wrote it."""
    assert result["errors"] / result["words"] < 0.1
    assert result["texts"]["beckett"].startswith("Ever tried")
    assert result["texts"]["beckett"].endswith("Fail better.")


def test_it_draws_what_it_heard(result: dict[str, Any], example: Example) -> None:
    """The picture is of this run."""
    assert result["proved"]
    assert (example.folder / "build/shown.png").stat().st_size > 5_000


def test_it_sends_nothing_to_other_weights(example: Example, result: dict[str, Any]) -> None:
    """A policy that pins other weights ends the run before a sound is sent."""
    assert result["proved"]
    assert example.refuses_other_weights()
