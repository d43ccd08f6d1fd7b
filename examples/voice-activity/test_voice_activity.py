"""A conversation streamed through the server, against plain onnxruntime and against people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Example


def test_it_is_as_accurate_as_plain_onnxruntime(result: dict[str, Any]) -> None:
    """A state that went over the network a thousand times is the same state."""
    assert result["accuracy"] == result["plain_accuracy"]
    assert result["accuracy"] > 0.97
    assert result["difference"] < 1e-4


def test_it_draws_what_it_found(result: dict[str, Any], example: Example) -> None:
    """The picture is of this run, which was of half a minute."""
    assert 29 < result["sound_seconds"] < 31
    assert (example.folder / "build/shown.png").stat().st_size > 5_000


def test_it_sends_nothing_to_other_weights(example: Example, result: dict[str, Any]) -> None:
    """A policy that pins other weights ends the run before a sound is sent."""
    assert result["proved"]
    assert example.refuses_other_weights()
