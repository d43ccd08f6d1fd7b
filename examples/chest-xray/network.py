"""Write COVID-Net's architecture as ONNX: a chest X-ray in, probabilities of three findings out.

The architecture is that of the paper (Wang, Lin and Wong, 2020): a convolution of 7 by 7, then four
groups of blocks that project, expand, convolve each channel by itself, project and extend, where a
group's first convolution of 1 by 1 is added to each of its blocks; two full layers; softmax. At 480
by 480, twice the paper's side and as its authors' later checkpoints want it, one more pooling keeps
the full layers at the paper's size.

The weights are random, from a seed. Nothing that comes out means anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

if TYPE_CHECKING:
    import onnx

SIDE = 480
FINDINGS = ("normal", "pneumonia", "COVID-19")
# Channels of each group, and how many blocks it has.
GROUPS = ((56, 3), (112, 4), (216, 6), (424, 3))
FULL = (1024, 256)
SEED = 2020
Array = np.ndarray[Any, Any]


class Graph:
    """Nodes and tensors of the network, and the parts that it is made of."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(SEED)

    def add(self, kind: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = to or f"x{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def random(self, *shape: int, inputs: int, gain: float = 2.0) -> str:
        """Return the name of a tensor of random weights that keep what they get as large."""
        name = f"c{len(self.tensors)}"
        array = self._rng.normal(0, np.sqrt(gain / inputs), shape).astype(np.float32)
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def convolve(self, x: str, channels: tuple[int, int], side: int = 1, stride: int = 1) -> str:
        """Convolve, and keep what is positive."""
        into, out = channels
        weights = self.random(out, into, side, side, inputs=into * side * side)
        pads, strides = [side // 2] * 4, [stride] * 2
        return self.add("Relu", self.add("Conv", x, weights, pads=pads, strides=strides))

    def block(self, x: str, channels: int) -> str:
        """Project, expand, convolve each channel by itself, project, extend."""
        half, wide = channels // 2, channels * 3 // 4
        x = self.convolve(x, (channels, half))
        x = self.convolve(x, (half, wide))
        each = self.random(wide, 1, 3, 3, inputs=9)
        x = self.add("Relu", self.add("Conv", x, each, pads=[1] * 4, group=wide))
        x = self.convolve(x, (wide, half))
        return self.convolve(x, (half, channels))

    def group(self, x: str, into: int, channels: int, blocks: int) -> str:
        """Halve the side; each block adds to what the ones before it, and a shortcut, gave."""
        pooled = self.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        shortcut = self.convolve(pooled, (into, channels))
        x = shortcut
        for _ in range(blocks):
            both = self.add("Add", self.block(x, channels), shortcut)
            x = self.add("Mul", both, self.constant(0.5))  # trained weights would keep it small
        return x

    def constant(self, value: float) -> str:
        """Return the name of a number."""
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.array(value, np.float32), name))
        return name


def to_onnx() -> onnx.ModelProto:
    """Return X-rays float32[n, 480, 480, 3], from 0 to 1 → probabilities float32[n, 3]."""
    graph = Graph()
    x = graph.add("Transpose", "xrays", perm=[0, 3, 1, 2])
    into = GROUPS[0][0]
    x = graph.convolve(x, (3, into), side=7, stride=2)
    for channels, blocks in GROUPS:
        x = graph.group(x, into, channels, blocks)
        into = channels
    x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = graph.add("Flatten", x)
    width = into * (SIDE // 64) ** 2
    for size in FULL:
        x = graph.add("Relu", graph.add("MatMul", x, graph.random(width, size, inputs=width)))
        width = size
    x = graph.add("MatMul", x, graph.random(width, len(FINDINGS), inputs=width, gain=1))
    graph.add("Softmax", x, to="findings", axis=1)
    made = helper.make_graph(
        graph.nodes,
        "covidnet",
        [helper.make_tensor_value_info("xrays", TensorProto.FLOAT, ["n", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("findings", TensorProto.FLOAT, ["n", len(FINDINGS)])],
        graph.tensors,
    )
    model = helper.make_model(
        made,
        producer_name="random weights",
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    checker.check_model(model)
    return model
