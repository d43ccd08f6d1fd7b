"""The wire forms of tensors, binary and JSON."""

import json
import math
import struct
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import InvalidInput
from blindai.inference.tensors import (
    DataType,
    Tensor,
    TensorSpec,
    from_array,
    from_buffer,
    from_json_data,
    to_bytes,
    to_json_data,
)

NUMBERS = [datatype for datatype in DataType if datatype is not DataType.BYTES]
INTEGERS = [datatype for datatype in DataType if datatype.is_integer]
FLOATS = [datatype for datatype in DataType if datatype.is_float]
datatypes = st.sampled_from(list(DataType))
shapes = st.lists(st.integers(0, 4), max_size=4)


def strings(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


@pytest.mark.parametrize("datatype", [d for d in NUMBERS if not d.is_packed])
def test_binary_form_is_read_and_written_without_a_copy(datatype):
    """The array lies in the buffer, and the written form of a large one in the array."""
    buffer = bytes(6000 * datatype.bits // 8)
    tensor = from_buffer("x", datatype, [2, 3000], buffer)
    assert tensor.shape == (2, 3000)
    assert np.shares_memory(tensor.array.view(np.uint8), np.frombuffer(buffer, np.uint8))
    written = to_bytes(tensor)
    assert written == buffer
    assert np.shares_memory(np.frombuffer(written, np.uint8), np.frombuffer(buffer, np.uint8))


def test_binary_form_is_little_endian_and_row_major():
    """The protocol's byte order, whatever the array's strides."""
    array = np.arange(6, dtype=np.int32).reshape(2, 3).T
    written = bytes(to_bytes(from_array("x", array)))
    assert written == struct.pack("<6i", 0, 3, 1, 4, 2, 5)


@pytest.mark.parametrize(
    ("datatype", "elements", "packed"),
    [
        (DataType.INT4, [1, -2, 7], "e107"),
        (DataType.UINT4, [1, 2, 15, 0], "210f"),
        (DataType.INT2, [1, -2, 0, -1, 1], "c901"),
        (DataType.UINT2, [0, 1, 2, 3], "e4"),
        (DataType.FP4E2M1, [0.5, -6.0, 1.0], "f102"),
    ],
)
def test_narrow_elements_are_packed_from_the_low_bits_up(datatype, elements, packed):
    """Whatever lies in the upper bits of an array's bytes, or its strides."""
    tensor = from_array("x", elements, TensorSpec("x", datatype, None))
    assert bytes(to_bytes(tensor)).hex() == packed
    again = from_buffer("x", datatype, tensor.shape, bytes.fromhex(packed))
    assert again.array.tolist() == elements
    dirty = (tensor.array.view(np.uint8) | 0xF0).view(datatype.numpy)
    assert bytes(to_bytes(Tensor("x", dirty, datatype))).hex() == packed
    strided = np.repeat(tensor.array, 2)[::2]
    assert bytes(to_bytes(Tensor("x", strided, datatype))).hex() == packed


@pytest.mark.parametrize(
    ("datatype", "count", "packed"),
    [(DataType.INT4, 1, "10"), (DataType.UINT2, 3, "40"), (DataType.INT2, 5, "0004")],
)
def test_bits_after_the_last_element_are_refused(datatype, count, packed):
    """Else one tensor had several binary forms, and several digests."""
    with pytest.raises(InvalidInput, match="x: expected zero bits after the last"):
        from_buffer("x", datatype, [count], bytes.fromhex(packed))


def test_an_unaligned_buffer_is_read():
    """Tensors follow a JSON header of any length."""
    message = b"{}\n" + struct.pack("<2f", 1.5, -2.0)
    tensor = from_buffer("x", DataType.FP32, [2], memoryview(message)[3:])
    assert tensor.array.tolist() == [1.5, -2.0]


@pytest.mark.parametrize("datatype", NUMBERS)
@pytest.mark.parametrize("error", [-1, 1])
def test_a_buffer_of_another_size_is_refused(datatype, error):
    """One byte too few or too many is too few or too many."""
    with pytest.raises(InvalidInput, match=r"x: expected \d+ bytes for"):
        from_buffer("x", datatype, [2, 2], bytes(4 * datatype.bits // 8 + error))


@pytest.mark.parametrize(
    "shape",
    [
        [-1],
        [2**63],
        [2**32, 2**32],
        [0, 2**63],
        [0, 2**31, 2**31],
        [2**62] * 30,
        [1] * 33,
        [True],
        [1.0],
        ["1"],
        [None],
    ],
)
@pytest.mark.parametrize("datatype", [DataType.FP32, DataType.BYTES])
def test_impossible_dimensions_are_refused(shape, datatype):
    """Whatever a peer says, numpy is never asked for an impossible array."""
    with pytest.raises(InvalidInput, match="x: expected"):
        from_buffer("x", datatype, shape, b"")
    with pytest.raises(InvalidInput, match="x: expected"):
        from_json_data("x", datatype, shape, [])


@pytest.mark.parametrize("datatype", DataType)
def test_scalars_and_empty_tensors_are_tensors(datatype):
    """Rank 0 has one element; a dimension of 0 has none."""
    empty = from_buffer("x", datatype, [0, 3], b"")
    assert empty.shape == (0, 3)
    assert to_bytes(empty) == b""
    one = strings(b"a") if datatype is DataType.BYTES else bytes(-(-datatype.bits // 8))
    scalar = from_buffer("x", datatype, [], one)
    assert scalar.shape == ()
    assert bytes(to_bytes(scalar)) == one


def test_a_bool_is_zero_or_one():
    """Other bytes would be undefined behaviour in the engine."""
    assert from_buffer("x", DataType.BOOL, [2], b"\0\1").array.tolist() == [False, True]
    with pytest.raises(InvalidInput, match="bytes of 0 or 1"):
        from_buffer("x", DataType.BOOL, [2], b"\1\2")


def test_bytes_elements_are_bytes():
    """Text and other bytes alike, with their lengths before them."""
    encoded = strings(b"", "é".encode(), b"\xff\x00")
    tensor = from_buffer("x", DataType.BYTES, [3], encoded)
    assert tensor.array.tolist() == [b"", "é".encode(), b"\xff\x00"]
    assert to_bytes(tensor) == encoded


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\0\0\0",
        strings(b"ab"),
        strings(b"ab", b"cd")[:-1],
        strings(b"ab") + b"\0\0",
        strings(b"ab", b"cd") + b"\0",
        strings(b"ab", b"cd", b""),
        strings(b"ab") + b"\xff\xff\xff\xff",
    ],
)
def test_bytes_elements_that_do_not_fill_the_buffer_are_refused(encoded):
    """Lengths that lie neither over-read nor leave anything over."""
    with pytest.raises(InvalidInput, match="x: "):
        from_buffer("x", DataType.BYTES, [2], encoded)


def test_a_count_of_elements_that_cannot_be_takes_no_memory():
    """The array is made only when the buffer can hold that many lengths."""
    with pytest.raises(InvalidInput, match="came 8 bytes in all"):
        from_buffer("x", DataType.BYTES, [2**50], bytes(8))


@given(datatypes, shapes, st.binary(max_size=200))
def test_any_bytes_are_a_tensor_or_invalid_input(datatype, shape, buffer):
    """Nothing else can come out of the binary form, and a tensor comes back as it was."""
    try:
        tensor = from_buffer("x", datatype, shape, buffer)
    except InvalidInput:
        return
    assert tensor.shape == tuple(shape)
    assert bytes(to_bytes(tensor)) == buffer


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_bytes_elements_come_back(elements):
    """Round trip of the length-prefixed form."""
    tensor = from_buffer("x", DataType.BYTES, [len(elements)], strings(*elements))
    assert tensor.array.tolist() == elements
    assert to_bytes(tensor) == strings(*elements)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=12,
)


@given(datatypes, shapes, json_values)
def test_any_json_is_a_tensor_or_invalid_input(datatype, shape, data):
    """Nothing else can come out of JSON, and a tensor comes back as it was."""
    try:
        tensor = from_json_data("x", datatype, shape, data)
    except InvalidInput:
        return
    again = from_json_data("x", datatype, shape, to_json_data(tensor))
    assert again.shape == tuple(shape)
    assert bytes(to_bytes(again)) == bytes(to_bytes(tensor))


@given(st.data(), datatypes)
def test_elements_survive_json(data, datatype):
    """Every finite element, and all text, is the same after a trip through JSON."""
    if datatype is DataType.BYTES:
        elements = data.draw(st.lists(st.text(max_size=5)))
    elif datatype is DataType.BOOL:
        elements = data.draw(st.lists(st.booleans()))
    elif datatype.is_integer:
        elements = data.draw(st.lists(st.integers(*datatype.limits)))
    else:
        # FP4E2M1 ends at 6, and FP8E8M0 has neither zero nor a sign.
        elements = data.draw(st.lists(st.floats(0.25, 6, width=16)))
    tensor = from_json_data("x", datatype, [len(elements)], elements)
    document = json.loads(json.dumps(to_json_data(tensor), allow_nan=False))
    again = from_json_data("x", datatype, [len(elements)], document)
    assert again.array.tolist() == tensor.array.tolist()


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([2, 2], [1, 2, 3, 4]),
        ([2, 2], [[1, 2], [3, 4]]),
        ([4], [1, 2, 3, 4]),
        ([1, 4, 1], [[[1], [2], [3], [4]]]),
    ],
)
def test_json_data_may_be_flat_or_nested(shape, data):
    """Both forms of the protocol are the same tensor."""
    tensor = from_json_data("x", DataType.INT64, shape, data)
    assert tensor.shape == tuple(shape)
    assert tensor.array.reshape(-1).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([2, 2], [1, 2, 3]),
        ([2, 2], [[1, 2], [3]]),
        ([2, 2], [[1, 2], 3]),
        ([2, 2], [1, [2, 3, 4]]),
        ([2, 2], [[1, 2, 3, 4]]),
        ([2, 2], [[[1], [2]], [[3], [4]]]),
        ([4], [[1, 2, 3, 4]]),
        ([], [[3]]),
        ([1], 3),
        ([1], {"0": 3}),
        ([1], "3"),
    ],
)
def test_json_data_of_another_shape_is_refused(shape, data):
    """Nested lists have to nest as the shape says."""
    with pytest.raises(InvalidInput, match="x: expected"):
        from_json_data("x", DataType.INT64, shape, data)


