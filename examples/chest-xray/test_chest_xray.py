"""Drawn chests through the server, against plain onnxruntime; and the way for real weights."""

from __future__ import annotations

import hashlib
import subprocess
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Example


def test_it_finds_what_plain_onnxruntime_does(result: dict[str, Any]) -> None:
    """Probabilities are the same, and those of one picture are not those of another."""
    assert result["same_findings"]
    assert result["difference"] < 1e-5
    assert result["apart"] > 1e-4
    assert all(abs(sum(row) - 1) < 1e-5 for row in result["findings"])


def test_it_draws_what_it_found(result: dict[str, Any], example: Example) -> None:
    """The picture is of this run."""
    assert len(result["findings"]) == 4
    assert (example.folder / "build/shown.png").stat().st_size > 5_000


def test_it_sends_nothing_to_other_weights(example: Example, result: dict[str, Any]) -> None:
    """A policy that pins other weights ends the run before a picture is sent."""
    assert result["proved"]
    assert example.refuses_other_weights()


def converted(path: Path, takes: list[str | int], kind: int = TensorProto.FLOAT) -> Path:
    """Write a model with the names that a checkpoint of COVID-Net has in TensorFlow."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["input_1:0"], ["mean"], axes=[1, 2], keepdims=0),
            helper.make_node("Softmax", ["mean"], ["norm_dense_1/Softmax:0"]),
        ],
        "checkpoint",
        [helper.make_tensor_value_info("input_1:0", kind, takes)],
        [helper.make_tensor_value_info("norm_dense_1/Softmax:0", kind, ["batch", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


def prepare(example: Example, model: Path, into: Path) -> subprocess.CompletedProcess[str]:
    """Run `prepare.py` with a model of somebody's own."""
    command = [example.folder / ".venv/bin/python", example.folder / "prepare.py"]
    command += ["--model", model, "--into", into]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_real_weights_are_taken(example: Example, tmp_path: Path) -> None:
    """A model of the shape of the authors' checkpoints is served, and pinned by its digest."""
    model = converted(tmp_path / "real.onnx", ["batch", 480, 480, 3])
    ran = prepare(example, model, tmp_path / "build")
    assert ran.returncode == 0, ran.stderr
    served = (tmp_path / "build/models/covidnet.onnx").read_bytes()
    policy = (tmp_path / "build/policy.toml").read_text()
    assert f"sha256:{hashlib.sha256(served).hexdigest()}" in policy
    assert onnx.load_from_string(served).graph.input[0].name == "input_1:0"


@pytest.mark.parametrize(
    ("takes", "kind"),
    [
        (["batch", 224, 224, 3], TensorProto.FLOAT),
        (["batch", 3, 480, 480], TensorProto.FLOAT),
        (["batch", 480, 480, 3], TensorProto.DOUBLE),
    ],
    ids=["smaller", "channels first", "double"],
)
def test_other_shapes_are_not(
    example: Example, tmp_path: Path, takes: list[str | int], kind: int
) -> None:
    """A model that takes something else is refused by what it takes, and nothing is written."""
    ran = prepare(example, converted(tmp_path / "other.onnx", takes, kind), tmp_path / "build")
    assert ran.returncode == 1
    assert "expected ['float32[n, 480, 480, 3]'] → ['float32[n, 3]'], came" in ran.stderr
    assert not list((tmp_path / "build").rglob("*.onnx"))
