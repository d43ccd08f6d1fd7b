"""What a run returns, and how answers become it."""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import types

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.client import answers
from blindai.client.answers import check_status, parse_model, parse_result
from blindai.client.http1 import Head
from blindai.client.messages import Response, infer_request, receive_buffer
from blindai.client.results import Result
from blindai.errors import BlindAIError, ConfigurationError, InferenceError
from blindai.inference.tensors import from_array

SHA = "ab" * 32


def result(**arrays):
    tensors = [from_array(name, array) for name, array in arrays.items()]
    return Result(tensors, model="m", model_sha256=SHA)


def answer(header, data=b"", *, length=None, pad=b""):
    encoded = json.dumps(header).encode() + pad
    said = str(len(encoded) if length is None else length)
    return Response(
        200, {"inference-header-content-length": said}, memoryview(bytearray(encoded + data))
    )


def inferred(*outputs):
    return {"model_name": "m", "parameters": {"sha256": SHA}, "outputs": list(outputs)}


def output(name, datatype, shape, size):
    parameters = {"binary_data_size": size}
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters}


def test_reads_like_a_dict_a_sequence_and_an_object():
    """By name, by position, by attribute; iteration is over names."""
    found = result(a=np.zeros((2, 3), np.float32), b=np.array([b"x"], object))
    assert found["a"] is found[0] is found.a
    assert found[-1] is found["b"]
    assert (list(found), len(found), "b" in found) == (["a", "b"], 2, True)
    assert list(found.as_numpy()) == ["a", "b"]
    assert "a" in dir(found)
    assert found.keys() == {"a", "b"}


def test_says_which_outputs_there_are():
    """A wrong name or position names the right ones."""
    found = result(a=np.zeros(1))
    with pytest.raises(KeyError, match="the result has a"):
        found["z"]
    with pytest.raises(IndexError, match="has 1"):
        found[1]
    with pytest.raises(AttributeError, match="the result has a"):
        _ = found.z


def test_shows_shapes_and_never_values():
    """A repr ends up in logs and notebooks: it shows what came, not what it says."""
    shown = repr(result(secret=np.array([[123456789]], np.int64)))
    assert "secret: INT64[1, 1]" in shown
    assert "123456789" not in shown


def test_survives_a_copy_and_is_equal_to_itself_only():
    """Copying does not recurse, and comparing does not compare arrays."""
    found = result(a=np.ones(3))
    assert copy.copy(found)["a"] is found["a"]
    assert found == found  # noqa: PLR0124 - the point of it
    assert found != result(a=np.ones(3))


