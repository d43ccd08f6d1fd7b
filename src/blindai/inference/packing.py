"""Elements of less than a byte: packed as they travel, one to a byte as numpy has them.

Always true: the first element lies in the lowest bits of the first byte, and what `pack`
leaves after the last element is zero, so that a tensor has one packed form only. Sizes are
for the callers to check.

Specification: `TensorProto.raw_data` in onnx/onnx.proto.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from blindai.inference.datatype import DataType


def packed_size(count: int, datatype: DataType) -> int:
    """Return the bytes that elements take in the binary form.

    Args:
        count: Of elements.
        datatype: Any but BYTES.
    """
    return (count * datatype.bits + 7) // 8


def pack(
    array: np.ndarray[Any, np.dtype[Any]], datatype: DataType
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the bytes of an array's elements, in row-major order.

    Args:
        array: Of any shape, of `datatype.numpy`.
        datatype: One that `is_packed`.
    """
    bits = datatype.bits
    size = packed_size(array.size, datatype)
    lanes = np.zeros((size, 8 // bits), np.uint8)
    # Only the low bits mean something: others may be set in memory that was cast by hand.
    lanes.reshape(-1)[: array.size] = array.reshape(-1).view(np.uint8) & (2**bits - 1)
    packed = np.zeros(size, np.uint8)
    for lane in range(8 // bits):
        packed |= lanes[:, lane] << (lane * bits)
    return packed


def unpack(
    data: bytes | memoryview, count: int, datatype: DataType
) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the elements of a packed tensor, as a flat array.

    Args:
        data: Exactly the bytes that `count` elements take.
        count: Of elements.
        datatype: One that `is_packed`.
    """
    bits = datatype.bits
    packed = np.frombuffer(data, np.uint8) if count else np.empty(0, np.uint8)
    lanes = np.empty((len(packed), 8 // bits), np.uint8)
    for lane in range(8 // bits):
        lanes[:, lane] = (packed >> (lane * bits)) & (2**bits - 1)
    return lanes.reshape(-1)[:count].view(datatype.numpy)


def has_stray_bits(data: memoryview, count: int, datatype: DataType) -> bool:
    """Return whether bits are set after the last element of a packed tensor."""
    used = count * datatype.bits % 8
    return used != 0 and data[-1] >> used != 0
