"""The element types of tensors, by the names of the Open Inference Protocol.

Specification: Open Inference Protocol (KServe v2), "Tensor Data Types". `BF16` is not in its
table but is what its implementations call bfloat16. From `FP8E4M3FN` on, types are our own
extension, one for each element type of ONNX that the protocol has no name for
(docs/reference/datatypes.md). Everything here is little-endian, as the protocol's binary
extension is; elements of less than a byte are packed, the first in the lowest bits.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np

from blindai.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping


class DataType(StrEnum):
    """What one element of a tensor is."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"
    BF16 = "BF16"
    BYTES = "BYTES"
    FP8E4M3FN = "FP8E4M3FN"
    FP8E4M3FNUZ = "FP8E4M3FNUZ"
    FP8E5M2 = "FP8E5M2"
    FP8E5M2FNUZ = "FP8E5M2FNUZ"
    FP8E8M0 = "FP8E8M0"
    FP4E2M1 = "FP4E2M1"
    INT4 = "INT4"
    UINT4 = "UINT4"
    INT2 = "INT2"
    UINT2 = "UINT2"

    # Enum's own is a function of Python, and types are looked up with every tensor.
    __hash__ = str.__hash__

    @classmethod
    def parse(cls, spelling: str) -> DataType:
        """Return the type that a person or a protocol means.

        Args:
            spelling: The protocol's name in any case, or numpy's, torch's or Rust's:
                "FP32", "fp32", "float32" and "f32" are the same.

        Raises:
            InvalidInput: No type is spelled like this.
        """
        folded = spelling.strip().lower()
        found = _SPELLINGS.get(folded)
        if found is None:
            msg = f"unknown datatype {spelling[:40]!r}; expected one of {', '.join(cls)}"
            raise InvalidInput(msg)
        return found

    @classmethod
    def from_numpy(cls, dtype: np.dtype[Any] | type) -> DataType:
        """Return the type of a numpy dtype, whatever its byte order.

        Raises:
            InvalidInput: The protocol has no such type (complex numbers, dates, records).
        """
        dtype = np.dtype(dtype)
        known = _BY_DTYPE.get(dtype)
        if known is not None:
            return known
        if dtype.kind in "OSU":
            return cls.BYTES
        found = _BY_NUMPY_NAME.get(dtype.name)
        if found is None:
            msg = f"no datatype for numpy {dtype.name}; expected one of {', '.join(cls)}"
            raise InvalidInput(msg)
        return found

    @property
    def numpy(self) -> np.dtype[Any]:
        """The dtype of arrays of this type; `object`, holding `bytes`, for BYTES.

        An array has a whole byte for each element, also where the binary form packs them.
        """
        return _NUMPY[self]

    @property
    def bits(self) -> int:
        """Bits of one element in the binary form; 0 for BYTES, whose elements vary."""
        return _BITS[self]

    @property
    def is_packed(self) -> bool:
        """Whether several elements share a byte in the binary form."""
        return self in _PACKED

    @property
    def is_native(self) -> bool:
        """Whether numpy has the type itself; the others are of `ml_dtypes`."""
        return self not in _EXTENDED

    @property
    def is_float(self) -> bool:
        """Whether elements are floating-point numbers."""
        return self in _FLOATS

    @property
    def is_integer(self) -> bool:
        """Whether elements are integers; a BOOL is none."""
        return self in _INTEGERS

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest number of an integer type."""
        if self.startswith("U"):
            return 0, 2**self.bits - 1
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1


_PACKED: Final[Mapping[DataType, int]] = MappingProxyType(
    {
        DataType.FP4E2M1: 4,
        DataType.INT4: 4,
        DataType.UINT4: 4,
        DataType.INT2: 2,
        DataType.UINT2: 2,
    }
)

_FLOATS: Final = frozenset(d for d in DataType if d.startswith(("FP", "BF")))
_INTEGERS: Final = frozenset(d for d in DataType if d.startswith(("INT", "UINT")))

_NUMPY: Final[Mapping[DataType, np.dtype[Any]]] = MappingProxyType(
    {
        DataType.BOOL: np.dtype("?"),
        DataType.UINT8: np.dtype("u1"),
        DataType.UINT16: np.dtype("<u2"),
        DataType.UINT32: np.dtype("<u4"),
        DataType.UINT64: np.dtype("<u8"),
        DataType.INT8: np.dtype("i1"),
        DataType.INT16: np.dtype("<i2"),
        DataType.INT32: np.dtype("<i4"),
        DataType.INT64: np.dtype("<i8"),
        DataType.FP16: np.dtype("<f2"),
        DataType.FP32: np.dtype("<f4"),
        DataType.FP64: np.dtype("<f8"),
        DataType.BF16: np.dtype(ml_dtypes.bfloat16),
        DataType.BYTES: np.dtype(object),
        DataType.FP8E4M3FN: np.dtype(ml_dtypes.float8_e4m3fn),
        DataType.FP8E4M3FNUZ: np.dtype(ml_dtypes.float8_e4m3fnuz),
        DataType.FP8E5M2: np.dtype(ml_dtypes.float8_e5m2),
        DataType.FP8E5M2FNUZ: np.dtype(ml_dtypes.float8_e5m2fnuz),
        DataType.FP8E8M0: np.dtype(ml_dtypes.float8_e8m0fnu),
        DataType.FP4E2M1: np.dtype(ml_dtypes.float4_e2m1fn),
        DataType.INT4: np.dtype(ml_dtypes.int4),
        DataType.UINT4: np.dtype(ml_dtypes.uint4),
        DataType.INT2: np.dtype(ml_dtypes.int2),
        DataType.UINT2: np.dtype(ml_dtypes.uint2),
    }
)

_BITS: Final[Mapping[DataType, int]] = MappingProxyType(
    {datatype: _PACKED.get(datatype, 8 * dtype.itemsize) for datatype, dtype in _NUMPY.items()}
    | {DataType.BYTES: 0}
)

_EXTENDED: Final = frozenset(
    datatype for datatype, dtype in _NUMPY.items() if dtype.type.__module__ != "numpy"
)

_BY_NUMPY_NAME: Final[Mapping[str, DataType]] = MappingProxyType(
    {dtype.name: datatype for datatype, dtype in _NUMPY.items() if datatype is not DataType.BYTES}
)

# A dtype makes up its name anew each time that it is asked.
_BY_DTYPE: Final[Mapping[np.dtype[Any], DataType]] = MappingProxyType(
    {dtype: datatype for datatype, dtype in _NUMPY.items()}
)


def _spellings() -> dict[str, DataType]:
    found = {datatype.lower(): datatype for datatype in DataType}
    found.update(_BY_NUMPY_NAME)
    for datatype in DataType:
        # numpy's "i4" has four bytes: no such short form for the narrow ones.
        if datatype.is_integer and not datatype.is_packed:
            found[datatype.lower().replace("uint", "u").replace("int", "i")] = datatype
    found.update(
        {
            "boolean": DataType.BOOL,
            "half": DataType.FP16,
            "f16": DataType.FP16,
            "float": DataType.FP32,
            "f32": DataType.FP32,
            "double": DataType.FP64,
            "f64": DataType.FP64,
            "str": DataType.BYTES,
            "string": DataType.BYTES,
            "float8_e8m0": DataType.FP8E8M0,
            "float4_e2m1": DataType.FP4E2M1,
        }
    )
    return found


_SPELLINGS: Final[Mapping[str, DataType]] = MappingProxyType(_spellings())
