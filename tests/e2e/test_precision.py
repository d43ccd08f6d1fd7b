"""From the SDK to the receipt: which engine and precision answered is said everywhere."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

import blindai
from blindai.testing.server import start_server
from tests.inference.test_forms import WIDE, mlp

X = {"x": np.ones((1, WIDE), np.float32)}


@pytest.fixture(scope="module")
def server():
    with start_server(config={"max_batch": 4}) as running:
        yield running


@pytest.fixture
def client(server):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", blindai.SimulationWarning)
        with blindai.connect(server.address, simulation=True, token=server.token) as connected:
            yield connected


def test_precision_is_told(client):
    """At the upload, in the list, and in the receipt."""
    info = client.upload_model(mlp(), name="small", precision="int8", max_batch=2, receipt=True)
    assert info.precision == "int8"
    assert 0 < info.deviation < 0.1
    listed = next(each for each in client.models() if each.name == "small")
    assert (listed.precision, listed.deviation) == ("int8", info.deviation)
    result = client.run_model("small", X, receipt=True)
    policy = blindai.Policy.simulation()
    for file in (info.receipt, result.receipt):
        stated = blindai.verify_receipt(file, policy).statement
        assert stated.model_form == "onnx.int8"
        assert stated.model_sha256.hex() == info.sha256
    exact = client.upload_model(mlp(), name="exact")
    assert (exact.precision, exact.deviation) == ("fp32", None)
    outputs = client.run_model("exact", X, receipt=True)
    stated = blindai.verify_receipt(outputs.receipt, policy).statement
    assert stated.model_form == "onnx.fp32"
    np.testing.assert_allclose(result[0], outputs[0], atol=0.1)


def test_pinned_weights_in_their_form(server, client):
    """A policy that pins a file reaches the form that the name stands for, and no other."""
    sha256 = client.upload_model(mlp(layers=2), name="pinned", precision="int8").sha256
    pins = {"pinned": frozenset({bytes.fromhex(sha256)})}
    policy = replace(blindai.Policy.simulation(), models=pins)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", blindai.SimulationWarning)
        with blindai.connect(server.address, policy=policy) as pinned:
            small = pinned.run_model("pinned", X, receipt=True)
            client.upload_model(mlp(layers=2), name="other")
            again = pinned.run_model("pinned", X, receipt=True)
    for result in (small, again):
        stated = blindai.verify_receipt(result.receipt, policy).statement
        assert stated.model_form == "onnx.int8"
    exact = client.run_model("other", X)
    assert np.array_equal(small[0], again[0])
    assert not np.array_equal(small[0], exact[0])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"precision": "int4"}, "expected one of fp32, bf16, int8, auto"),
        ({"max_batch": 5}, "expected at most 4"),
        ({"engine": "onnx", "precision": "bf16"}, "no engine"),
    ],
)
def test_refused_before_a_byte_of_the_model(client, options, says):
    """What cannot be is refused at once, and by name."""
    with pytest.raises(blindai.InvalidInput, match=says):
        client.upload_model(mlp(), name="never", **options)
    assert "never" not in [each.name for each in client.models()]
