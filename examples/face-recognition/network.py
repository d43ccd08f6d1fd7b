"""Write dlib's face descriptor as one ONNX file: pixels in, 128 numbers that stand for a face out.

A residual network of 29 layers. Weights come in the format of TensorFlow.js: most numbers in one
byte, between the smallest and the largest of their tensor, and a list of what is where. The
graph takes pixels as a camera gives them: what is done to them is pinned with the weights.
"""

from __future__ import annotations

import json
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

SIDE = 150
MEAN = (122.782, 117.001, 104.298)  # of red, green and blue in what it was trained on
# Groups of blocks in their order; `down` halves the sides, and doubles the channels but at the end.
BLOCKS = (
    *("32_1", "32_2", "32_3"),
    *("64_down", "64_1", "64_2", "64_3"),
    *("128_down", "128_1", "128_2"),
    *("256_down", "256_1", "256_2", "256_down_out"),
)
Array = np.ndarray[Any, Any]


def read_weights(manifest: Path, content: bytes) -> dict[str, Array]:
    """Return the tensors by name, float32, with the channels last as TensorFlow has them."""
    position, weights = 0, {}
    for entry in json.loads(manifest.read_text())[0]["weights"]:
        stored = entry.get("quantization", {"dtype": entry["dtype"], "scale": 1, "min": 0})
        raw = np.frombuffer(content, stored["dtype"], prod(entry["shape"]), position)
        position += raw.nbytes
        values = raw.astype(np.float32) * np.float32(stored["scale"]) + np.float32(stored["min"])
        weights[entry["name"]] = values.reshape(entry["shape"])
    if position != len(content):
        msg = f"{manifest}: expected weights of {position} bytes, came {len(content)}"
        raise ValueError(msg)
    return weights


class Graph:
    """Nodes and tensors of the network, and the two kinds of blocks that it is made of."""

    def __init__(self, weights: dict[str, Array]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self._weights = weights

    def add(self, kind: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = to or f"x{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any, kind: Any = np.float32) -> str:
        """Return the name of a tensor with this value."""
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def convolve(self, x: str, name: str, *, stride: int = 1, pad: int = 1) -> str:
        """Convolve, and scale each channel: the scale is multiplied into the filters."""
        scale = self._weights[f"{name}/scale/weights"]
        filters = self._weights[f"{name}/conv/filters"].transpose(3, 2, 0, 1)
        bias = self._weights[f"{name}/conv/bias"] * scale + self._weights[f"{name}/scale/biases"]
        folded = self.constant(filters * scale[:, None, None, None])
        return self.add(
            "Conv", x, folded, self.constant(bias), strides=[stride] * 2, pads=[pad] * 4
        )

    def residual(self, x: str, name: str) -> str:
        """Add what two convolutions make of x to it."""
        inner = self.add("Relu", self.convolve(x, f"{name}/conv1"))
        return self.add("Relu", self.add("Add", self.convolve(inner, f"{name}/conv2"), x))

    def residual_down(self, x: str, name: str, *, widen: int, pad: int) -> str:
        """Do the same at half the side, with `widen` more channels, of zeros, in x.

        An even side gives one row and one column less in the convolution than in the mean: `pad` of
        zeros make up for them, at the end.
        """
        inner = self.add("Relu", self.convolve(x, f"{name}/conv1", stride=2, pad=0))
        inner = self.convolve(inner, f"{name}/conv2")
        inner = self.add("Pad", inner, self.constant([0] * 6 + [pad] * 2, np.int64))
        mean = self.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
        mean = self.add("Pad", mean, self.constant([0] * 5 + [widen, 0, 0], np.int64))
        return self.add("Relu", self.add("Add", mean, inner))


def to_onnx(weights: dict[str, Array]) -> onnx.ModelProto:
    """Return faces uint8[n, 150, 150, 3], red first → descriptors float32[n, 128]."""
    graph = Graph(weights)
    graph.nodes.append(helper.make_node("Cast", ["faces"], ["pixels"], to=TensorProto.FLOAT))
    x = graph.add("Div", graph.add("Sub", "pixels", graph.constant(MEAN)), graph.constant(255))
    x = graph.add("Transpose", x, perm=[0, 3, 1, 2])
    x = graph.add("Relu", graph.convolve(x, "conv32_down", stride=2, pad=0))
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])
    side, channels = 35, 32
    for block in BLOCKS:
        name = f"conv{block}"
        if "down" not in block:
            x = graph.residual(x, name)
            continue
        widen = 0 if block.endswith("out") else channels
        x = graph.residual_down(x, name, widen=widen, pad=1 - side % 2)
        side, channels = side // 2, channels + widen
    x = graph.add("ReduceMean", x, graph.constant([2, 3], np.int64), keepdims=0)
    graph.add("MatMul", x, graph.constant(weights["fc"]), to="descriptors")
    made = helper.make_graph(
        graph.nodes,
        "face",
        [helper.make_tensor_value_info("faces", TensorProto.UINT8, ["n", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, ["n", 128])],
        graph.tensors,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model)
    return model
