"""Tiny ONNX models for the tests, as the bytes of their files."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from blindai.inference.tensors import DataType

# All but FP4E2M1, for which onnxruntime has no operator on the CPU.
ELEMENTS = {
    DataType.BOOL: TensorProto.BOOL,
    DataType.UINT8: TensorProto.UINT8,
    DataType.UINT16: TensorProto.UINT16,
    DataType.UINT32: TensorProto.UINT32,
    DataType.UINT64: TensorProto.UINT64,
    DataType.INT8: TensorProto.INT8,
    DataType.INT16: TensorProto.INT16,
    DataType.INT32: TensorProto.INT32,
    DataType.INT64: TensorProto.INT64,
    DataType.FP16: TensorProto.FLOAT16,
    DataType.FP32: TensorProto.FLOAT,
    DataType.FP64: TensorProto.DOUBLE,
    DataType.BF16: TensorProto.BFLOAT16,
    DataType.BYTES: TensorProto.STRING,
    DataType.FP8E4M3FN: TensorProto.FLOAT8E4M3FN,
    DataType.FP8E4M3FNUZ: TensorProto.FLOAT8E4M3FNUZ,
    DataType.FP8E5M2: TensorProto.FLOAT8E5M2,
    DataType.FP8E5M2FNUZ: TensorProto.FLOAT8E5M2FNUZ,
    DataType.FP8E8M0: TensorProto.FLOAT8E8M0,
    DataType.INT4: TensorProto.INT4,
    DataType.UINT4: TensorProto.UINT4,
    DataType.INT2: TensorProto.INT2,
    DataType.UINT2: TensorProto.UINT2,
}
# For these, onnxruntime has Cast but no Identity.
ONLY_CAST = {
    DataType.FP8E8M0,
    DataType.INT4,
    DataType.UINT4,
    DataType.INT2,
    DataType.UINT2,
}


def value(name: str, element: int = TensorProto.FLOAT, shape: Sequence | None = ("n",)):
    return helper.make_tensor_value_info(name, element, shape)


def model(nodes: Sequence[NodeProto], inputs, outputs, weights=(), **more) -> ModelProto:
    graph: GraphProto = helper.make_graph(nodes, "tiny", inputs, outputs, list(weights))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_model(graph, opset_imports=opsets, **more)
    made.ir_version = 10
    return made


def identity(datatype: DataType = DataType.FP32, shape: Sequence | None = ("n",)) -> bytes:
    """Return x as y, for any datatype that onnxruntime computes with."""
    element = ELEMENTS[datatype]
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    if datatype in ONLY_CAST:
        nodes = [
            helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["wide"], ["y"], to=element),
        ]
    made = model(nodes, [value("x", element, shape)], [value("y", element, shape)])
    if datatype in ONLY_CAST:
        made.ir_version, made.opset_import[0].version = 13, 25
    return made.SerializeToString()


def padded(constant: float, size: int) -> bytes:
    """Return `add(constant)` as a file of a bit more than `size` bytes."""
    made = ModelProto.FromString(add(constant))
    made.doc_string = "x" * size
    return made.SerializeToString()


def add(constant: float = 1.0) -> bytes:
    """Return x + constant as y, of FP32[n]; other constants are other weights."""
    weight = numpy_helper.from_array(np.array([constant], np.float32), "w")
    node = helper.make_node("Add", ["x", "w"], ["y"])
    return model([node], [value("x")], [value("y")], [weight]).SerializeToString()


def one_node(op: str, inputs: dict[str, tuple], output: tuple, **attributes) -> bytes:
    """Return op(inputs) as y, each given as (element, shape)."""
    node = helper.make_node(op, list(inputs), ["y"], name="the_node", **attributes)
    values = [value(name, *what) for name, what in inputs.items()]
    return model([node], values, [value("y", *output)]).SerializeToString()


def slow(layers: int = 400, width: int = 1000) -> bytes:
    """Many products of matrices: seconds of work for FP32[n, width]."""
    weight = numpy_helper.from_array(np.eye(width, dtype=np.float32), "w")
    names = ["x", *(f"t{i}" for i in range(layers - 1)), "y"]
    nodes = [helper.make_node("MatMul", [left, "w"], [right]) for left, right in pairwise(names)]
    shape = ["n", width]
    return model(
        nodes,
        [value("x", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, shape)],
        [weight],
    ).SerializeToString()
