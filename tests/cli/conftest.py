"""The command line as a user runs it, against a real server."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import numpy as np
import pytest
from onnx import TensorProto, helper

from blindai.cli import main
from blindai.testing import start_server


@dataclass
class Finished:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def blindai_command(*arguments):
    """Run `blindai` with `arguments` in this process, as a start takes a second."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return Finished(ended.value.code, out.getvalue(), err.getvalue())


def tiny_model():
    """Return the ONNX bytes of y = x + x for float32 [batch, 4]."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "tiny", [x], [y])
    opset = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


@pytest.fixture
def blindai():
    return blindai_command


@pytest.fixture(scope="module")
def server():
    with start_server(models={"tiny": tiny_model()}) as running:
        yield running


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_model())
    return path


@pytest.fixture
def input_file(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.array([[1, 2, 3, 4]], np.float32))
    return path