def test_torch_is_no_dependency(monkeypatch):
    """Without torch, as_torch() says what to do."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigurationError, match="as_numpy"):
        result(a=np.ones(3)).as_torch()


def test_torch_gets_the_same_memory_and_bfloat16_its_bits(monkeypatch):
    """Arrays are handed to torch.from_numpy; bfloat16 and float8 as integers seen anew."""

    class FakeTensor:
        def __init__(self, array, dtype=None):
            self.array, self.dtype = array, dtype

        def view(self, dtype):
            return FakeTensor(self.array, dtype)

    def from_numpy(array):
        if array.dtype not in {np.dtype("f4"), np.dtype("i2"), np.dtype("u1")}:
            raise TypeError
        return FakeTensor(array)

    fake = types.SimpleNamespace(
        from_numpy=from_numpy, bfloat16="bfloat16", float8_e5m2="float8_e5m2"
    )
    monkeypatch.setitem(sys.modules, "torch", fake)
    half = np.array([1.5, -2], ml_dtypes.bfloat16)
    eighth = half.astype(ml_dtypes.float8_e5m2)
    found = result(a=np.ones(3, np.float32), h=half, e=eighth)
    tensors = found.as_torch()
    assert tensors["a"].array is found["a"]
    assert tensors["h"].dtype == "bfloat16"
    assert tensors["h"].array.tobytes() == half.tobytes()
    assert tensors["e"].dtype == "float8_e5m2"
    assert tensors["e"].array.tobytes() == eighth.tobytes()
    for missing in (ml_dtypes.float8_e4m3fn, ml_dtypes.int4):
        with pytest.raises(ConfigurationError, match="this torch has no"):
            result(m=np.ones(1).astype(missing)).as_torch()
    with pytest.raises(ConfigurationError, match="no strings"):
        result(s=["text"]).as_torch()
    with pytest.raises(ConfigurationError, match="no UINT64"):
        result(u=np.ones(1, np.uint64)).as_torch()


def test_real_torch_agrees():
    """Where torch is installed, values and bfloat16 come out the same."""
    torch = pytest.importorskip("torch", reason="torch is no dependency")
    half = np.array([1.5, -2], ml_dtypes.bfloat16)
    tensors = result(a=np.arange(3, dtype=np.int64), h=half).as_torch()
    assert tensors["a"].tolist() == [0, 1, 2]
    assert tensors["h"].dtype == torch.bfloat16
    assert tensors["h"].tolist() == [1.5, -2]


def test_tensors_of_an_answer_are_views_of_it():
    """Outputs lie one after another behind the JSON, and are not copied where aligned."""
    data = np.arange(4, dtype="<f4").tobytes() + b"\x03\0\0\0abc"
    header = inferred(output("a", "FP32", [2, 2], 16), output("s", "BYTES", [1], 7))
    encoded = json.dumps(header).encode()
    response = answer(header, data, pad=b" " * (-len(encoded) % 64))
    found = parse_result(response)
    assert found["a"].tolist() == [[0, 1], [2, 3]]
    assert found["s"].tolist() == [b"abc"]
    assert (found.model, found.model_sha256) == ("m", SHA)


def test_misaligned_tensors_are_aligned():
    """What lies at an odd address is copied: torch and SIMD want it aligned."""
    data = b"\x01" + np.arange(3, dtype="<f8").tobytes()
    found = parse_result(
        answer(inferred(output("b", "BOOL", [1], 1), output("d", "FP64", [3], 24)), data)
    )
    assert found["d"].flags.aligned
    assert found["d"].tolist() == [0, 1, 2]


def test_bodies_are_placed_so_that_tensors_align():
    """Memory for an answer starts where its tensors end up at a multiple of 64."""
    head = Head(200, {"inference-header-content-length": "101"}, keep_alive=True)
    body = receive_buffer(head, 101 + 64)
    address = np.frombuffer(body, np.uint8).ctypes.data
    start = np.frombuffer(body.obj, np.uint8).ctypes.data
    assert (address + 101 - start) % 64 == 0


def test_json_outputs_are_read_too():
    """A server that answers without binary data is understood."""
    header = inferred({"name": "a", "datatype": "INT64", "shape": [2], "data": [1, 2]})
    response = Response(200, {}, memoryview(json.dumps(header).encode()))
    assert parse_result(response)["a"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "response",
    [
        answer(inferred(output("a", "FP32", [1], 4)), b"\0\0\0"),
        answer(inferred(output("a", "FP32", [1], 4)), b"\0\0\0\0\0"),
        answer(inferred(output("a", "FP32", [2], 4)), b"\0\0\0\0"),
        answer(inferred(output("a", "FP32", [-1], 4)), b"\0\0\0\0"),
        answer(inferred(output("a", "FP99", [1], 4)), b"\0\0\0\0"),
        answer(inferred(output("a", "FP32", [1], -4)), b"\0\0\0\0"),
        answer(inferred(), length=10**9),
        answer(inferred(), length="x"),
        answer({"model_name": "m", "outputs": []}),
        answer({**inferred(), "parameters": {"sha256": "short"}}),
    ],
)
def test_malformed_results(response):
    """Whatever is wrong with an answer is an InferenceError that says so."""
    with pytest.raises(InferenceError, match="malformed"):
        parse_result(response)


@given(st.binary(max_size=300), st.sampled_from(["", "0", "5", "2", "99999"]))
def test_any_answer_gives_a_value_or_inference_error(data, length):
    """Any bytes give a result or model, or InferenceError and nothing else."""
    headers = {"inference-header-content-length": length} if length else {}
    response = Response(200, headers, memoryview(bytearray(data)))
    for parse in (parse_result, parse_model):
        try:
            parse(response)
        except InferenceError:
            continue


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["name", "shape", "outputs", "sha256"]), inner)
        ),
        max_leaves=8,
    ),
    st.binary(max_size=20),
)
def test_any_json_gives_a_value_or_inference_error(value, data):
    """JSON of any shape in the place of an output is read or refused."""
    header = inferred(output("a", "FP32", [1], 4))
    header["outputs"][0]["shape"] = value
    with contextlib.suppress(InferenceError):
        parse_result(answer(header, data))


@given(st.integers(300, 599), st.binary(max_size=100))
def test_any_error_answer_raises_an_error_of_ours(status, data):
    """Whatever a failed answer holds, the error is one of BlindAI's."""
    with pytest.raises(BlindAIError):
        check_status(Response(status, {}, memoryview(data)))


def test_requests_carry_tensors_without_copies():
    """A large contiguous array is sent from its own memory, at an aligned place."""
    array = np.arange(10_000, dtype=np.float32)
    request = infer_request("m", [from_array("x", array)], {}, outputs=None, timeout=None)
    header, data = request.body
    assert len(header) % 64 == 0
    assert np.shares_memory(np.frombuffer(data, np.uint8), array)


def test_data_in_an_answer_is_not_remembered():
    """Descriptions are kept for the next answer, elements never: the second answer has its own."""

    def answer(value: float) -> Response:
        output = {"name": "y", "datatype": "FP32", "shape": [1], "data": [value]}
        header = {"model_name": "m", "parameters": {"sha256": "a" * 64}, "outputs": [output]}
        return Response(200, {}, memoryview(json.dumps(header).encode()))

    before = answers._known_layout.cache_info().currsize
    assert [parse_result(answer(value))["y"].tolist() for value in (1, 2)] == [[1], [2]]
    assert answers._known_layout.cache_info().currsize == before


def test_empty_outputs_at_the_end():
    """Outputs without elements take no bytes, wherever they stand."""
    found = parse_result(
        answer(inferred(output("a", "FP32", [1], 4), output("b", "FP32", [0, 3], 0)), bytes(4))
    )
    assert (found["a"].shape, found["b"].shape) == ((1,), (0, 3))


def test_answers_of_one_description_keep_their_own_data():
    """What is remembered of an answer is its description: each result has the bytes that came."""
    header = inferred(output("y", "FP32", [2], 8))
    found = [parse_result(answer(header, np.float32([value] * 2).tobytes())) for value in (1, 2)]
    assert [result["y"].tolist() for result in found] == [[1, 1], [2, 2]]
    found[0]["y"][:] = 9
    assert found[1]["y"].tolist() == [2, 2]
