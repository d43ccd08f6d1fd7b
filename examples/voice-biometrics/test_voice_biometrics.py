"""Voices through the server, against plain onnxruntime and against whose they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Example

SAME = 0.77


def test_it_judges_as_plain_onnxruntime_does(result: dict[str, Any]) -> None:
    """The server changes no verdict, and hardly a bit."""
    assert result["same_verdicts"]
    assert result["difference"] < 1e-5


def test_it_knows_a_voice(result: dict[str, Any]) -> None:
    """Everybody enrolled is accepted with another recording, and nobody else is."""
    assert result["own"]
    assert min(result["own"]) > SAME
    assert result["other"]
    assert max(result["other"]) < SAME


def test_it_draws_what_it_heard(result: dict[str, Any], example: Example) -> None:
    """The picture is of this run."""
    assert result["proved"]
    assert (example.folder / "build/shown.png").stat().st_size > 5_000


def test_it_sends_nothing_to_other_weights(example: Example, result: dict[str, Any]) -> None:
    """A policy that pins other weights ends the run before a sound is sent."""
    assert result["proved"]
    assert example.refuses_other_weights()
