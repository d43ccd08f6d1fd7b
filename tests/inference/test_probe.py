"""The probe tells models that keep rows apart from those that do not, with real runs."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from blindai.errors import InvalidInput
from blindai.inference.probe import probe_model, same_result
from blindai.inference.tensors import DataType, Tensor

from . import models
from .fakes import FakeModel


def graph(nodes, output=("n", 4), weights=(), inputs=(("x", TensorProto.FLOAT, ("n", 4)),), **kind):
    return models.model(
        nodes,
        [models.value(*each) for each in inputs],
        [models.value("y", kind.get("element", TensorProto.FLOAT), output)],
        weights,
    ).SerializeToString()


def matrix(name="w", shape=(4, 4), dtype=np.float32):
    rng = np.random.default_rng(1)
    return numpy_helper.from_array((rng.standard_normal(shape) * 5).astype(dtype), name)


def test_a_perceptron_keeps_rows_apart(load):
    """Each row is a product of its own."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Softmax", ["a"], ["y"], axis=-1),
    ]
    assert probe_model(load(graph(nodes, weights=[matrix()]))).batches


def test_text_and_flags_keep_rows_apart(load):
    """Random inputs are made for every kind of element, except the too coarse."""
    for datatype in models.ELEMENTS:
        found = probe_model(load(models.identity(datatype)))
        assert found.batches is not datatype.startswith("FP8"), datatype
        assert found.batches or found.reason == f"{datatype} is too coarse to compare"


def test_one_scale_for_the_whole_batch_is_found(load):
    """Dynamic quantisation, where a loud neighbour drowns the others."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    found = probe_model(load(graph(nodes)))
    assert not found.batches
    assert "depends on the other rows" in found.reason


@pytest.mark.parametrize("words", [20, 200, 2000])
def test_one_scale_for_all_tokens_is_found(load, words):
    """Of tokens 0 and 1 every row has both, and so the same scale: larger ones tell."""
    loudness = np.linspace(1, 20, words, dtype=np.float32)[:, None]
    table = numpy_helper.from_array(loudness * np.ones((words, 4), np.float32), "table")
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["e"]),
        helper.make_node("DynamicQuantizeLinear", ["e"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    tokens = ("x", TensorProto.INT64, ("n", "seq"))
    data = graph(nodes, output=("n", "seq", 4), weights=[table], inputs=[tokens])
    found = probe_model(load(data))
    assert not found.batches
    assert "depends on the other rows" in found.reason


@pytest.mark.parametrize("words", [2, 2000])
def test_tokens_keep_rows_apart_whatever_their_number(load, words):
    """Larger integers are tried, and not held against a model that refuses them."""
    table = matrix("table", (words, 4))
    nodes = [helper.make_node("Gather", ["table", "x"], ["y"])]
    tokens = ("x", TensorProto.INT64, ("n", "seq"))
    data = graph(nodes, output=("n", "seq", 4), weights=[table], inputs=[tokens])
    assert probe_model(load(data)).batches


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax"])
def test_a_sum_over_the_batch_is_found(load, op):
    """A row minus the batch's mean is no row of its own."""
    axes = numpy_helper.from_array(np.array([0], np.int64), "axes")
    nodes = [
        helper.make_node(op, ["x", "axes"], ["m"], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    found = probe_model(load(graph(nodes, weights=[axes])))
    assert not found.batches


def test_an_output_without_rows_is_found(load):
    """Whatever the graph says of its shape."""
    flat = numpy_helper.from_array(np.array([-1], np.int64), "flat")
    nodes = [helper.make_node("Reshape", ["x", "flat"], ["y"])]
    found = probe_model(load(graph(nodes, output=("n",), weights=[flat])))
    assert not found.batches
    assert "rows as the inputs have" in found.reason


def test_nan_that_spreads_is_found(load):
    """A neighbour's NaN must stay with the neighbour."""
    axes = numpy_helper.from_array(np.array([0], np.int64), "axes")
    zero = numpy_helper.from_array(np.array(0, np.float32), "zero")
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["s"], keepdims=1),
        helper.make_node("Mul", ["s", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    found = probe_model(load(graph(nodes, weights=[axes, zero])))
    assert not found.batches


def test_a_graph_without_batch_axis_is_not_even_run():
    """Its shape says no."""
    model = FakeModel()
    model.outputs = ()
    found = probe_model(model)
    assert (found.batches, model.runs) == (False, [])


def test_a_model_that_refuses_random_inputs_is_not_batched():
    """What was not seen to work is not done."""

    class Picky(FakeModel):
        def compute(self, tensor, outputs):
            raise InvalidInput

    found = probe_model(Picky())
    assert (found.batches, found.reason) == (False, "random inputs fail: InvalidInput")


def test_a_model_that_fails_only_in_a_batch_is_not_batched():
    """And the reason says so."""

    class Single(FakeModel):
        def compute(self, tensor, outputs):
            if len(tensor.array) > 2:
                raise InvalidInput
            return super().compute(tensor, outputs)

    found = probe_model(Single())
    assert (found.batches, found.reason) == (False, "a batch fails: InvalidInput")


def test_a_probe_ends_in_time():
    """A model that runs for minutes is stopped, and not batched."""
    model = FakeModel()
    with model.gate_shut():
        found = probe_model(model, seconds=0.05)
    assert (found.batches, found.reason) == (False, "random inputs fail: DeadlineExceeded")
    assert model.stopped == 1


def fp32(*values):
    return Tensor("y", np.array(values, np.float32), DataType.FP32)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (fp32(1, 2), fp32(1, 2.0001), True),
        (fp32(1, 2), fp32(1, 2.001), False),
        (fp32(1e-6, 2), fp32(2e-6, 2), True),
        (fp32(np.nan, 2), fp32(np.nan, 2), True),
        (fp32(np.nan, 2), fp32(1, 2), False),
        (fp32(1, 2), fp32(np.inf, 2), False),
        (fp32(np.inf), fp32(-np.inf), False),
        (fp32(), fp32(), True),
        (fp32(1), fp32(1, 1), False),
    ],
)
def test_results_are_compared_on_their_own_scale(one, other, same):
    """By the largest element; NaN and infinities have to stand in the same places."""
    assert same_result(one, other) is same
