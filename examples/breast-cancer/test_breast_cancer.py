"""A second opinion on biopsies through the server, against plain onnxruntime and scikit-learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Example


def test_it_is_as_accurate_as_plain_onnxruntime(result: dict[str, Any]) -> None:
    """The server changes no verdict, and neither did writing scikit-learn's model as ONNX."""
    assert result["accuracy"] == result["plain_accuracy"]
    assert result["accuracy"] > 0.93
    assert result["difference"] < 1e-6
    assert result["difference_from_training"] < 1e-4


def test_it_draws_and_keeps_a_receipt(result: dict[str, Any], example: Example) -> None:
    """Picture and receipt are of this run."""
    assert result["missed"] + result["false_alarms"] < 12
    assert (example.folder / "build/shown.png").stat().st_size > 5_000
    assert (example.folder / "build/receipt.cbor").stat().st_size > 500


def test_it_sends_nothing_to_other_weights(example: Example, result: dict[str, Any]) -> None:
    """A policy that pins other weights ends the run before a measurement is sent."""
    assert result["proved"]
    assert example.refuses_other_weights()