def test_deep_json_is_refused_without_recursion():
    """A thousand brackets are an error like any other."""
    data: list = [1]
    for _ in range(5000):
        data = [data]
    with pytest.raises(InvalidInput):
        from_json_data("x", DataType.INT64, [1], data)


@pytest.mark.parametrize("datatype", INTEGERS)
def test_json_integers_stay_in_range_and_are_integers(datatype):
    """No wrap-around, no truncation, no booleans."""
    ends = list(datatype.limits)
    assert from_json_data("x", datatype, [2], ends).array.tolist() == ends
    for wrong in (ends[0] - 1, ends[1] + 1, 2**70, 1.0, True, "1", None, [1]):
        with pytest.raises(InvalidInput, match="x: expected"):
            from_json_data("x", datatype, [2], [0, wrong])


@pytest.mark.parametrize("datatype", FLOATS)
def test_json_floats_are_finite_and_in_range(datatype):
    """Integers are numbers too; infinity never appears where a number was."""
    assert from_json_data("x", datatype, [2], [1, 0.5]).array.tolist() == [1.0, 0.5]
    for wrong in (math.inf, -math.inf, math.nan, 10**400, True, "1", None):
        with pytest.raises(InvalidInput, match="x: expected"):
            from_json_data("x", datatype, [2], [0, wrong])
    if datatype is not DataType.FP64:
        with pytest.raises(InvalidInput, match="can hold"):
            from_json_data("x", datatype, [2], [1, 1e300])


