"""Private notes searched through the server, against plain onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Example


def test_it_finds_what_plain_onnxruntime_finds(result: dict[str, Any]) -> None:
    """All notes are in the same order for every question."""
    assert result["same_order"]
    assert result["difference"] < 1e-5


def test_it_finds_the_notes(result: dict[str, Any]) -> None:
    """Nearly every question finds the note that answers it, in other words than the note's."""
    assert result["right"] >= result["questions"] - 1


def test_it_draws_what_it_found(result: dict[str, Any], example: Example) -> None:
    """The picture is of this run."""
    assert result["proved"]
    assert (example.folder / "build/shown.png").stat().st_size > 5_000


def test_it_sends_nothing_to_other_weights(example: Example, result: dict[str, Any]) -> None:
    """A policy that pins other weights ends the run before a note is sent."""
    assert result["proved"]
    assert example.refuses_other_weights()
