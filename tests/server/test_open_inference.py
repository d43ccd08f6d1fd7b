"""The Open Inference Protocol's forms, read strictly and written exactly."""

import json
from contextlib import suppress
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blindai.errors import InvalidInput
from blindai.inference.records import ModelRecord
from blindai.inference.tensors import DataType, Tensor, TensorSpec
from blindai.server.open_inference import (
    InferenceCall,
    build_answer,
    describe_specs,
    parse_request,
)

RECORD = ModelRecord(("m",), "ab" * 32, 1, (), (), "engine 1", datetime(2026, 1, 1, tzinfo=UTC))


def entry(**changes):
    return {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]} | changes


def document(*entries, **more) -> bytes:
    return json.dumps({"inputs": list(entries), **more}).encode()


def call(**changes) -> InferenceCall:
    fields = {
        "inputs": (),
        "outputs": (),
        "timeout": None,
        "id": None,
        "binary_default": False,
        "binary": {},
    }
    return InferenceCall(**(fields | changes))


def test_json_and_binary_in_one_request():
    """Inputs take their binary parts in order, on the memory of the body."""
    a, b = np.array([1, 2], np.float32), np.array([[7]], np.int64)
    header = document(
        entry(data=[5, 6], name="j"),
        {"name": "a", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}},
        {"name": "b", "datatype": "INT64", "shape": [1, 1], "parameters": {"binary_data_size": 8}},
    )
    body = bytearray(header + a.tobytes() + b.tobytes())
    parsed = parse_request(memoryview(body), len(header))
    assert [t.name for t in parsed.inputs] == ["j", "a", "b"]
    assert parsed.inputs[1].array.tolist() == [1, 2]
    assert parsed.inputs[2].array.tolist() == [[7]]
    assert np.shares_memory(parsed.inputs[1].array, np.frombuffer(body, np.uint8))


def test_what_else_is_asked_for():
    """Outputs, their form, the deadline and the id are read."""
    wishes = [{"name": "y", "parameters": {"binary_data": True}}, {"name": "z"}]
    body = document(entry(), outputs=wishes, id="7", parameters={"timeout": 1500})
    parsed = parse_request(body, None)
    assert parsed.outputs == ("y", "z")
    assert parsed.binary == {"y": True}
    assert not parsed.binary_default
    assert parsed.timeout == 0.0015
    assert parsed.id == "7"


def test_priority():
    """The default is the highest, as 1 is; more lets others go first, and nobody overtakes."""
    for value, expected in [(0, 0), (1, 0), (2, -1), (61, -60), (10**9, -60), (2**64 - 1, -60)]:
        parsed = parse_request(document(entry(), parameters={"priority": value}), None)
        assert parsed.priority == expected


def test_classes():
    """Classes are asked for by output; none are 0."""
    wishes = [
        {"name": "y", "parameters": {"classification": 3}},
        {"name": "z", "parameters": {"classification": 0}},
    ]
    assert parse_request(document(entry(), outputs=wishes), None).classes == {"y": 3}


def test_unknown_parameters_change_nothing():
    """Parameters that nobody here knows are for somebody else."""
    known = parse_request(document(entry(data=[1, 2])), None)
    more = {"content_type": "np", "sequence_id": 0, "x": {"y": [1]}}
    body = document(
        entry(data=[1, 2], parameters={"quality": 1}), parameters=more, unknown=[1, {"a": 2}]
    )
    parsed = parse_request(body, None)
    assert parsed.inputs[0].array.tolist() == known.inputs[0].array.tolist()
    assert (parsed.outputs, parsed.timeout, parsed.id) == (known.outputs, known.timeout, known.id)


def test_no_timeout():
    """A timeout of 0 is none, and one that no float holds is a very long one."""
    assert parse_request(document(entry(), parameters={"timeout": 0}), None).timeout is None
    huge = document(entry(), parameters={"timeout": 10**400})
    assert parse_request(huge, None).timeout == 10**9


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff\xfe",
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[NaN]}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1e999]}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[Infinity]}]}',
        document(entry(shape=[-1])),
        document(entry(shape=[2**63])),
        document(entry(shape=[2**63, 0], data=[])),
        document(entry(shape=[2.0])),
        document(entry(shape=[True])),
        document(entry(shape="2")),
        document(entry(datatype="fp32")),
        document(entry(datatype="COMPLEX")),
        document(entry(datatype="INT64", data=[10**30, 1])),
        document(entry(datatype="INT64", data=[1.5, 1])),
        document(entry(data=[[1], [2]])),
        document(entry(data=[1])),
        document({"name": "x", "datatype": "FP32", "shape": [2]}),
        document(entry(parameters={"binary_data_size": 8})),
        document({**entry(), "data": [1, 2], "parameters": {"binary_data_size": 0}}),
        document(entry(), parameters={"timeout": -1}),
        document(entry(), parameters={"timeout": "5"}),
        document(entry(), parameters={"binary_data_output": 1}),
        document(entry(), outputs=[{"name": "y", "parameters": {"binary_data": "yes"}}]),
        document(entry(), id="x" * 2000),
        document(entry(), outputs=[{"name": "y"}, {"name": "y"}]),
        document(entry(), outputs=[{"name": "y", "parameters": {"classification": -1}}]),
        document(entry(), outputs=[{"name": "y", "parameters": {"classification": "3"}}]),
        document(entry(), outputs=[{"name": "y", "parameters": {"shared_memory_region": "r"}}]),
        document(entry(parameters={"shared_memory_region": "r"})),
        document(entry(), parameters={"sequence_id": -7}),
        document(entry(), parameters={"sequence_id": True}),
        document(entry(), parameters={"sequence_id": "s" * 129}),
        document(entry(), parameters={"sequence_start": True}),
        document(entry(), parameters={"sequence_id": 7, "sequence_end": 1}),
        document(entry(), parameters={"sequence_id": 7, "sequence_start": True}),
        document(entry(), parameters={"sequence_id": 7, "sequence_state": {"x": "y"}}),
        document(entry(), parameters={"sequence_id": 7, "sequence_step": -1}),
        document(entry(), parameters={"sequence_id": 7, "sequence_step": True}),
        document(entry(), parameters={"sequence_id": 7, "receipt": True}),
        document(entry(), parameters={"priority": -1}),
        document(entry(), parameters={"priority": True}),
        document(entry(), parameters={"priority": 2**64}),
        b'{"inputs":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"inputs":[],"unknown":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    ],
)
def test_refused(body):
    """What the protocol does not allow is InvalidInput, whatever it is."""
    with pytest.raises(InvalidInput):
        parse_request(body, None)