def test_what_a_narrow_float_cannot_hold_is_refused():
    """No zero and no sign in FP8E8M0, no NaN and nothing beyond 6 in FP4E2M1."""
    cases = [
        (DataType.FP8E8M0, [0.0, -1.0, 1e-60, math.inf]),
        (DataType.FP4E2M1, [6.5, -7.0, math.inf, math.nan]),
        (DataType.FP8E4M3FN, [500.0, -1e9, math.inf]),
        (DataType.FP8E5M2FNUZ, [70000.0, -math.inf]),
    ]
    for datatype, wrong in cases:
        spec = TensorSpec("x", datatype, None)
        for number in wrong:
            with pytest.raises(InvalidInput, match=f"numbers that {datatype} can hold"):
                from_array("x", [1.0, number], spec)


@pytest.mark.parametrize("wrong", [0, 1, 1.0, "true", None])
def test_json_bools_are_bools(wrong):
    """A number is no truth value."""
    assert from_json_data("x", DataType.BOOL, [1], [True]).array.tolist() == [True]
    with pytest.raises(InvalidInput, match="expected bool for BOOL"):
        from_json_data("x", DataType.BOOL, [1], [wrong])


def test_json_strings_are_text():
    """A lone surrogate has no UTF-8, and a number is no text."""
    tensor = from_json_data("x", DataType.BYTES, [], "é")
    assert tensor.array.item() == "é".encode()
    for wrong in ("\ud800", 1, None):
        with pytest.raises(InvalidInput, match="x: expected"):
            from_json_data("x", DataType.BYTES, [1], [wrong])


