"""Requests are joined and parted without loss, and only where a graph allows it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import InvalidModel
from blindai.inference.batching import batch_key, has_batch_axis, join_inputs, part_outputs
from blindai.inference.tensors import DataType, Tensor, TensorSpec, from_array


class Signature:
    """A model that is nothing but its inputs and outputs."""

    def __init__(self, inputs, outputs=((("n", 2)),)):
        self.inputs = tuple(TensorSpec(f"x{i}", DataType.FP32, s) for i, s in enumerate(inputs))
        self.outputs = tuple(TensorSpec(f"y{i}", DataType.FP32, s) for i, s in enumerate(outputs))


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ([("n", 2)], [("n", 2)], True),
        ([("n", "seq"), ("n",)], [("n", "seq"), ("n",)], True),
        ([("n", 2), (None, 3)], [(None,)], True),
        ([None], [None], True),
        ([(None, 2)], [("other", 2)], True),
        ([("n", 2), ("m", 2)], [("n", 2)], False),
        ([("n", 2), (1, 2)], [("n", 2)], False),
        ([(1, "n")], [(1, "n")], False),
        ([("n", 2), ()], [("n", 2)], False),
        ([("n", 2)], [()], False),
        ([("n", 2)], [("n",), (1, 2)], False),
        ([], [("n",)], False),
    ],
)
def test_a_batch_axis_is_dynamic_everywhere_and_one(inputs, outputs, expected):
    """Under one symbol if under any; the probe judges the rest."""
    assert has_batch_axis(Signature(inputs, outputs)) is expected


def tensors(*shapes):
    return [Tensor(f"x{i}", np.zeros(s, np.float32), DataType.FP32) for i, s in enumerate(shapes)]


def test_a_key_has_outputs_and_row_shapes_in_the_models_order():
    """Not in the order in which the request has its inputs."""
    specs = Signature([("n", "a"), ("n",)]).inputs
    inputs = tensors((3, 5), (3,))
    expected = ((("y",), ((5,), ())), 3)
    assert batch_key(inputs, ["y"], specs) == expected
    assert batch_key(inputs[::-1], ["y"], specs) == expected


@pytest.mark.parametrize("shapes", [[(3, 5), (2,)], [(0, 5), (0,)], [(), ()], [(2, 1), ()]])
def test_no_key_without_one_number_of_rows(shapes):
    """Such a request runs alone."""
    assert batch_key(tensors(*shapes), [], Signature([None, None]).inputs) is None


def test_no_key_without_inputs():
    """A model of constants has no rows, and runs alone."""
    assert batch_key([], [], []) is None


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.sampled_from([DataType.FP32, DataType.INT64, DataType.BOOL, DataType.BF16, DataType.BYTES]),
    st.booleans(),
)
def test_what_is_joined_is_parted_again(rows, datatype, swapped):
    """Every row comes back to where it came from, for every kind of element."""
    rng = np.random.default_rng(len(rows))
    members = []
    for index, count in enumerate(rows):
        values = rng.integers(0, 2, (count, 3))
        if datatype is DataType.BYTES:
            array = np.where(values, b"yes", b"no").astype(object)
        else:
            array = values.astype(datatype.numpy)
        pair = [Tensor("a", array, datatype), Tensor("b", values, DataType.INT64)]
        members.append(pair[::-1] if swapped and index % 2 else pair)
    parts = part_outputs(join_inputs(members), rows)
    for member, part in zip(members, parts, strict=True):
        came = {tensor.name: tensor for tensor in part}
        for tensor in member:
            assert came[tensor.name].datatype is tensor.datatype
            assert np.array_equal(came[tensor.name].array, tensor.array)


def test_parts_are_views():
    """Nobody pays for a copy."""
    whole = from_array("y", np.arange(6, dtype=np.float32).reshape(3, 2))
    for (part,) in part_outputs([whole], [1, 2]):
        assert np.shares_memory(part.array, whole.array)


@pytest.mark.parametrize("shape", [(), (2,), (4, 3)])
def test_outputs_without_a_row_for_each_row_are_refused(shape):
    """A model that does this must not be batched."""
    with pytest.raises(InvalidModel, match="expected 3 rows"):
        part_outputs([Tensor("y", np.zeros(shape, np.float32), DataType.FP32)], [1, 2])
