"""Element types by the names of the Open Inference Protocol."""

import ml_dtypes
import numpy as np
import pytest

from blindai.errors import InvalidInput
from blindai.inference.datatype import DataType


@pytest.mark.parametrize("datatype", DataType)
def test_every_datatype_comes_back_from_its_numpy_dtype_and_its_own_name(datatype):
    """Names, folded names and numpy dtypes all lead back to the datatype."""
    assert DataType.from_numpy(datatype.numpy) is datatype
    assert DataType.parse(datatype) is datatype
    assert DataType.parse(datatype.lower()) is datatype


@pytest.mark.parametrize(
    ("spelling", "datatype"),
    [
        ("float32", DataType.FP32),
        ("f32", DataType.FP32),
        ("fp32", DataType.FP32),
        (" FP32 ", DataType.FP32),
        ("float", DataType.FP32),
        ("double", DataType.FP64),
        ("half", DataType.FP16),
        ("bfloat16", DataType.BF16),
        ("i64", DataType.INT64),
        ("u8", DataType.UINT8),
        ("uint16", DataType.UINT16),
        ("boolean", DataType.BOOL),
        ("string", DataType.BYTES),
    ],
)
def test_spellings_of_other_libraries_are_understood(spelling, datatype):
    """What numpy, torch and Rust call a type is accepted."""
    assert DataType.parse(spelling) is datatype


@pytest.mark.parametrize("spelling", ["", "float33", "complex64", "object", "i", "u", "FP8"])
def test_an_unknown_spelling_is_refused_with_the_list(spelling):
    """The error lists what would have been accepted."""
    with pytest.raises(InvalidInput, match="expected one of BOOL, UINT8"):
        DataType.parse(spelling)


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "timedelta64[s]", "V4"])
def test_a_numpy_dtype_that_the_protocol_has_not_is_refused(dtype):
    """Complex numbers, dates and records have no datatype."""
    with pytest.raises(InvalidInput, match="no datatype for numpy"):
        DataType.from_numpy(np.dtype(dtype))


@pytest.mark.parametrize("dtype", [">f4", "<f4", "=f4"])
def test_byte_order_does_not_matter_for_the_datatype(dtype):
    """A big-endian float32 is an FP32."""
    assert DataType.from_numpy(np.dtype(dtype)) is DataType.FP32


def test_item_sizes_are_those_of_the_protocol():
    """Elements are as wide as their names say; BYTES elements vary."""
    sizes = {datatype: datatype.itemsize for datatype in DataType}
    assert sizes[DataType.BYTES] is None
    assert sizes[DataType.BOOL] == sizes[DataType.INT8] == 1
    assert sizes[DataType.BF16] == sizes[DataType.FP16] == 2
    assert sizes[DataType.FP64] == sizes[DataType.UINT64] == 8
    assert DataType.BF16.numpy == np.dtype(ml_dtypes.bfloat16)


def test_only_integers_are_integers_and_only_floats_floats():
    """BOOL and BYTES are neither."""
    assert not DataType.BOOL.is_integer
    assert not DataType.BYTES.is_float
    assert DataType.BF16.is_float
    assert not DataType.BF16.is_integer
    assert DataType.UINT8.is_integer
