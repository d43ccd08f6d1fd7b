"""Outputs as their highest classes: the protocol's classification extension.

Always true: one string of "value:index" for each class, the highest first, equal ones in the
order of their indices, NaN last; ONNX files carry no labels, so there are none. What is sorted
and what is written are bounded.

Specification: Open Inference Protocol (KServe v2), classification extension. Where a tensor has
two axes or more, each item of the first is classified on its own, over all its elements.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from blindai.errors import InvalidInput
from blindai.inference.tensors import DataType, Tensor

# Sorting takes 8 bytes for each, writing about 100.
_MAX_ELEMENTS: Final = 1 << 22
_MAX_STRINGS: Final = 1 << 18


def parse_class_count(value: object) -> int:
    """Return how many classes are asked for; 0: the output as it is.

    Args:
        value: Of the parameter `classification`.

    Raises:
        InvalidInput: No such number.
    """
    if type(value) is not int or value < 0:
        msg = "parameters.classification: expected a number of classes, from 0 up"
        raise InvalidInput(msg)
    return value


def classify(tensor: Tensor, count: int) -> Tensor:
    """Return the highest classes of an output, as BYTES of shape [k], or [n, k] of n items.

    Args:
        tensor: The output.
        count: Of classes, from 1 up; where there are fewer, all.

    Raises:
        InvalidInput: Elements that have no order, or too many of them.
    """
    if tensor.datatype is DataType.BYTES:
        msg = f"{tensor.name}: expected an output of numbers to classify, came BYTES"
        raise InvalidInput(msg)
    items = tensor.shape[0] if len(tensor.shape) > 1 else 1
    width = tensor.array.size // items if items else 0
    count = min(count, width)
    if tensor.array.size > _MAX_ELEMENTS or items * count > _MAX_STRINGS:
        msg = (
            f"{tensor.name}: expected at most {_MAX_ELEMENTS} elements and {_MAX_STRINGS} classes "
            f"to return, came {tensor.array.size} and {items * count}"
        )
        raise InvalidInput(msg)
    values = tensor.array.reshape(items, width)
    order = _descending(values)[:, :count]
    chosen = np.take_along_axis(values, order, axis=1)
    texts = [
        f"{_text(value)}:{index}".encode()
        for value, index in zip(chosen.reshape(-1), order.reshape(-1).tolist(), strict=True)
    ]
    array = np.array(texts, dtype=object)
    shape = (items, count) if len(tensor.shape) > 1 else (count,)
    return Tensor(tensor.name, array.reshape(shape), DataType.BYTES)


def _descending(values: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Return the order of each row's elements; of equal ones, the first comes first."""
    if values.dtype.type.__module__ != "numpy":
        values = values.astype(np.float32)  # all of ml_dtypes fit; not all of them can be sorted
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), values.dtype.type(-np.inf), values)
    # Sorted backwards and read backwards: a stable sort that descends, also of unsigned numbers.
    backwards = np.argsort(values[:, ::-1], axis=1, kind="stable")[:, ::-1]
    order: np.ndarray[Any, np.dtype[np.intp]] = values.shape[1] - 1 - backwards
    return order


def _text(value: Any) -> str:
    """Return the shortest text that stands for this number and no other of its type."""
    return str(int(value)) if isinstance(value, np.bool_) else str(value)
