"""The test cases of the `onnx` package for single operators, as arrays.

Always true: nothing here is ours, neither models, inputs nor expected outputs; the cases are
the same in each run with the same versions of onnx and numpy.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests


@dataclass(frozen=True, slots=True)
class Case:
    """One operator, one set of inputs, and the outputs that ONNX expects of them.

    Attributes:
        name: Its name in the `onnx` package.
        model: The ONNX file.
        inputs: Arrays in the order of the graph's inputs; lists for sequences, `None` for an
            optional that is empty.
        expected: Likewise, of the outputs.
        rtol: Relative tolerance, as the case itself says.
        atol: Absolute tolerance.
    """

    name: str
    model: bytes
    inputs: tuple[Any, ...]
    expected: tuple[Any, ...]
    rtol: float
    atol: float

    @property
    def is_dense(self) -> bool:
        """Whether all inputs and outputs are tensors."""
        return all(isinstance(value, np.ndarray) for value in (*self.inputs, *self.expected))


def load_cases() -> list[Case]:
    """Return all cases, by name. Takes some 15 seconds: they are computed."""
    with warnings.catch_warnings():
        # Of the computations: they overflow and divide by zero on purpose.
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    return sorted((_case(one) for one in found), key=lambda case: case.name)


def sample(cases: list[Case], count: int) -> list[Case]:
    """Return cases in an order that looks random, but is the same each time."""
    ordered = sorted(cases, key=lambda case: hashlib.sha256(case.name.encode()).digest())
    return ordered[:count]


def _case(found: Any) -> Case:
    ((inputs, outputs),) = found.data_sets
    return Case(
        name=found.name,
        model=found.model.SerializeToString(),
        inputs=tuple(map(_value, inputs)),
        expected=tuple(map(_value, outputs)),
        rtol=found.rtol,
        atol=found.atol,
    )


def _value(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, list):
        return [_value(element) for element in value]
    return value if value is None else np.asarray(value)
