"""Small recurrent models: a cell, a frame at a time, a decoder that knows its past."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.inference.models import model, value

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def weight(name: str, *shape: int, seed: int = 0):
    """Return random weights."""
    array = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(array, name)


def cell(width: int = 8) -> bytes:
    """A recurrent cell: x [batch, 3] and h [batch, width] give next_h and y [batch, 2]."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["h", "u"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Tanh", ["c"], ["next_h"]),
        helper.make_node("MatMul", ["next_h", "v"], ["y"]),
    ]
    inputs = [value("x", FLOAT, ["batch", 3]), value("h", FLOAT, ["batch", width])]
    outputs = [value("y", FLOAT, ["batch", 2]), value("next_h", FLOAT, ["batch", width])]
    weights = [weight("w", 3, width), weight("u", width, width, seed=1), weight("v", width, 2)]
    return model(nodes, inputs, outputs, weights).SerializeToString()


def frames(window: int = 16) -> bytes:
    """A WaveNet's way: past [1, window] gives the next sample, and the past moved by it."""
    nodes = [
        helper.make_node("MatMul", ["past", "w"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["sample"]),
        helper.make_node("Slice", ["past", "one", "end", "axis"], ["rest"]),
        helper.make_node("Concat", ["rest", "sample"], ["present"], axis=1),
    ]
    weights = [weight("w", window, 1)] + [
        numpy_helper.from_array(np.array([number], np.int64), name)
        for name, number in {"one": 1, "end": window, "axis": 1}.items()
    ]
    outputs = [value("sample", FLOAT, [1, 1]), value("present", FLOAT, [1, window])]
    return model(nodes, [value("past", FLOAT, [1, window])], outputs, weights).SerializeToString()


def decoder(vocabulary: int = 11, width: int = 4) -> bytes:
    """A decoder: tokens, mask, position and a past that grows give scores and the present.

    Scores are the sum of all embeddings seen so far, times the mask's length, times weights.
    """
    nodes = [
        helper.make_node("Gather", ["embedding", "tokens"], ["new"]),
        helper.make_node("Concat", ["past", "new"], ["present"], axis=1),
        helper.make_node("ReduceSum", ["present", "axis1"], ["seen"], keepdims=1),
        helper.make_node("ReduceSum", ["mask", "axis1"], ["length"], keepdims=1),
        helper.make_node("Add", ["length", "position"], ["offset"]),
        helper.make_node("Cast", ["offset"], ["scale"], to=FLOAT),
        helper.make_node("Unsqueeze", ["scale", "axis1"], ["scale3"]),
        helper.make_node("Mul", ["seen", "scale3"], ["scaled"]),
        helper.make_node("Sin", ["scaled"], ["bent"]),
        helper.make_node("MatMul", ["bent", "out"], ["scores"]),
    ]
    inputs = [
        value("tokens", INT, ["batch", "new"]),
        value("mask", INT, ["batch", "all"]),
        value("position", INT, ["batch", 1]),
        value("past", FLOAT, ["batch", "before", width]),
    ]
    outputs = [
        value("scores", FLOAT, ["batch", 1, vocabulary]),
        value("present", FLOAT, ["batch", "after", width]),
    ]
    weights = [
        weight("embedding", vocabulary, width, seed=3),
        weight("out", width, vocabulary, seed=4),
        numpy_helper.from_array(np.array([1], np.int64), "axis1"),
    ]
    return model(nodes, inputs, outputs, weights).SerializeToString()


def doubling() -> bytes:
    """State that doubles at each step: x [n] gives x twice, end to end."""
    node = helper.make_node("Concat", ["x", "x"], ["y"], axis=0)
    return model([node], [value("x", FLOAT, ["n"])], [value("y", FLOAT, ["m"])]).SerializeToString()


def huge_state(rows: int = 1 << 24) -> bytes:
    """State of a fixed size that is far larger than what a request says of it."""
    node = helper.make_node("Add", ["x", "s"], ["t"])
    shape = [rows, 1024]
    inputs = [value("x", FLOAT, [1]), value("s", FLOAT, shape)]
    return model([node], inputs, [value("t", FLOAT, shape)]).SerializeToString()
