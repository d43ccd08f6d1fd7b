"""Untrusted or untyped values to numpy arrays, strictly.

Always true: nothing is truncated, wrapped around or turned into another type; numbers become
the nearest of a floating-point type. Errors name the tensor and types, never a value.
"""

from __future__ import annotations

import struct
from itertools import chain
from typing import Any, Final

import numpy as np

from blindai.errors import InvalidInput
from blindai.inference.datatype import DataType

# What numpy 1.26 can hold, the oldest that a client may have.
MAX_RANK: Final = 32
LENGTH: Final = struct.Struct("<I")
_FP4_MAX: Final = 6.0
# torch calls these types what ml_dtypes calls them.
_TORCH_ONLY: Final = {
    f"torch.{datatype.numpy.name}": datatype.numpy
    for datatype in DataType
    if datatype.is_float and not datatype.is_native and not datatype.is_packed
}


def decode_strings(
    name: str, data: memoryview, count: int
) -> np.ndarray[Any, np.dtype[np.object_]]:
    """Return the elements of a BYTES tensor in the binary form, as `bytes`."""
    # Before memory is taken for the elements: each needs its length at least.
    if count * LENGTH.size > len(data):
        msg = f"{name}: expected {count} BYTES elements, came {len(data)} bytes in all"
        raise InvalidInput(msg)
    array = np.empty(count, dtype=object)
    position = 0
    for index in range(count):
        start = position + LENGTH.size
        if start > len(data):
            msg = f"{name}: ends early, in the length of element {index} of {count}"
            raise InvalidInput(msg)
        (length,) = LENGTH.unpack_from(data, position)
        position = start + length
        if position > len(data):
            msg = f"{name}: element {index} says {length} bytes, {len(data) - start} bytes are left"
            raise InvalidInput(msg)
        array[index] = bytes(data[start:position])
    if position != len(data):
        msg = f"{name}: expected {position} bytes for {count} elements, came {len(data)} bytes"
        raise InvalidInput(msg)
    return array


def flatten(name: str, nested: list[Any], dims: tuple[int, ...]) -> list[Any]:
    """Return the elements of lists that are nested exactly as `dims` says."""
    level = nested
    for depth, dim in enumerate(dims):
        if depth:
            if not all(type(item) is list and len(item) == dim for item in level):
                msg = f"{name}: expected lists of {dim} elements {depth} deep for {list(dims)}"
                raise InvalidInput(msg)
            level = list(chain.from_iterable(level))
        elif len(level) != dim:
            msg = f"{name}: expected {dim} lists for {list(dims)}, came {len(level)}"
            raise InvalidInput(msg)
    return level


def measure(name: str, value: object) -> tuple[tuple[int, ...], list[Any]]:
    """Return shape and elements of a scalar or of lists that all have the same length."""
    shape: list[int] = []
    level: list[Any] = [value]
    while level and isinstance(level[0], (list, tuple)):
        shape.append(len(level[0]))
        alike = all(isinstance(item, (list, tuple)) and len(item) == shape[-1] for item in level)
        if not alike or len(shape) > MAX_RANK:
            msg = f"{name}: expected lists of equal length, at most {MAX_RANK} deep"
            raise InvalidInput(msg)
        level = list(chain.from_iterable(level))
    return tuple(shape), level


def from_elements(name: str, datatype: DataType, flat: list[Any]) -> np.ndarray[Any, np.dtype[Any]]:
    """Return Python values as an array; strict about their types and ranges."""
    if datatype is DataType.BYTES:
        return _from_strings(name, flat)
    came = set(map(type, flat))
    accepted: set[type] = {bool} if datatype is DataType.BOOL else {int}
    if datatype.is_float:
        accepted = {int, float}
    if not came <= accepted:
        wrong = ", ".join(sorted(kind.__name__ for kind in came - accepted))
        right = " or ".join(sorted(kind.__name__ for kind in accepted))
        msg = f"{name}: expected {right} for {datatype}, came {wrong}"
        raise InvalidInput(msg)
    if datatype.is_integer and flat:
        smallest, largest = datatype.limits
        if min(flat) < smallest or max(flat) > largest:
            msg = f"{name}: expected {smallest} to {largest} for {datatype}, came others"
            raise InvalidInput(msg)
    return _to_floats(name, datatype, flat) if datatype.is_float else np.array(flat, datatype.numpy)


