"""What users pass becomes tensors, and inputs are checked against a model."""

import array as std_array

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import InvalidInput
from blindai.inference.tensors import (
    DataType,
    TensorSpec,
    check_inputs,
    coerce_inputs,
    from_array,
)

IDS = TensorSpec("ids", DataType.INT64, ("batch", "seq"))
MASK = TensorSpec("mask", DataType.INT64, ("batch", "seq"))
IMAGE = TensorSpec("image", DataType.FP32, ("batch", 2, None))


class TorchTensor:
    """As much of a torch tensor as numpy arrays can play."""

    def __init__(self, array, dtype, *, grad=True, device="cuda"):
        self._array, self.dtype, self._grad, self._device = array, dtype, grad, device

    def detach(self):
        return TorchTensor(self._array, self.dtype, grad=False, device=self._device)

    def cpu(self):
        return TorchTensor(self._array, self.dtype, grad=self._grad, device="cpu")

    def float(self):
        exact = self._array.astype(np.float32)
        return TorchTensor(exact, "torch.float32", grad=self._grad, device=self._device)

    def numpy(self):
        if self._grad or self._device != "cpu" or self.dtype != "torch.float32":
            msg = "torch refuses this"
            raise TypeError(msg)
        return self._array


def test_inputs_by_name_by_position_and_alone_are_the_same():
    """A dict, a sequence in the model's order, and the value of the only input."""
    ids, mask = [[1, 2]], np.array([[1, 1]])
    by_name = coerce_inputs({"mask": mask, "ids": ids}, [IDS, MASK])
    by_position = coerce_inputs([ids, mask], [IDS, MASK])
    assert {tensor.name: tensor.array.tolist() for tensor in by_name} == {
        tensor.name: tensor.array.tolist() for tensor in by_position
    }
    for alone in (ids, np.array(ids), [np.array(ids)], (np.array(ids),), {"ids": ids}):
        (tensor,) = coerce_inputs(alone, [IDS])
        assert tensor.array.tolist() == ids


@pytest.mark.parametrize("inputs", [[[1]], [[1], [1], [1]], 3, None, np.zeros((2, 2))])
def test_too_few_and_too_many_inputs_are_refused_by_name(inputs):
    """The error names the inputs that the model has."""
    with pytest.raises(InvalidInput, match=r"expected 2 inputs \(ids, mask\), came"):
        coerce_inputs(inputs, [IDS, MASK])


@pytest.mark.parametrize(
    "datatype", [d for d in DataType if d.is_float and d is not DataType.FP4E2M1]
)
def test_python_numbers_take_the_models_datatype(datatype):
    """Lists have no exact type of their own."""
    spec = TensorSpec("x", datatype, ("n",))
    (tensor,) = coerce_inputs([1, 0.5, float("nan")], [spec])
    assert tensor.datatype is datatype
    assert tensor.array[:2].tolist() == [1.0, 0.5]
    assert np.isnan(tensor.array[2])


@pytest.mark.parametrize("values", [[1.0], [1.5], [True], ["1"], [None], [2**63], [[1], 2]])
def test_python_values_that_would_change_are_refused(values):
    """No float becomes an integer, no boolean a number, and nothing wraps around."""
    with pytest.raises(InvalidInput, match="x: expected"):
        coerce_inputs(values, [TensorSpec("x", DataType.INT64, ("n",))])


def test_numpy_arrays_are_never_cast():
    """The message says how the user can cast."""
    with pytest.raises(InvalidInput, match=r"FP32\[batch, 2, \?\], came FP64.*astype\('float32'\)"):
        coerce_inputs(np.zeros((1, 2, 5)), [IMAGE])


def test_arrays_of_any_layout_become_little_endian_tensors():
    """Big-endian, transposed and strided arrays keep their values."""
    expected = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    wide = np.zeros((3, 2, 4), np.float32)
    wide[:, :, ::2] = expected
    layouts = [
        expected.astype(">f4"),
        np.asfortranarray(expected),
        wide[:, :, ::2],
        expected[::-1][::-1],
    ]
    for layout in layouts:
        (tensor,) = coerce_inputs(layout, [IMAGE])
        assert tensor.array.dtype == np.dtype("<f4")
        assert (tensor.array == expected).all()


def test_a_plain_array_is_not_copied():
    """Large inputs stay where they are."""
    array = np.zeros((1, 2, 3), np.float32)
    (tensor,) = coerce_inputs(array, [IMAGE])
    assert np.shares_memory(tensor.array, array)


