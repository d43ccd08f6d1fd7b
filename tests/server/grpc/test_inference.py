"""Requests are read as protobuf reads them, by hand or not, and answers are what protobuf reads."""

import contextlib

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import InvalidInput
from blindai.inference.tensors import DataType, Tensor
from blindai.server.grpc import inference
from blindai.server.grpc.inference import (
    REQUEST,
    build_response,
    encode_varint,
    open_envelope,
    read_call,
    wrap_error,
    wrap_response,
)
from blindai.server.grpc.messages import message_class
from tests.server.grpc.talk import record, request_for

RESPONSE = message_class("inference.ModelInferResponse")
STREAM_RESPONSE = message_class("inference.ModelStreamInferResponse")
BIG = 20_000


def call_of(request, *, time_left=None):
    """Return the call of a request, as the server reads it."""
    return read_call(open_envelope(request.SerializeToString()), time_left)


@pytest.mark.parametrize("elements", [4, BIG])
def test_raw_contents(elements):
    """Raw tensors are read in place, whether protobuf or we took them out."""
    values = np.arange(elements, dtype=np.float32)
    message = request_for(values, id="7").SerializeToString()
    envelope = open_envelope(message)
    assert (envelope.model, envelope.id) == ("m", "7")
    call = read_call(envelope, None)
    assert call.inputs[0].array.tolist() == values.tolist()
    assert call.id == "7"
    if elements == BIG:
        assert envelope.raw[0].obj is message


@given(
    st.lists(st.binary(min_size=0, max_size=30_000), max_size=3),
    st.text(max_size=20),
    st.text(max_size=20),
)
def test_large_requests_by_hand(raw, model, request_id):
    """A request taken apart by hand is the one that protobuf reads."""
    request = REQUEST(model_name=model, id=request_id, raw_input_contents=[*raw, bytes(BIG)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    request.parameters["p"].int64_param = -1
    envelope = open_envelope(request.SerializeToString())
    assert (envelope.model, envelope.id) == (model, request_id)
    assert list(map(bytes, envelope.raw)) == [*raw, bytes(BIG)]
    request.ClearField("raw_input_contents")
    assert envelope.rest == request


def test_large_rest_is_not_read_yet():
    """A request whose other fields are large is taken apart, and the rest left for a thread."""
    request = request_for(np.arange(BIG, dtype=np.float32), id="7")
    request.inputs.add(name="z", datatype="FP32").contents.fp32_contents.extend([0] * 5000)
    envelope = open_envelope(request.SerializeToString())
    assert (envelope.model, envelope.id) == ("m", "7")
    assert envelope.work == request.ByteSize()
    request.ClearField("raw_input_contents")
    assert REQUEST.FromString(b"".join(envelope.rest)) == request


@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes(data, cut):
    """Any bytes are a request or one error, large or small; by hand as by protobuf."""
    raw = b"\x3a" + encode_varint(BIG) + bytes(BIG)
    large = data[:cut] + raw + data[cut:]
    for message in (data, large):
        with contextlib.suppress(InvalidInput):
            read_call(open_envelope(message), None)
    try:
        envelope = open_envelope(large)
    except InvalidInput:
        return
    try:
        expected = REQUEST.FromString(large)
    except DecodeError:
        with pytest.raises(InvalidInput):
            read_call(envelope, None)
        return
    assert list(map(bytes, envelope.raw)) == list(expected.raw_input_contents)
    assert envelope.model == expected.model_name


def test_fields_are_bounded():
    """A message of millions of empty fields is refused, not walked through."""
    with pytest.raises(InvalidInput, match="at most 10000 fields"):
        open_envelope(b"\x0a\x00" * BIG)


@pytest.mark.parametrize("size", [0, 1, 15, 17])
def test_length_of_raw_contents(size):
    """A raw tensor of another length than its shape says is refused."""
    request = request_for(np.zeros(4, np.float32))
    request.raw_input_contents[0] = bytes(size)
    with pytest.raises(InvalidInput, match=f"expected 16 bytes for .* came {size} bytes"):
        call_of(request)


def test_number_of_raw_contents():
    """There is a raw tensor for each input, or for none."""
    request = request_for(np.zeros(4, np.float32))
    request.raw_input_contents.append(b"")
    with pytest.raises(InvalidInput, match="each of 1 inputs, came 2"):
        call_of(request)


@pytest.mark.parametrize(
    ("datatype", "field", "elements"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-32768, 32767]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 65535]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [1.5, float("inf")]),
        ("FP64", "fp64_contents", [1e300, float("-inf")]),
        ("BYTES", "bytes_contents", [b"", b"\xff"]),
    ],
)
def test_typed_contents(datatype, field, elements):
    """Each datatype is read from its field, up to the ends of its range."""
    request = REQUEST(model_name="m")
    entry = request.inputs.add(name="x", datatype=datatype, shape=[2])
    getattr(entry.contents, field).extend(elements)
    (tensor,) = call_of(request).inputs
    assert tensor.datatype is DataType(datatype)
    assert tensor.array.tolist() == elements


