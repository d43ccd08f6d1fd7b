"""Photographs through the server, against plain onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Example


def test_it_judges_as_plain_onnxruntime_does(result: dict[str, Any]) -> None:
    """The server changes no verdict, and harmless photographs are called safe."""
    assert result["same_verdicts"]
    assert result["difference"] < 1e-5
    assert all(probability < 0.2 for probability in result["unsafe"].values())


def test_it_draws_what_it_found(result: dict[str, Any], example: Example) -> None:
    """The picture is of this run."""
    assert len(result["unsafe"]) == 8
    assert (example.folder / "build/shown.png").stat().st_size > 5_000


def test_it_sends_nothing_to_other_weights(example: Example, result: dict[str, Any]) -> None:
    """A policy that pins other weights ends the run before a photograph is sent."""
    assert result["proved"]
    assert example.refuses_other_weights()
