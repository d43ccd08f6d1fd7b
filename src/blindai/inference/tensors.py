"""Tensors: the one language for data between client, protocols and engines.

Always true: a `Tensor`'s array has exactly the dtype of its `DataType`, in little-endian
order; elements of BYTES tensors are `bytes`. Each tensor has one binary form and each binary
form is one tensor: unused bits of packed elements are zero. Nothing is cast silently, and no
error carries an element's value. Needs nothing that a client has not, so that it can use it too.

Specification: Open Inference Protocol (KServe v2), "Tensor Data" (JSON), and its "Binary
Tensor Data Extension": elements in row-major order, little-endian; a BYTES element is its
length in 4 bytes and then its bytes. Elements of less than a byte are our extension of it:
packed, the first in the lowest bits, as onnx/onnx.proto has them in `raw_data`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import msgspec
import numpy as np

from blindai.errors import InvalidInput
from blindai.inference.arrays import (
    LENGTH,
    MAX_RANK,
    all_finite,
    decode_strings,
    flatten,
    from_array_like,
    from_elements,
    guess_datatype,
    is_array,
    measure,
)
from blindai.inference.datatype import DataType
from blindai.inference.packing import has_stray_bits, pack, unpack

__all__ = [
    "DataType",
    "Tensor",
    "TensorSpec",
    "check_inputs",
    "coerce_inputs",
    "from_array",
    "from_buffer",
    "from_json_data",
    "is_in_place",
    "to_bytes",
    "to_json_data",
]

# Keeps the size in bytes of any array below 2**63, also beside a dimension of 0.
_MAX_ELEMENTS: Final = 2**60 - 1
_BYTE: Final = 8
# To copy so much takes less time than to make a view of it.
_SMALL_BYTES: Final = 4 << 10


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model says of one input or output.

    Attributes:
        name: The model's name for it.
        datatype: Of its elements.
        shape: Each dimension as a size, as a symbol (the same size wherever the symbol
            stands), or as `None`: any size. `None` for the whole: of any rank.
    """

    name: str
    datatype: DataType
    shape: tuple[int | str | None, ...] | None

    @property
    def oip_shape(self) -> tuple[int, ...]:
        """The shape as the protocol has it, -1 where any size will do.

        The protocol cannot say "of any rank"; such a shape becomes `(-1,)`.
        """
        if self.shape is None:
            return (-1,)
        return tuple(dim if isinstance(dim, int) else -1 for dim in self.shape)

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.datatype}[...]"
        return f"{self.datatype}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"


