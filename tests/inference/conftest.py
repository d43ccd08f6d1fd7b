"""Fixtures of the inference tests."""

import pytest

from blindai.inference.engine import LoadOptions
from blindai.inference.onnx import OnnxEngine


@pytest.fixture
def load(tmp_path):
    """Load the bytes of an ONNX file as a model on one thread."""

    def load(data: bytes, **options):
        path = tmp_path / "model.onnx"
        path.write_bytes(data)
        return OnnxEngine().load(path, LoadOptions(**({"threads": 1} | options)))

    return load