@pytest.mark.parametrize(
    ("datatype", "field", "elements", "what"),
    [
        ("INT8", "int_contents", [128, 0], "expected -128 to 127"),
        ("UINT16", "uint_contents", [65536, 0], "expected 0 to 65535"),
        ("FP32", "fp64_contents", [1.0, 2.0], "in fp32_contents, came fp64_contents"),
        ("FP16", "fp32_contents", [1.0, 2.0], "expected FP16 in raw_input_contents"),
        ("FP32", "fp32_contents", [1.0], "expected 8 bytes"),
        ("INT64", "int64_contents", [1], "expected 2 elements"),
        ("FLOAT", "fp32_contents", [1.0, 2.0], "expected a datatype of"),
    ],
)
def test_bad_typed_contents(datatype, field, elements, what):
    """What does not fit is refused, and never cut to fit."""
    request = REQUEST(model_name="m")
    entry = request.inputs.add(name="x", datatype=datatype, shape=[2])
    getattr(entry.contents, field).extend(elements)
    with pytest.raises(InvalidInput, match=what):
        call_of(request)


def test_both_contents():
    """An input comes in one way."""
    request = request_for(np.zeros(1, np.float32))
    request.inputs[0].contents.fp32_contents.append(0)
    with pytest.raises(InvalidInput, match="came both"):
        call_of(request)


@pytest.mark.parametrize(
    ("said", "left", "expected"),
    [(0, None, None), (2_000_000, None, 2.0), (2_000_000, 1.0, 1.0), (500_000, 1.0, 0.5)],
)
def test_time(said, left, expected):
    """The shorter of the parameter's time and the RPC's counts."""
    request = request_for(np.zeros(1, np.float32))
    request.parameters["timeout"].int64_param = said
    assert call_of(request, time_left=left).timeout == expected


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda r: setattr(r, "model_version", "2"), "expected version '1'"),
        (lambda r: r.outputs.extend([r.InferRequestedOutputTensor(name="y")] * 2), "name once"),
        (lambda r: setattr(r.parameters["timeout"], "string_param", "1"), "microseconds"),
        (lambda r: setattr(r.parameters["sequence_start"], "bool_param", True), "sequence_id"),
        (
            lambda r: setattr(r.inputs[0].parameters["shared_memory_region"], "string_param", "r"),
            "shared memory",
        ),
        (lambda r: setattr(r, "id", "x" * 2000), "id: expected at most"),
    ],
)
def test_what_rest_refuses(change, what):
    """What REST refuses in a request is refused here in the same words."""
    request = request_for(np.zeros(1, np.float32))
    change(request)
    with pytest.raises(InvalidInput, match=what):
        call_of(request)


def test_response():
    """An answer made by hand is one that protobuf reads; elements are not copied."""
    call = call_of(request_for(np.zeros(1, np.float32), id="i"))
    array = np.arange(BIG, dtype=np.float32)
    outputs = [
        Tensor("y", array, DataType.FP32),
        Tensor("empty", np.empty((0, 3), np.int64), DataType.INT64),
    ]
    parts = build_response(call, "m", record(), outputs)
    assert any(isinstance(part, memoryview) and part.nbytes == array.nbytes for part in parts)
    response = RESPONSE.FromString(b"".join(parts))
    assert (response.model_name, response.model_version, response.id) == ("m", "1", "i")
    assert response.parameters["sha256"].string_param == record().sha256
    assert [(o.name, o.datatype, list(o.shape)) for o in response.outputs] == [
        ("y", "FP32", [BIG]),
        ("empty", "INT64", [0, 3]),
    ]
    assert list(response.raw_output_contents) == [array.tobytes(), b""]


def test_classified_response():
    """An output's highest classes are returned where they are asked for."""
    request = request_for(np.zeros(1, np.float32))
    wish = request.outputs.add(name="y")
    wish.parameters["classification"].int64_param = 1
    tensor = Tensor("y", np.array([1.0, 3.0, 2.0], np.float32), DataType.FP32)
    parts = build_response(call_of(request), "m", record(), [tensor])
    response = RESPONSE.FromString(b"".join(parts))
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("BYTES", [1])
    assert response.raw_output_contents[0] == b"\x05\0\0\x003.0:1"


def test_response_of_a_stream():
    """A stream's answer is an answer with a mark that it is the last; an error has the id."""
    call = call_of(request_for(np.zeros(1, np.float32), id="i"))
    tensor = Tensor("y", np.zeros(1, np.float32), DataType.FP32)
    parts = build_response(call, "m", record(), [tensor])
    wrapped = STREAM_RESPONSE.FromString(b"".join(wrap_response(parts)))
    assert wrapped.infer_response.raw_output_contents == [bytes(4)]
    assert wrapped.infer_response.parameters["triton_final_response"].bool_param
    assert wrapped.infer_response.parameters["sha256"].string_param == record().sha256
    failed = STREAM_RESPONSE.FromString(b"".join(wrap_error("i", "why")))
    assert (failed.error_message, failed.infer_response.id) == ("why", "i")


@given(st.integers(0, 2**63))
def test_varints(number):
    """A number that we write is the number that we read."""
    encoded = encode_varint(number)
    assert inference._varint(memoryview(encoded), 0) == (number, len(encoded))
