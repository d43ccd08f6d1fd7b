"""A voice through the server, against plain onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Example


def test_it_says_what_plain_onnxruntime_says(result: dict[str, Any]) -> None:
    """As long, and sample for sample the same."""
    assert result["same_length"]
    assert result["difference"] < 1e-4


def test_it_speaks(result: dict[str, Any], example: Example) -> None:
    """A sentence of some seconds, audible, as a sound and as a picture of it."""
    assert 2 < result["seconds"] < 8
    assert result["loudness"] > 0.01
    assert (example.folder / "build/shown.wav").stat().st_size > 80_000
    assert (example.folder / "build/shown.png").stat().st_size > 5_000


def test_it_sends_nothing_to_other_weights(example: Example, result: dict[str, Any]) -> None:
    """A policy that pins other weights ends the run before a sound is sent."""
    assert result["proved"]
    assert example.refuses_other_weights()
