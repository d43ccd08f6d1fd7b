"""The element types of tensors, by the names of the Open Inference Protocol.

Specification: Open Inference Protocol (KServe v2), "Tensor Data Types". `BF16` is not in its
table but is what its implementations call bfloat16. Everything here is little-endian, as
the protocol's binary extension is.
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
        if dtype.kind in "OSU":
            return cls.BYTES
        found = _BY_NUMPY_NAME.get(dtype.name)
        if found is None:
            msg = f"no datatype for numpy {dtype.name}; expected one of {', '.join(cls)}"
            raise InvalidInput(msg)
        return found

    @property
    def numpy(self) -> np.dtype[Any]:
        """The dtype of arrays of this type; `object`, holding `bytes`, for BYTES."""
        return _NUMPY[self]

    @property
    def itemsize(self) -> int | None:
        """Bytes of one element; `None` for BYTES, whose elements vary."""
        return None if self is DataType.BYTES else self.numpy.itemsize

    @property
    def is_float(self) -> bool:
        """Whether elements are floating-point numbers."""
        return self in _FLOATS

    @property
    def is_integer(self) -> bool:
        """Whether elements are integers; a BOOL is none."""
        return self.numpy.kind in "iu"


_FLOATS: Final = frozenset({DataType.FP16, DataType.FP32, DataType.FP64, DataType.BF16})

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
    }
)

_BY_NUMPY_NAME: Final[Mapping[str, DataType]] = MappingProxyType(
    {dtype.name: datatype for datatype, dtype in _NUMPY.items() if datatype is not DataType.BYTES}
)


def _spellings() -> dict[str, DataType]:
    found = {datatype.lower(): datatype for datatype in DataType}
    found.update(_BY_NUMPY_NAME)
    for datatype in DataType:
        if datatype.is_integer:
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
        }
    )
    return found


_SPELLINGS: Final[Mapping[str, DataType]] = MappingProxyType(_spellings())
