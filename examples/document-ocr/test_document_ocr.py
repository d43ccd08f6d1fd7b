"""A page read through the server, against the same OCR library on its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Example


def test_it_reads_what_plain_onnxruntime_reads(result: dict[str, Any]) -> None:
    """Every tensor of three networks is the same, so the text is."""
    assert result["same_text"]
    assert result["difference"] < 1e-4


def test_it_reads_the_page(result: dict[str, Any]) -> None:
    """What people read on the page is nearly all found."""
    assert result["character_errors"] < 20
    assert "Region-based" in result["text"]


def test_it_draws_what_it_read(result: dict[str, Any], example: Example) -> None:
    """The picture is of this run."""
    assert result["proved"]
    assert (example.folder / "build/shown.png").stat().st_size > 5_000


def test_it_sends_nothing_to_other_weights(example: Example, result: dict[str, Any]) -> None:
    """A policy that pins other weights ends the run before the page is sent."""
    assert result["proved"]
    assert example.refuses_other_weights()
