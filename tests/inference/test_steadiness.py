"""A graph is steady only if its operators' work follows from the shapes of its inputs."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from blindai.inference.onnx_file import load_outline
from blindai.inference.steadiness import is_steady

INDICES = numpy_helper.from_array(np.array([2, 3], np.int64), "indices")


def model(*nodes, weights=(), inputs=("x",), functions=()):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs]
    last = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", values, [last], list(weights))
    return helper.make_model(graph, functions=list(functions))


def node(kind, *inputs, output="y", **attributes):
    return helper.make_node(kind, list(inputs), [output], **attributes)


def test_arithmetic_is_steady():
    """A perceptron."""
    hidden = node("MatMul", "x", "w", output="h")
    assert is_steady(model(hidden, node("Relu", "h"), weights=[INDICES]))


@pytest.mark.parametrize("kind", ["Reshape", "Expand", "Tile", "Slice", "TopK", "Pad"])
def test_sizes_from_weights_or_shapes_are_steady_and_from_data_are_not(kind):
    """The same operator with its sizes from the three places."""
    assert is_steady(model(node(kind, "x", "indices"), weights=[INDICES]))
    shape = node("Shape", "x", output="s")
    twice = node("Add", "s", "s", output="t")
    assert is_steady(model(shape, twice, node(kind, "x", "t")))
    assert not is_steady(model(node(kind, "x", "n"), inputs=("x", "n")))
    cast = node("Cast", "x", output="n", to=TensorProto.INT64)
    assert not is_steady(model(cast, node(kind, "x", "n")))


def test_a_weight_that_may_be_overridden_is_data():
    """An initializer that is an input too."""
    inputs = ("x", "indices")
    assert not is_steady(model(node("Expand", "x", "indices"), weights=[INDICES], inputs=inputs))


@pytest.mark.parametrize("kind", ["NonZero", "ConstantOfShape", "Range", "Compress", "LSTM", "Foo"])
def test_what_is_not_known_is_not_steady(kind):
    """Operators whose outputs are as large as data says, and unknown ones."""
    assert not is_steady(model(node(kind, "x")))


def test_a_size_by_chance_is_not_steady():
    """Random numbers are the same in no two runs."""
    chance = node("RandomUniform", output="r", shape=[1])
    assert not is_steady(model(chance, node("ConstantOfShape", "r")))


@pytest.mark.parametrize("kind", ["If", "Loop", "Scan", "Relu"])
@pytest.mark.parametrize("argument", ["x", "indices"])
def test_graphs_inside_are_not_steady(kind, argument):
    """Branches and loops, also on weights, and under a harmless name."""
    inner = helper.make_graph([node("Relu", "x")], "inner", [], [])
    assert not is_steady(model(node(kind, argument, body=inner), weights=[INDICES]))


def test_other_domains_and_functions_are_not_steady():
    """Their names may be those of harmless operators."""
    assert not is_steady(model(node("Relu", "x", domain="com.microsoft")))
    opset = helper.make_opsetid("", 21)
    function = helper.make_function("own", "Relu", ["a"], ["b"], [node("Abs", "a")], [opset])
    assert not is_steady(model(node("Relu", "x"), functions=[function]))


@pytest.mark.parametrize("nodes", [100, 60_000])
def test_small_trees_are_steady(nodes):
    """A forest whose longest way is short."""
    trees = node(
        "TreeEnsembleRegressor", "x", domain="ai.onnx.ml", nodes_values=np.zeros(nodes).tolist()
    )
    assert is_steady(model(trees)) is (nodes == 100)


@pytest.mark.parametrize("kind", ["Relu", "NonZero"])
def test_the_outline_of_a_file_says_it(tmp_path, kind):
    """What the scheduler asks for is read with the file."""
    path = tmp_path / "m.onnx"
    onnx.save(model(node(kind, "x")), path)
    assert load_outline(path).is_steady is (kind == "Relu")
