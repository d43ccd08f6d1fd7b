"""Element types by the names of the Open Inference Protocol."""

import re

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
        ("float8_e4m3fn", DataType.FP8E4M3FN),
        ("float8_e8m0fnu", DataType.FP8E8M0),
        ("int4", DataType.INT4),
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


def test_elements_are_as_wide_as_their_names_say():
    """In the binary form; BYTES elements vary."""
    assert DataType.BYTES.bits == 0
    assert DataType.BOOL.bits == 8
    for datatype in set(DataType) - {DataType.BYTES, DataType.BOOL}:
        digits = re.match(r"[A-Z]+(\d+)", datatype)[1]
        assert datatype.bits == int(digits), datatype
        assert datatype.is_packed == (datatype.bits < 8)
        assert datatype.numpy.itemsize == max(1, datatype.bits // 8)
    assert DataType.BF16.numpy == np.dtype(ml_dtypes.bfloat16)


def test_native_types_are_those_that_numpy_has():
    """The others come from ml_dtypes."""
    extended = [datatype for datatype in DataType if not datatype.is_native]
    assert extended[0] is DataType.BF16
    assert len(extended) == 11
    for datatype in extended:
        assert hasattr(ml_dtypes, datatype.numpy.name)


@pytest.mark.parametrize("datatype", [d for d in DataType if d.is_integer])
def test_limits_are_those_of_the_dtype(datatype):
    """The smallest and the largest, as numpy and ml_dtypes have them."""
    known = ml_dtypes.iinfo(datatype.numpy)
    assert datatype.limits == (int(known.min), int(known.max))


@pytest.mark.parametrize("spelling", ["i4", "u4", "i2", "u2"])
def test_what_numpy_means_otherwise_is_no_spelling(spelling):
    """To numpy, "i4" has four bytes, not four bits."""
    with pytest.raises(InvalidInput, match="unknown datatype"):
        DataType.parse(spelling)


def test_only_integers_are_integers_and_only_floats_floats():
    """BOOL and BYTES are neither."""
    assert not DataType.BOOL.is_integer
    assert not DataType.BYTES.is_float
    assert DataType.BF16.is_float
    assert not DataType.BF16.is_integer
    assert DataType.UINT8.is_integer
    assert DataType.INT4.is_integer
    assert DataType.FP8E8M0.is_float
    assert DataType.FP4E2M1.is_float
