"""The cases in onnxruntime, in this process and without any code of BlindAI.

Always true: what the Python interface of onnxruntime cannot take as an array goes in and comes
out as raw memory, packed and unpacked by the `onnx` package.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

if TYPE_CHECKING:
    from tests.conformance.cases import Case

_SILENT = 4
# What numpy has no type for, as onnxruntime calls it → TensorProto.DataType.
_RAW = {
    f"tensor({name.lower()})": onnx.TensorProto.DataType.Value(name)
    for name in onnx.TensorProto.DataType.keys()  # noqa: SIM118 - no dict
    if name.startswith(("BFLOAT", "FLOAT8", "FLOAT4", "INT4", "UINT4", "INT2", "UINT2"))
}


class DoesNotLoadError(Exception):
    """onnxruntime refuses the model."""


class DoesNotRunError(Exception):
    """onnxruntime fails while it runs the model."""


def run_in_process(case: Case) -> list[Any]:
    """Return the outputs of a case.

    Raises:
        DoesNotLoadError: By onnxruntime.
        DoesNotRunError: By onnxruntime.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    try:
        session = ort.InferenceSession(case.model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise DoesNotLoadError(str(error)) from error
    run_options = ort.RunOptions()
    run_options.log_severity_level = _SILENT
    names = [node.name for node in session.get_inputs()]
    outputs = session.get_outputs()
    feeds = dict(zip(names, case.inputs, strict=True))
    try:
        if any(node.type in _RAW for node in (*session.get_inputs(), *outputs)):
            kinds = {node.name: node.type for node in session.get_inputs()}
            values = {name: _to_value(array, kinds[name]) for name, array in feeds.items()}
            results = session.run_with_ort_values(None, values, run_options)
            return [_from_value(v, o.type) for v, o in zip(results, outputs, strict=True)]
        return session.run(None, feeds, run_options)
    except Exception as error:
        raise DoesNotRunError(str(error)) from error


def is_expected(case: Case, outputs: list[Any]) -> bool:
    """Return whether outputs are those of the case, within its tolerance."""
    return len(outputs) == len(case.expected) and all(
        _is_close(output, expected, case)
        for output, expected in zip(outputs, case.expected, strict=True)
    )


def _is_close(output: Any, expected: Any, case: Case) -> bool:
    if isinstance(expected, list):
        return (
            isinstance(output, list)
            and len(output) == len(expected)
            and all(_is_close(*pair, case) for pair in zip(output, expected, strict=True))
        )
    if expected is None or output is None:
        return expected is output
    if output.shape != expected.shape:
        return False
    if expected.dtype.kind in "OSU":
        return output.tolist() == expected.tolist()
    if output.dtype != expected.dtype:
        return False
    if expected.dtype.type.__module__ != "numpy":
        # float32 holds all elements of the types that numpy has not.
        output, expected = output.astype(np.float32), expected.astype(np.float32)
    return np.allclose(output, expected, case.rtol, case.atol, equal_nan=True)


def _to_value(array: np.ndarray, kind: str) -> ort.OrtValue:
    element = _RAW.get(kind)
    if element is None:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    value = ort.OrtValue.ortvalue_from_shape_and_type(array.shape, element, "cpu")
    data = numpy_helper.from_array(array).raw_data
    ctypes.memmove(value.data_ptr(), data, len(data))
    return value


def _from_value(value: ort.OrtValue, kind: str) -> np.ndarray:
    element = _RAW.get(kind)
    if element is None:
        return value.numpy()
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    proto = onnx.TensorProto(data_type=element, dims=value.shape(), raw_data=data)
    return numpy_helper.to_array(proto)
