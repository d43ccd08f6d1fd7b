"""Elements of less than a byte, packed and unpacked."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.inference.datatype import DataType
from blindai.inference.packing import has_stray_bits, pack, packed_size, unpack

PACKED = [datatype for datatype in DataType if datatype.is_packed]
packed_types = st.sampled_from(PACKED)


@given(packed_types, st.binary(max_size=40), st.integers(0, 3))
def test_packed_bytes_come_back(datatype, data, spare):
    """Whatever they are, once the bits after the last element are zero."""
    count = max(0, len(data) * 8 // datatype.bits - spare % (8 // datatype.bits))
    array = unpack(data, count, datatype)
    assert array.shape == (count,)
    again = bytes(pack(array, datatype))
    assert len(again) == packed_size(count, datatype) == len(data)
    assert (again == data) is not has_stray_bits(memoryview(data), count, datatype)


@given(packed_types, st.lists(st.integers(0, 15), max_size=20))
def test_elements_come_back(datatype, numbers):
    """Each in its place."""
    bits = np.array(numbers, np.uint8) & (2**datatype.bits - 1)
    array = bits.view(datatype.numpy)
    packed = pack(array, datatype)
    assert unpack(packed.data, len(numbers), datatype).view(np.uint8).tolist() == bits.tolist()
    assert not has_stray_bits(packed.data, len(numbers), datatype)


@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_sizes_are_whole_bytes(count, size):
    """Rounded up."""
    assert packed_size(count, DataType.INT2) == size
    assert packed_size(count, DataType.FP32) == 4 * count
