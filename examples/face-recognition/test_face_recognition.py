"""Faces through the server, against plain onnxruntime and against who they are of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Example

SAME = 0.6


def test_it_judges_as_plain_onnxruntime_does(result: dict[str, Any]) -> None:
    """The server changes no verdict, and hardly a bit."""
    assert result["same_verdicts"]
    assert result["difference"] < 1e-5


def test_it_recognises_one_person(result: dict[str, Any]) -> None:
    """Other photographs of the enrolled face are near it, and those of other people are not."""
    near = {name for name, distance in result["distances"].items() if distance < SAME}
    assert near == {"obama", "obama2", "obama3"}
    assert result["distances"].keys() - near == {"biden", "collins"}


def test_it_draws_what_it_found(result: dict[str, Any], example: Example) -> None:
    """The picture is of this run."""
    assert result["proved"]
    assert (example.folder / "build/shown.png").stat().st_size > 5_000


def test_it_sends_nothing_to_other_weights(example: Example, result: dict[str, Any]) -> None:
    """A policy that pins other weights ends the run before a face is sent."""
    assert result["proved"]
    assert example.refuses_other_weights()