@pytest.mark.parametrize("size", [-1, 9, 7, 2**63, 1.0, True, "8", [8]])
def test_binary_sizes_that_do_not_fit(size):
    """A binary size is what the datatype and the shape say, and what came."""
    part = {
        "name": "x",
        "datatype": "FP32",
        "shape": [2],
        "parameters": {"binary_data_size": size},
    }
    header = document(part)
    with pytest.raises(InvalidInput):
        parse_request(header + bytes(8), len(header))


@pytest.mark.parametrize("length", [0, -1, 10_000])
def test_header_length_out_of_the_body(length):
    """The JSON header is inside the body, and there is one."""
    with pytest.raises(InvalidInput):
        parse_request(document(entry()), length)


def test_left_over_binary_data():
    """Binary data that no input takes is refused."""
    header = document(entry())
    with pytest.raises(InvalidInput, match="expected 0 bytes of binary data, came 3"):
        parse_request(header + b"abc", len(header))


def test_errors_have_no_data():
    """A refusal names the input and where, never a value that was sent."""
    for body in (
        document(entry(data=["secret-value", 2])),
        document(entry(datatype="secret-value")),
        b'{"inputs": "secret-value"}',
        b'{"inputs": [{"name": "x", "data": "secret-value\xff"}]}',
    ):
        with pytest.raises(InvalidInput) as caught:
            parse_request(body, None)
        assert "secret-value" not in str(caught.value)


def test_answer_in_the_form_asked_for():
    """Each output is binary or JSON as asked for it, else as asked for all."""
    outputs = [
        Tensor("a", np.arange(2000, dtype=np.float32), DataType.FP32),
        Tensor("b", np.array([3], np.int64), DataType.INT64),
    ]
    answer = build_answer(call(binary_default=True, binary={"b": False}), "m", RECORD, outputs)
    header, data = answer.parts
    assert len(header) == answer.header_length
    assert json.loads(header)["outputs"] == [
        {
            "name": "a",
            "datatype": "FP32",
            "shape": [2000],
            "parameters": {"binary_data_size": 8000},
        },
        {"name": "b", "datatype": "INT64", "shape": [1], "data": [3]},
    ]
    assert np.shares_memory(np.frombuffer(data, np.uint8), outputs[0].array)
    assert build_answer(call(), "m", RECORD, outputs).header_length is None


def test_nan_has_no_form_in_json():
    """An output with NaN can only be sent as binary data, and the error says so."""
    outputs = [Tensor("a", np.array([np.nan], np.float32), DataType.FP32)]
    with pytest.raises(InvalidInput, match="binary"):
        build_answer(call(), "m", RECORD, outputs)


def test_specs_in_the_protocols_form():
    """Symbols and unknown dimensions are -1."""
    spec = TensorSpec("x", DataType.INT8, ("n", None, 3))
    assert describe_specs([spec]) == [{"name": "x", "datatype": "INT8", "shape": (-1, -1, 3)}]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
mutated = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.lists(
            st.fixed_dictionaries(
                {"name": st.just("x") | values},
                optional={
                    "datatype": st.sampled_from(DataType) | values,
                    "shape": st.lists(st.integers(-1, 3), max_size=3) | values,
                    "data": st.lists(st.integers(-300, 300), max_size=3) | values,
                    "parameters": st.fixed_dictionaries(
                        {}, optional={"binary_data_size": st.integers(-1, 20) | values}
                    )
                    | values,
                },
            ),
            max_size=2,
        )
        | values,
        "outputs": values,
        "id": values,
        "parameters": st.fixed_dictionaries({}, optional={"timeout": values}) | values,
    },
)


@given(st.binary(max_size=200), st.none() | st.integers(-2, 210))
@example(b"\xed\xa0\x80", None)
@example(b'"\\ud800"', None)
def test_any_bytes(body, length):
    """Any bytes give a call or InvalidInput."""
    with suppress(InvalidInput):
        assert isinstance(parse_request(body, length), InferenceCall)


@given(mutated, st.binary(max_size=20), st.booleans())
def test_any_document(document, binary, has_header):
    """Any JSON in about the right form gives a call or InvalidInput."""
    header = json.dumps(document).encode()
    with suppress(InvalidInput):
        parsed = parse_request(header + binary, len(header) if has_header else None)
        assert [t.name for t in parsed.inputs] == [e["name"] for e in document["inputs"]]