@pytest.mark.parametrize(
    "array",
    [
        np.array([np.nan], np.float32),
        np.array([np.inf], ml_dtypes.bfloat16),
        np.array([b"\xff"], object),
    ],
)
def test_what_json_has_no_form_for_is_refused(array):
    """The error points to the binary form, which has."""
    with pytest.raises(InvalidInput, match="ask for binary data"):
        to_json_data(from_array("y", array))


@pytest.mark.parametrize("datatype", [DataType.FP16, DataType.BF16])
def test_every_nan_is_refused_and_every_number_kept(datatype):
    """Signalling NaNs are NaNs, too: of all 65536 bit patterns."""
    low, high = {DataType.FP16: (0x3FF, 0x7C00), DataType.BF16: (0x7F, 0x7F80)}[datatype]
    bits = np.arange(2**16, dtype=np.uint16)
    special = bits & high == high
    numbers = from_buffer("y", datatype, [int((~special).sum())], bits[~special].tobytes())
    again = from_json_data("y", datatype, numbers.shape, to_json_data(numbers))
    assert bytes(to_bytes(again)) == bytes(to_bytes(numbers))
    for pattern in (high, high | 1, high | low, 0x8000 | high):
        one = from_buffer("y", datatype, [1], int(pattern).to_bytes(2, "little"))
        with pytest.raises(InvalidInput, match="NaN or infinity"):
            to_json_data(one)


def test_a_tensor_keeps_to_its_datatype():
    """An array of another dtype, or another byte order, makes no tensor."""
    for array in (np.zeros(1, np.float64), np.zeros(1, ">f4")):
        with pytest.raises(InvalidInput, match="expected an array of float32"):
            Tensor("x", array, DataType.FP32)


def test_no_element_shows_in_a_repr():
    """What is logged by accident has name, datatype and shape only."""
    shown = repr(from_array("x", np.array([[123456.0]], np.float32)))
    assert shown == "<Tensor 'x' FP32[1, 1]>"


def test_a_spec_shows_its_symbols_and_the_protocols_shape():
    """People read symbols; the protocol has -1."""
    spec = TensorSpec("x", DataType.FP32, ("batch", 3, None))
    assert str(spec) == "FP32[batch, 3, ?]"
    assert spec.oip_shape == (-1, 3, -1)
    anything = TensorSpec("x", DataType.FP32, None)
    assert str(anything) == "FP32[...]"
    assert anything.oip_shape == (-1,)


def test_a_client_does_not_need_the_engine():
    """Tensors import neither onnx nor onnxruntime."""
    code = (
        "import sys, blindai.inference.tensors\n"
        "print([name for name in sys.modules if name.startswith(('onnx', 'google'))])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