def _to_floats(name: str, datatype: DataType, flat: list[Any]) -> np.ndarray[Any, np.dtype[Any]]:
    try:
        wide = np.array(flat, dtype=np.float64)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            array = wide.astype(datatype.numpy)
            back = array.astype(np.float64)
        finite = np.isfinite(wide)
        # Of what does not fit, some types make an infinity, some NaN, FP4E2M1 its largest.
        fits = np.array_equal(np.isfinite(back), finite) and np.array_equal(
            np.isnan(back), np.isnan(wide)
        )
        if datatype is DataType.FP4E2M1:
            fits = fits and not (np.abs(wide) > _FP4_MAX).any()
    except OverflowError:
        fits = False
    if not fits:
        msg = f"{name}: expected numbers that {datatype} can hold, came others"
        raise InvalidInput(msg)
    return array


def _from_strings(name: str, flat: list[Any]) -> np.ndarray[Any, np.dtype[np.object_]]:
    array = np.empty(len(flat), dtype=object)
    for index, element in enumerate(flat):
        if isinstance(element, bytes):
            array[index] = bytes(element)
            continue
        if not isinstance(element, str):
            msg = f"{name}: expected str or bytes for BYTES, came {type(element).__name__}"
            raise InvalidInput(msg)
        try:
            array[index] = element.encode()
        except UnicodeEncodeError:
            msg = f"{name}: expected text, came a lone surrogate, which UTF-8 has not"
            raise InvalidInput(msg) from None
    return array


def guess_datatype(name: str, flat: list[Any]) -> DataType:
    """Return the type for Python values where no model says one."""
    if flat and all(type(element) is bool for element in flat):
        return DataType.BOOL
    if flat and all(type(element) is int for element in flat):
        return DataType.INT64
    if flat and all(isinstance(element, (str, bytes)) for element in flat):
        return DataType.BYTES
    if all(type(element) in {int, float} for element in flat):
        return DataType.FP32
    msg = f"{name}: expected numbers, booleans or text, all alike; came a mixture"
    raise InvalidInput(msg)


def all_finite(array: np.ndarray[Any, np.dtype[Any]]) -> bool:
    """Return whether no floating-point element is NaN or infinite."""
    # Looking at a signalling NaN would raise a warning.
    with np.errstate(invalid="ignore"):
        return bool(np.isfinite(array).all())


def is_array(value: object) -> bool:
    """Return whether a value is an array of some library, not a scalar or a list."""
    return hasattr(value, "dtype") and hasattr(value, "shape") and not isinstance(value, np.generic)


def from_array_like(name: str, value: object) -> np.ndarray[Any, np.dtype[Any]]:
    """Return what numpy or torch can see as an array, with the dtype that it has."""
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        # A torch tensor, without importing torch. numpy cannot see its bfloat16 and float8;
        # through float32, which holds each of their values, nothing is lost.
        tensor: Any = value.detach().cpu()
        dtype = _TORCH_ONLY.get(str(tensor.dtype))
        if dtype is not None:
            with np.errstate(invalid="ignore"):
                return np.asarray(tensor.float().numpy()).astype(dtype)
        value = tensor.numpy()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        array = np.empty((), dtype=object)
    if array.dtype == object and array.shape == () and not isinstance(value, np.ndarray):
        msg = f"{name}: expected an array, lists or a scalar, came {type(value).__name__}"
        raise InvalidInput(msg)
    return array
