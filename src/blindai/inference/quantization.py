"""Make the int8 form of a model: dynamic quantisation, with constant weights of 8-bit integers.

Each product of an FP32 matrix with a constant one becomes a product of integers. The constant
is quantised here, once, one scale for each of its columns, around zero; what it is multiplied
with is quantised at each run, one scale for the whole tensor. Convolutions stay as they are:
onnxruntime computes integer ones more slowly than FP32 ones.

Always true: the same file gives the same form on every machine. So weights have 7 bits, of
-64 to 63: sums of two products then fit 16 bits, on which processors without VNNI rely.

Specification: ONNX operators DynamicQuantizeLinear-11 and MatMulInteger-10.
"""

from __future__ import annotations

import os
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from google.protobuf.message import Error
from onnx import numpy_helper

from blindai.errors import InvalidModel, Overloaded
from blindai.inference.onnx_file import load_outline

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    Array = np.ndarray[Any, np.dtype[Any]]

_MIN_OPSET: Final = 11
_LARGEST: Final = 63
_MATRIX: Final = 2


def quantize_int8(source: Path, target: Path) -> int:
    """Write the int8 form of a model. Slow: to be called in a worker thread.

    Args:
        source: An ONNX file.
        target: Where the form is to be; must not exist.

    Returns:
        Its size in bytes.

    Raises:
        InvalidModel: Not an ONNX file, or there is nothing in it to quantise.
        Overloaded: No memory, or no room on the disk.
    """
    load_outline(source)
    try:
        model = onnx.load_model(source, load_external_data=False)
        if not _Quantizer(model).run():
            msg = (
                "expected products with constant FP32 matrices (MatMul, Gemm), which is what "
                "int8 is for, came none: choose another precision"
            )
            raise InvalidModel(msg)
        data = model.SerializeToString()
    except MemoryError:
        msg = "no memory to quantise the model"
        raise Overloaded(msg, retry_after=30.0) from None
    except (Error, ValueError, TypeError, IndexError) as error:
        msg = f"the model cannot be quantised: {type(error).__name__}"
        raise InvalidModel(msg) from error
    try:
        _write(target, data)
    except OSError as error:
        target.unlink(missing_ok=True)
        msg = f"no room for the int8 form of the model: {error.strerror}"
        raise Overloaded(msg, retry_after=30.0) from error
    return len(data)


class _Quantizer:
    """Rewrites one model in place."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._graph = model.graph
        self._constants = {
            name: tensor
            for name, tensor in _constants(model.graph)
            if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == _MATRIX
        }
        self._names = {name for node in model.graph.node for name in (*node.input, *node.output)}
        self._numbers = count()
        self._activations: dict[str, tuple[str, str, str]] = {}
        self._weights: dict[tuple[str, bool], tuple[str, str, str] | None] = {}
        self._nodes: list[onnx.NodeProto] = []

    def run(self) -> int:
        """Return how many products are of integers now."""
        opset = max(o.version for o in self._model.opset_import if o.domain in {"", "ai.onnx"})
        if opset < _MIN_OPSET:
            msg = f"int8: expected a model of opset {_MIN_OPSET} or newer, came {opset}"
            raise InvalidModel(msg)
        done = 0
        for node in self._graph.node:
            if node.op_type in {"MatMul", "Gemm"} and node.domain in {"", "ai.onnx"}:
                done += self._product(node)
            else:
                self._nodes.append(node)
        nodes = list(self._nodes)
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        self._drop_unused()
        return done

    def _product(self, node: onnx.NodeProto) -> bool:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        weight = None
        if not attributes.get("transA") and attributes.get("alpha", 1.0) == 1.0:
            weight = self._weight(node.input[1], transposed=bool(attributes.get("transB")))
        if weight is None:
            self._nodes.append(node)
            return False
        bias = node.input[2] if len(node.input) > _MATRIX else ""
        if bias and attributes.get("beta", 1.0) != 1.0:
            self._nodes.append(node)
            return False
        quantized, scale, zero = weight
        left, left_scale, left_zero = self._activation(node.input[0])
        total, real, factor = self._name(), self._name(), self._name()
        product = self._name() if bias else node.output[0]
        self._add("MatMulInteger", [left, quantized, left_zero, zero], [total])
        self._add("Cast", [total], [real], to=onnx.TensorProto.FLOAT)
        self._add("Mul", [left_scale, scale], [factor])
        self._add("Mul", [real, factor], [product])
        if bias:
            self._add("Add", [product, bias], [node.output[0]])
        return True

    def _activation(self, name: str) -> tuple[str, str, str]:
        """Return the names of a tensor's integers, scale and zero point."""
        if name not in self._activations:
            made = self._name(), self._name(), self._name()
            self._add("DynamicQuantizeLinear", [name], list(made))
            self._activations[name] = made
        return self._activations[name]

    def _weight(self, name: str, *, transposed: bool) -> tuple[str, str, str] | None:
        """Return the names of a constant's integers, scales and zero points; `None`: not one."""
        key = name, transposed
        if key not in self._weights:
            tensor = self._constants.get(name)
            self._weights[key] = None if tensor is None else self._quantized(tensor, transposed)
        return self._weights[key]

    def _quantized(self, tensor: onnx.TensorProto, transposed: bool) -> tuple[str, str, str] | None:  # noqa: FBT001 - private
        matrix = numpy_helper.to_array(tensor)
        matrix = matrix.T if transposed else matrix
        if not matrix.size or not np.isfinite(matrix).all():
            return None
        scales = np.abs(matrix).max(axis=0) / np.float32(_LARGEST)
        # A column of zeros, or of what is next to nothing, has no scale of its own.
        scales = np.where(scales > np.finfo(np.float32).tiny, scales, np.float32(1))
        integers = np.rint(matrix / scales).astype(np.int8)
        return (
            self._constant(integers),
            self._constant(scales.astype(np.float32)),
            self._constant(np.zeros(scales.shape, np.int8)),
        )

    def _constant(self, array: Array) -> str:
        name = self._name()
        self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _add(
        self, kind: str, inputs: list[str], outputs: list[str], *, to: int | None = None
    ) -> None:
        node = onnx.helper.make_node(kind, inputs, outputs, name=outputs[0])
        if to is not None:
            node.attribute.append(onnx.helper.make_attribute("to", to))
        self._nodes.append(node)

    def _name(self) -> str:
        return next(n for i in self._numbers if (n := f"blindai_int8_{i}") not in self._names)

    def _drop_unused(self) -> None:
        used = set(_used(self._graph.node)) | {value.name for value in self._graph.output}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        nodes = [n for n in self._graph.node if n.op_type != "Constant" or used & set(n.output)]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)
        del self._graph.node[:]
        self._graph.node.extend(nodes)


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    overridable = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if tensor.name not in overridable:
            yield tensor.name, tensor
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield node.output[0], attribute.t


def _used(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Yield the names of what nodes take, also inside their own graphs."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _used(graph.node)
                yield from (value.name for value in graph.output)


def _write(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    # Readable for nobody else, whatever the umask: the weights are somebody's secret.
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
