"""Write a WaveNet as ONNX: what it remembers goes in, that and 25 ms of sound come out.

The architecture is that of WaveNet (van den Oord and others, 2016): gated convolutions of two taps,
each looking back twice as far as the one before, sums of what each of them heard, and one of 256
levels for the next sample, drawn with the probabilities that come out. Each layer keeps what it
still has to see again, so a sample costs the same at any length. The loop over samples is in the
graph: one run is a piece of sound.

The weights are random, from a seed: no trained ones are to be had from a package index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

if TYPE_CHECKING:
    import onnx

RATE, PIECE = 16_000, 400
LEVELS, CHANNELS, SKIP = 256, 32, 64
DILATIONS = tuple(2**power for power in range(10))
MEMORY = sum(DILATIONS)  # samples that all layers together look back
SEED = 1
# The next random number of a row that any computer draws the same: Lehmer's, with Park and
# Miller's factor. Neither is for keys.
FACTOR, MODULUS = 48_271, 2**31 - 1
LOUD, SPREAD = 0.25, 0.01  # of 1: how high the likeliest level can be, and how far others are
Array = np.ndarray[Any, Any]


class Graph:
    """Nodes and tensors of a graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        return self.add_many(kind, *inputs, to=[to or f"x{len(self.nodes)}"], **attributes)[0]

    def add_many(self, kind: str, *inputs: str, to: list[str], **attributes: Any) -> list[str]:
        """Add a node and return the names of its outputs."""
        self.nodes.append(helper.make_node(kind, list(inputs), to, **attributes))
        return to

    def cast(self, x: str, name: str, kind: int) -> str:
        """Give x another element type, and a name."""
        self.nodes.append(helper.make_node("Cast", [x], [name], to=kind))
        return name

    def constant(self, value: Any, kind: Any = np.float32) -> str:
        """Return the name of a tensor with this value."""
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name


def to_onnx() -> onnx.ModelProto:
    """Return the model.

    Inputs and outputs, the latter with `next_` before their names:
        memory: float32[1023, 32], what the layers have to see again; zeros at the beginning.
        level: int64[1], the last sample.
        random: int64[1], the last random number.
    And `sound`, uint8[400]: levels of 25 ms, in µ-law.
    """
    caches = [f"cache{number}" for number in range(len(DILATIONS))]
    grown = [f"next_{name}" for name in caches]
    graph = Graph()
    sizes = graph.constant(DILATIONS, np.int64)
    graph.add_many("Split", "memory", sizes, to=caches, axis=0)
    begin = [graph.constant(PIECE, np.int64), graph.constant(True, np.bool_)]
    graph.add_many(
        "Loop",
        *(*begin, "level", "random", *caches),
        to=["next_level", "next_random", *grown, "levels"],
        body=sample(caches),
    )
    graph.add("Concat", *grown, to="next_memory", axis=0)
    flat = graph.add("Reshape", "levels", graph.constant([PIECE], np.int64))
    graph.cast(flat, "sound", TensorProto.UINT8)
    memory, one = [MEMORY, CHANNELS], [1]
    made = helper.make_graph(
        graph.nodes,
        "wavenet",
        [
            helper.make_tensor_value_info("memory", TensorProto.FLOAT, memory),
            helper.make_tensor_value_info("level", TensorProto.INT64, one),
            helper.make_tensor_value_info("random", TensorProto.INT64, one),
        ],
        [
            helper.make_tensor_value_info("next_memory", TensorProto.FLOAT, memory),
            helper.make_tensor_value_info("next_level", TensorProto.INT64, one),
            helper.make_tensor_value_info("next_random", TensorProto.INT64, one),
            helper.make_tensor_value_info("sound", TensorProto.UINT8, [PIECE]),
        ],
        graph.tensors,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model)
    return model


