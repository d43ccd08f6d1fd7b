"""The classification extension: the highest classes, in order, whatever the numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from blindai.errors import InvalidInput
from blindai.inference.tensors import DataType, Tensor, to_bytes
from blindai.server.classification import classify, parse_class_count

NUMBERS = [datatype for datatype in DataType if datatype is not DataType.BYTES]


def tensor(values, datatype=DataType.FP32):
    return Tensor("y", np.array(values).astype(datatype.numpy), datatype)


def texts(classified):
    assert classified.datatype is DataType.BYTES
    return [element.decode() for element in classified.array.reshape(-1)]


def test_one_vector():
    """The highest come first, each with its index."""
    found = classify(tensor([0.25, 4, -1]), 2)
    assert found.shape == (2,)
    assert texts(found) == ["4.0:1", "0.25:0"]


def test_each_item_of_a_batch():
    """Each item of the first axis is classified on its own, over all its elements."""
    found = classify(tensor([[[1, 2], [4, 3]], [[8, 7], [5, 6]]], DataType.INT8), 3)
    assert found.shape == (2, 3)
    assert texts(found) == ["4:2", "3:3", "2:1", "8:0", "7:1", "6:3"]


def test_equal_values_and_nan():
    """Of equal values the first comes first; NaN comes last."""
    found = classify(tensor([1, math.nan, 2, 2, -math.inf, 1]), 99)
    assert texts(found)[:4] == ["2.0:2", "2.0:3", "1.0:0", "1.0:5"]
    assert sorted(texts(found)[4:]) == ["-inf:4", "nan:1"]


@pytest.mark.parametrize("datatype", NUMBERS)
def test_every_datatype(datatype):
    """Every type of numbers can be classified."""
    found = classify(tensor([0, 1, 0], datatype), 1)
    (text,) = texts(found)
    value, index = text.split(":")
    if datatype is not DataType.FP8E8M0:  # which has no 0
        assert index == "1"
    assert float(value) == float(datatype.numpy.type(1))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), ()])
def test_nothing_and_scalars(shape):
    """What has no elements has no classes; a scalar has one."""
    found = classify(tensor(np.ones(shape)), 2)
    assert found.array.size == (1 if shape == () else 0)
    to_bytes(found)


def test_no_order():
    """Strings have no order here."""
    words = Tensor("y", np.array([b"a"], dtype=object), DataType.BYTES)
    with pytest.raises(InvalidInput, match="numbers"):
        classify(words, 1)


def test_bounded():
    """What would take much memory to sort, or to write, is refused."""
    with pytest.raises(InvalidInput, match="at most"):
        classify(tensor(np.zeros((1 << 22) + 1)), 1)
    with pytest.raises(InvalidInput, match="at most"):
        classify(tensor(np.zeros((1024, 1024))), 1024)


@given(
    npst.arrays(np.float32, npst.array_shapes(max_dims=2, max_side=8)),
    st.integers(1, 10),
)
def test_like_a_plain_sort(array, count):
    """The classes are those of a sort by value and index, one row after the other."""
    found = texts(classify(Tensor("y", array, DataType.FP32), count))
    expected = []
    for row in array if array.ndim > 1 else [array]:
        keys = [(-(float(v) if v == v else -math.inf), i) for i, v in enumerate(row)]  # noqa: PLR0124
        expected += [f"{row[i]!s}:{i}" for _, i in sorted(keys)[:count]]
    assert found == expected


@pytest.mark.parametrize("value", [-1, True, 1.0, "3", None, [1]])
def test_bad_count(value):
    """A number of classes is a whole number from 0 up."""
    with pytest.raises(InvalidInput):
        parse_class_count(value)
    assert parse_class_count(0) == 0