def test_torch_tensors_come_from_the_device_and_the_graph():
    """Without importing torch; bfloat16 and float8, which numpy cannot see, lose nothing."""
    array = np.array([[[1.0], [2.0]]], np.float32)
    (tensor,) = coerce_inputs(TorchTensor(array, "torch.float32"), [IMAGE])
    assert tensor.array.tolist() == array.tolist()
    bits = np.arange(2**16, dtype=np.uint16)
    numbers = bits[(bits & 0x7F80 != 0x7F80) | (bits & 0x7F == 0)].view(ml_dtypes.bfloat16)
    spec = TensorSpec("x", DataType.BF16, ("n",))
    (tensor,) = coerce_inputs({"x": TorchTensor(numbers, "torch.bfloat16")}, [spec])
    assert tensor.array.tobytes() == numbers.tobytes()
    small = np.arange(0x7F, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    spec = TensorSpec("x", DataType.FP8E4M3FN, ("n",))
    (tensor,) = coerce_inputs({"x": TorchTensor(small, "torch.float8_e4m3fn")}, [spec])
    assert tensor.array.tobytes() == small.tobytes()


def test_other_array_likes_are_seen_through_numpy():
    """Anything with a buffer or `__array__`."""
    spec = TensorSpec("x", DataType.FP64, ("n",))
    (tensor,) = coerce_inputs({"x": std_array.array("d", [1.0, 2.0])}, [spec])
    assert tensor.array.tolist() == [1.0, 2.0]
    (tensor,) = coerce_inputs({"x": [np.float64(1), np.float64(2)]}, [spec])
    assert tensor.array.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "value",
    ["é", np.array("é"), np.array("é", object), "é".encode(), np.str_("é"), np.array("é".encode())],
)
def test_text_becomes_utf8_bytes(value):
    """In whatever form Python has text."""
    tensor = from_array("x", value)
    assert tensor.datatype is DataType.BYTES
    assert tensor.shape == ()
    assert tensor.array.item() == "é".encode()


@pytest.mark.parametrize(
    ("value", "datatype", "shape"),
    [
        (1, DataType.INT64, ()),
        (1.0, DataType.FP32, ()),
        (True, DataType.BOOL, ()),
        ([[1, 2.5]], DataType.FP32, (1, 2)),
        ([["a"], [b"b"]], DataType.BYTES, (2, 1)),
        ([], DataType.FP32, (0,)),
        ([[], []], DataType.FP32, (2, 0)),
        (np.float16(1), DataType.FP16, ()),
    ],
)
def test_without_a_model_python_values_have_a_usual_type(value, datatype, shape):
    """INT64 for integers and FP32 for other numbers, as in most models."""
    tensor = from_array("x", value)
    assert (tensor.datatype, tensor.shape) == (datatype, shape)


@pytest.mark.parametrize(
    "value", [None, object(), {"a": 1}, [None], [object()], [1, "a"], [[1], [1, 2]], [True, 1], 1j]
)
def test_what_is_no_tensor_is_invalid_input(value):
    """Ragged lists, mixtures and objects raise that one error."""
    with pytest.raises(InvalidInput, match=r"x: expected|no datatype"):
        from_array("x", value)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
values = st.recursive(scalars | st.binary(max_size=3), st.lists, max_leaves=10)


@given(st.sampled_from(list(DataType)), values)
def test_any_value_is_a_tensor_or_invalid_input(datatype, value):
    """Nothing else can come out of what a user passes."""
    try:
        tensor = from_array("x", value, TensorSpec("x", datatype, None))
    except InvalidInput:
        return
    assert tensor.datatype is datatype


def test_every_problem_is_in_one_error():
    """Missing, unknown, twice, datatype, rank and dimension: one line each."""
    specs = [
        IDS,
        MASK,
        IMAGE,
        TensorSpec("a", DataType.BOOL, ()),
        TensorSpec("b", DataType.FP32, (2,)),
    ]
    tensors = [
        from_array("ids", np.zeros((2, 7), np.int64)),
        from_array("mask", np.zeros((2, 8), np.int64)),
        from_array("image", np.zeros((2, 2), np.float32)),
        from_array("image", np.zeros((2, 2, 2), np.float32)),
        from_array("a", np.zeros((), np.int8)),
        from_array("c", np.zeros(1, np.int8)),
    ]
    with pytest.raises(InvalidInput) as caught:
        check_inputs(tensors, specs)
    lines = str(caught.value).splitlines()
    assert lines[1:] == [
        (
            "  mask: expected INT64[batch, seq], came INT64[2, 8]: "
            "dimension 1 is 8, but seq is 7 in ids"
        ),
        "  image: expected FP32[batch, 2, ?], came FP32[2, 2]: 2 dimensions instead of 3",
        "  image: expected once, came twice",
        "  a: expected BOOL[], came INT8[]: another datatype; cast it with array.astype('bool')",
        "  'c': no input of the model, which has: ids, mask, image, a, b",
        "  b: expected FP32[2], came nothing",
    ]


def test_inputs_that_fit_pass_in_any_order():
    """Symbols and unnamed dimensions take any size, also 0."""
    tensors = [
        from_array("image", np.zeros((0, 2, 9), np.float32)),
        from_array("ids", np.zeros((0, 4), np.int64)),
    ]
    check_inputs(tensors, [IDS, IMAGE])
    check_inputs([], [])
    with pytest.raises(InvalidInput, match=r"ids: expected .*: dimension 0 is 1, but batch is 0"):
        check_inputs([tensors[0], from_array("ids", np.zeros((1, 4), np.int64))], [IDS, IMAGE])


def test_names_that_name_nothing_are_not_compared():
    """Exporters write formulas and placeholders where ONNX wants an identifier."""
    for nameless in ("?", "None", "2*seq"):
        specs = [TensorSpec(name, DataType.FP32, (nameless,)) for name in "ab"]
        check_inputs([from_array("a", [1.0]), from_array("b", [1.0, 2.0])], specs)


def test_any_rank_is_accepted_where_the_model_says_none():
    """A spec without a shape takes scalars and more."""
    spec = TensorSpec("x", DataType.FP32, None)
    for shape in ((), (1,), (2, 3)):
        check_inputs([from_array("x", np.zeros(shape, np.float32))], [spec])