# A struct, because each run makes some: a frozen dataclass takes twice as long.
class Tensor(msgspec.Struct, frozen=True, eq=False):
    """A named array.

    Attributes:
        name: Of the model's input or output.
        array: The elements. May be read-only, unaligned or not contiguous.
        datatype: Of the elements; `array.dtype` is exactly `datatype.numpy`.

    Raises:
        InvalidInput: The array has another dtype.
    """

    name: str
    array: np.ndarray[Any, np.dtype[Any]]
    datatype: DataType

    def __post_init__(self) -> None:
        if self.array.dtype != self.datatype.numpy:
            msg = (
                f"{self.name}: expected an array of {self.datatype.numpy.name} for "
                f"{self.datatype}, came {self.array.dtype}"
            )
            raise InvalidInput(msg)

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each dimension; `()` for a scalar."""
        return tuple(self.array.shape)

    def __str__(self) -> str:
        return f"{self.datatype}[{', '.join(map(str, self.shape))}]"

    def __repr__(self) -> str:
        # Elements are data, and a repr ends up in logs.
        return f"<Tensor {self.name!r} {self}>"


def from_buffer(
    name: str, datatype: DataType, shape: Sequence[int], buffer: bytes | bytearray | memoryview
) -> Tensor:
    """Read a tensor in the binary form, without a copy except for BYTES and packed elements.

    Args:
        name: Of the tensor.
        datatype: Of its elements.
        shape: Its dimensions, as an untrusted peer gave them.
        buffer: Its elements and nothing else. Must not change while the tensor lives.

    Raises:
        InvalidInput: Impossible dimensions, or a buffer of another size than they say.
    """
    dims, count = _check_dims(name, shape)
    data = memoryview(buffer).cast("B")
    if datatype is DataType.BYTES:
        return Tensor(name, decode_strings(name, data, count).reshape(dims), datatype)
    bits, dtype = datatype.bits, datatype.numpy
    expected = (count * bits + 7) // 8
    if len(data) != expected:
        msg = (
            f"{name}: expected {expected} bytes for {datatype}{list(dims)}, came {len(data)} bytes"
        )
        raise InvalidInput(msg)
    if bits < _BYTE:
        if has_stray_bits(data, count, datatype):
            msg = f"{name}: expected zero bits after the last of {count} {datatype} elements"
            raise InvalidInput(msg)
        return Tensor(name, unpack(data, count, datatype).reshape(dims), datatype)
    array: np.ndarray[Any, np.dtype[Any]] = np.ndarray(dims, dtype, data)
    # To C++ code any other byte than these is undefined behaviour, not "true".
    if datatype is DataType.BOOL and count and array.view(np.uint8).max() > 1:
        msg = f"{name}: expected bytes of 0 or 1 for BOOL, came others"
        raise InvalidInput(msg)
    return Tensor(name, array, datatype)


def is_in_place(name: str, datatype: DataType, shape: Sequence[int], size: int) -> bool:
    """Return whether a tensor's binary form is its array, whatever the bytes; else `from_buffer`.

    Args:
        name: Of the tensor.
        datatype: Of its elements.
        shape: Its dimensions, as an untrusted peer gave them.
        size: Of its binary form, in bytes.

    Raises:
        InvalidInput: Impossible dimensions.
    """
    _, count = _check_dims(name, shape)
    if datatype in {DataType.BYTES, DataType.BOOL} or datatype.is_packed:
        return False
    return size == count * datatype.numpy.itemsize


def to_bytes(tensor: Tensor) -> bytes | memoryview:
    """Return a tensor in the binary form; a view of its memory where it is large and contiguous.

    Raises:
        InvalidInput: An element of a BYTES tensor is longer than 4 bytes can say.
    """
    if tensor.datatype is DataType.BYTES:
        elements = tensor.array.reshape(-1).tolist()
        if any(len(element) >= 2**32 for element in elements):
            msg = f"{tensor.name}: expected elements below 4 GiB, came a larger one"
            raise InvalidInput(msg)
        pairs = ((LENGTH.pack(len(element)), element) for element in elements)
        return b"".join(chain.from_iterable(pairs))
    if tensor.datatype.is_packed:
        return pack(tensor.array, tensor.datatype).data if tensor.array.size else b""
    if tensor.array.nbytes <= _SMALL_BYTES:
        return tensor.array.tobytes()
    return tensor.array.reshape(-1).view(np.uint8).data


def from_json_data(name: str, datatype: DataType, shape: Sequence[int], data: object) -> Tensor:
    """Read a tensor's elements as JSON has them.

    Numbers become the nearest number of a floating-point type; nothing else is rounded,
    truncated or turned into another type.

    Args:
        name: Of the tensor.
        datatype: Of its elements.
        shape: Its dimensions, as an untrusted peer gave them.
        data: A flat list in row-major order, or lists nested as the shape says; for a scalar
            also the value itself.

    Raises:
        InvalidInput: Anything that does not fit the datatype and the shape.
    """
    dims, count = _check_dims(name, shape)
    flat = data if isinstance(data, list) else [data]
    if not isinstance(data, list) and dims:
        msg = f"{name}: expected data as a list, came {type(data).__name__}"
        raise InvalidInput(msg)
    if flat and isinstance(flat[0], list):
        flat = flatten(name, flat, dims)
    if len(flat) != count:
        msg = f"{name}: expected {count} elements for {list(dims)}, came {len(flat)}"
        raise InvalidInput(msg)
    array = from_elements(name, datatype, flat)
    if datatype.is_float and not all_finite(array):
        msg = f"{name}: expected finite numbers in JSON; send NaN or infinity as binary data"
        raise InvalidInput(msg)
    return Tensor(name, array.reshape(dims), datatype)


def to_json_data(tensor: Tensor) -> list[bool] | list[int] | list[float] | list[str]:
    """Return a tensor's elements as a flat list for JSON, in row-major order.

    Raises:
        InvalidInput: JSON has no form for an element: NaN, an infinity, bytes that are not
            UTF-8. The binary form has.
    """
    flat = tensor.array.reshape(-1)
    if tensor.datatype is DataType.BYTES:
        try:
            return [element.decode() for element in flat.tolist()]
        except UnicodeDecodeError:
            msg = f"{tensor.name}: has bytes that are not UTF-8; ask for binary data"
            raise InvalidInput(msg) from None
    if tensor.datatype.is_float and not all_finite(flat):
        msg = f"{tensor.name}: has NaN or infinity, which JSON has not; ask for binary data"
        raise InvalidInput(msg)
    if not tensor.datatype.is_native:
        flat = flat.astype(np.float32 if tensor.datatype.is_float else np.int8)
    elements: list[Any] = flat.tolist()
    return elements


def from_array(name: str, value: object, spec: TensorSpec | None = None) -> Tensor:
    """Make a tensor of what a Python user has at hand.

    Args:
        name: Of the tensor.
        value: A numpy array or anything that numpy can see as one, a torch tensor, a
            scalar, or lists of Python values nested to any rank.
        spec: What the model expects. Python values, which have no exact type of their own,
            take its datatype; arrays keep theirs.

    Raises:
        InvalidInput: Ragged lists, mixed values, or values that the type cannot hold.
    """
    if type(value) is np.ndarray and spec is not None and value.dtype == spec.datatype.numpy:
        # What mostly comes. Text has to be looked at all the same.
        if spec.datatype is not DataType.BYTES:
            return Tensor(name, value, spec.datatype)
    elif isinstance(value, (bool, int, float, str, bytes, list, tuple)):
        shape, flat = measure(name, value)
        if not any(isinstance(element, (np.ndarray, np.generic)) for element in flat[:1]):
            datatype = spec.datatype if spec is not None else guess_datatype(name, flat)
            return Tensor(name, from_elements(name, datatype, flat).reshape(shape), datatype)
    array = from_array_like(name, value)
    datatype = DataType.from_numpy(array.dtype)
    if datatype is DataType.BYTES:
        array = from_elements(name, datatype, array.reshape(-1).tolist()).reshape(array.shape)
    else:
        array = array.astype(datatype.numpy, copy=False)
    return Tensor(name, array, datatype)


def coerce_inputs(inputs: object, specs: Sequence[TensorSpec]) -> list[Tensor]:
    """Make a model's inputs of what a Python user passed.

    Args:
        inputs: Name → value; or, where the model has one input, its value; or a sequence of
            values in the order of the model's inputs. `from_array` says what a value is.
        specs: The model's inputs.

    Returns:
        One tensor for each of the model's inputs.

    Raises:
        InvalidInput: What does not fit, all of it in one message.
    """
    by_name = {spec.name: spec for spec in specs}
    if isinstance(inputs, Mapping):
        named = [(str(name), value) for name, value in inputs.items()]
    elif len(specs) == 1:
        single = isinstance(inputs, (list, tuple)) and len(inputs) == 1 and is_array(inputs[0])
        named = [(specs[0].name, inputs[0] if single else inputs)]  # type: ignore[index]
    elif isinstance(inputs, (list, tuple)) and len(inputs) == len(specs):
        named = list(zip(by_name, inputs, strict=True))
    else:
        came = f"{len(inputs)} values" if isinstance(inputs, (list, tuple)) else "one value"
        msg = f"expected {len(specs)} inputs ({', '.join(by_name) or 'none'}), came {came}"
        raise InvalidInput(msg)
    tensors: list[Tensor] = []
    problems: list[str] = []
    for name, value in named:
        try:
            tensors.append(from_array(name, value, by_name.get(name)))
        except InvalidInput as error:
            problems.append(str(error))
    if problems:
        raise InvalidInput("\n".join(problems))
    check_inputs(tensors, specs)
    return tensors


def check_inputs(tensors: Sequence[Tensor], specs: Sequence[TensorSpec]) -> None:
    """Refuse inputs that do not fit a model.

    Args:
        tensors: The inputs, in any order.
        specs: What the model expects; all of it.

    Raises:
        InvalidInput: What does not fit, all of it in one message: a line for each input with
            what was expected and what came.
    """
    expected = {spec.name: spec for spec in specs}
    came: dict[str, Tensor] = {}
    symbols: dict[str, tuple[int, str]] = {}
    problems: list[str] = []
    for tensor in tensors:
        spec = expected.get(tensor.name)
        if spec is None:
            known = ", ".join(expected) or "none"
            problems.append(f"{tensor.name[:100]!r}: no input of the model, which has: {known}")
        elif tensor.name in came:
            problems.append(f"{tensor.name}: expected once, came twice")
        else:
            problem = _mismatch(tensor, spec, symbols)
            if problem:
                problems.append(f"{tensor.name}: expected {spec}, came {tensor}: {problem}")
        came[tensor.name] = tensor
    if came.keys() != expected.keys():
        problems += [
            f"{name}: expected {spec}, came nothing"
            for name, spec in expected.items()
            if name not in came
        ]
    if problems:
        msg = "the inputs do not fit the model:\n" + "\n".join(f"  {line}" for line in problems)
        raise InvalidInput(msg)


def _mismatch(tensor: Tensor, spec: TensorSpec, symbols: dict[str, tuple[int, str]]) -> str:
    """Return why a tensor does not fit; "" where it does."""
    if tensor.datatype is not spec.datatype:
        hint = f"; cast it with array.astype({spec.datatype.numpy.name!r})"
        return f"another datatype{'' if spec.datatype is DataType.BYTES else hint}"
    expected, came = spec.shape, tensor.array.shape
    if expected is None:
        return ""
    if len(expected) != len(came):
        return f"{len(came)} dimensions instead of {len(expected)}"
    for index, (dim, size) in enumerate(zip(expected, came, strict=True)):
        if isinstance(dim, int):
            if dim != size:
                return f"dimension {index} is {size} instead of {dim}"
        # ONNX wants an identifier; exporters also write "?", "None" or a formula, which
        # name nothing that could be compared.
        elif dim is not None and dim.isidentifier() and dim != "None":
            known, where = symbols.setdefault(dim, (size, tensor.name))
            if known != size:
                return f"dimension {index} is {size}, but {dim} is {known} in {where}"
    return ""


def _check_dims(name: str, shape: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Return the dimensions and the number of elements that they make."""
    if len(shape) > MAX_RANK:
        msg = f"{name}: expected at most {MAX_RANK} dimensions, came {len(shape)}"
        raise InvalidInput(msg)
    most = 1
    for dim in shape:
        if type(dim) is not int or dim < 0:
            msg = f"{name}: expected dimensions that are whole numbers from 0 up"
            raise InvalidInput(msg)
        most *= dim or 1
    if most > _MAX_ELEMENTS:
        msg = f"{name}: expected at most {_MAX_ELEMENTS} elements, came more"
        raise InvalidInput(msg)
    return tuple(shape), math.prod(shape)
