"""Sound that is heard while it is made, against a loop around plain onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Example


def test_it_sounds_as_plain_onnxruntime_does(result: dict[str, Any]) -> None:
    """Each of 16,000 samples is the same, though each depends on all before it."""
    assert result["pieces"] == 40
    assert result["same_levels"]
    assert result["distinct"] > 10


def test_it_is_heard_while_it_is_made(result: dict[str, Any]) -> None:
    """The first part is here long before the last is made."""
    assert result["first_seconds"] < result["seconds"] / 4


def test_it_keeps_what_it_heard(result: dict[str, Any], example: Example) -> None:
    """Picture and sound are of this run."""
    assert result["proved"]
    assert (example.folder / "build/shown.png").stat().st_size > 5_000
    assert (example.folder / "build/shown.wav").stat().st_size == 44 + 2 * 16_000


def test_it_asks_nothing_of_other_weights(example: Example, result: dict[str, Any]) -> None:
    """A policy that pins other weights ends the run before anything is asked."""
    assert result["proved"]
    assert example.refuses_other_weights()