def sample(caches: list[str]) -> onnx.GraphProto:
    """Return one turn of the loop: the last sample → the next, the caches one sample on."""
    rng = np.random.default_rng(SEED)
    graph = Graph()

    def weights(*shape: int, gain: float = 1.0) -> str:
        return graph.constant(rng.normal(0, gain / np.sqrt(shape[0]), shape))

    zero, one = (graph.constant([number], np.int64) for number in (0, 1))
    end = graph.constant([2**31], np.int64)
    height = (np.arange(LEVELS) - LEVELS / 2) / (LEVELS / 2)
    x = graph.constant(np.outer(height, rng.normal(0, 2, CHANNELS)))
    x = graph.add("Gather", x, "level")
    heard = []
    for cache in caches:
        past = graph.add("Slice", cache, zero, one)
        left = graph.add("Slice", cache, one, end)
        graph.add("Concat", left, x, to=f"next_{cache}", axis=0)
        both = graph.add("Concat", past, x, axis=1)
        product = graph.add("MatMul", both, weights(2 * CHANNELS, 2 * CHANNELS, gain=2))
        halves = [f"{cache}filter", f"{cache}gate"]
        graph.add_many("Split", product, to=halves, axis=1, num_outputs=2)
        gate = graph.add("Sigmoid", halves[1])
        heard.append(graph.add("Mul", graph.add("Tanh", halves[0]), gate))
        x = graph.add("Add", x, graph.add("MatMul", heard[-1], weights(CHANNELS, CHANNELS)))
    # What each layer heard, each times a matrix of its own, added up: one product.
    skip = graph.add("Concat", *heard, axis=1)
    skip = graph.add("MatMul", skip, weights(len(caches) * CHANNELS, SKIP, gain=4))
    skip = graph.add("MatMul", graph.add("Tanh", skip), weights(SKIP, 1, gain=3))
    # A trained network has 256 numbers here; random ones would hiss. This one says where the next
    # level is likely to be, in a bell around it, so that something is heard.
    bell = -((height / SPREAD) ** 2) / 2
    scores = graph.add("Mul", graph.add("Tanh", skip), graph.constant(height * LOUD / SPREAD**2))
    scores = graph.add("Add", scores, graph.constant(bell))
    draw(graph, graph.add("Softmax", scores, axis=1))
    value = helper.make_tensor_value_info
    cached = list(zip(caches, DILATIONS, strict=True))
    return helper.make_graph(
        graph.nodes,
        "sample",
        [
            value("turn", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("level", TensorProto.INT64, [1]),
            value("random", TensorProto.INT64, [1]),
            *(value(name, TensorProto.FLOAT, [size, CHANNELS]) for name, size in cached),
        ],
        [
            value("more", TensorProto.BOOL, []),
            value("next_level", TensorProto.INT64, [1]),
            value("next_random", TensorProto.INT64, [1]),
            *(value(f"next_{name}", TensorProto.FLOAT, [size, CHANNELS]) for name, size in cached),
            value("said", TensorProto.INT64, [1]),
        ],
        graph.tensors,
    )


def draw(graph: Graph, probabilities: str) -> None:
    """Add what draws a level: as many as have a sum of probabilities below a random number."""
    product = graph.add("Mul", "random", graph.constant([FACTOR], np.int64))
    modulus = graph.constant([MODULUS], np.int64)
    graph.add("Mod", product, modulus, to="next_random")
    number = graph.cast("next_random", "number", TensorProto.FLOAT)
    share = graph.add("Div", number, graph.constant([MODULUS]))
    sums = graph.add("CumSum", probabilities, graph.constant(1, np.int64))
    below = graph.cast(graph.add("Less", sums, share), "below", TensorProto.INT64)
    count = graph.add("ReduceSum", below, graph.constant([1], np.int64), keepdims=0)
    level = graph.add("Min", count, graph.constant([LEVELS - 1], np.int64), to="next_level")
    graph.add("Identity", level, to="said")
    graph.add("Identity", "go", to="more")
