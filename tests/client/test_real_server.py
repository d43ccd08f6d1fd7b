"""Both clients against the real server."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import blindai
from blindai.testing.server import start_server

ROW = np.array([[1, 2]], np.float32)


def double(name="y"):
    """Return an ONNX model that adds its input to itself."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    y = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2])
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], [name])], "double", [x], [y])
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()


@pytest.fixture
def real():
    """Return a running server with one model."""
    with start_server(models={"double": double()}) as running:
        yield running


def test_the_life_of_a_model(connect, real):
    """Upload, list, describe, run, replace, run again, delete."""
    client = connect(real.address, token=real.token)
    first = client.upload_model(double(), "mine")
    assert [model.name for model in client.models()] == ["double", "mine"]
    assert client.model("mine").sha256 == client.model(first.sha256).sha256 == first.sha256
    result = client.run_model("mine", {"x": ROW})
    np.testing.assert_array_equal(result["y"], ROW * 2)
    assert result.model_sha256 == first.sha256
    with pytest.raises(blindai.ModelConflict):
        client.upload_model(double("z"), "mine")
    second = client.upload_model(double("z"), "mine", replace=True)
    assert client.run_model("mine", ROW, outputs=["z"]).model_sha256 == second.sha256
    client.delete_model("mine")
    with pytest.raises(blindai.ModelNotFound):
        client.run_model("mine", ROW)


def test_refusals(connect, real):
    """The server's own errors arrive as their classes."""
    client = connect(real.address)
    with pytest.raises(blindai.AccessDenied):
        client.upload_model(bytes(8 << 20), "mine")
    with pytest.raises(blindai.InvalidModel):
        client.upload_model(b"no model", "mine", token=real.token)
    with pytest.raises(blindai.ModelNotFound):
        client.delete_model("mine", token=real.token)


def test_restart(connect, real):
    """A restarted server, with new keys on the same port, is verified again and used."""
    client = connect(real.address)
    before = client.attestation.keyset_digest
    client.run_model("double", ROW)
    real.restart()
    np.testing.assert_array_equal(client.run_model("double", ROW)["y"], ROW * 2)
    assert client.attestation.keyset_digest != before


def test_the_unattested_port_is_recognised(connect, real):
    """Connecting to the plain HTTP port says what it probably is."""
    with pytest.raises(blindai.ConnectionFailed, match="unattested port"):
        connect(real.public_address)
