"""The int8 form of a model: close to the original, the same every time, with no other change."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from blindai.errors import InvalidModel
from blindai.inference.engine import LoadOptions
from blindai.inference.onnx import OnnxEngine
from blindai.inference.quantization import quantize_int8
from blindai.inference.tensors import from_array
from tests.inference.models import identity, model, value

FLOAT = TensorProto.FLOAT
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((16, 8)).astype(np.float32)
BIAS = RNG.standard_normal(8).astype(np.float32)


def made(nodes, weights, *, inputs=("x",), wide=16, **more):
    shape = ["n", wide]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    values = [value(name, FLOAT, shape) for name in inputs]
    return model(nodes, values, [value("y", FLOAT, None)], tensors, **more)


@pytest.fixture
def quantize(tmp_path):
    """Quantise a model; return both forms of it, loaded, and the nodes of the new one."""
    numbers = iter(range(100))

    def quantize(proto):
        number = next(numbers)
        source, target = tmp_path / f"{number}.onnx", tmp_path / f"{number}.int8"
        source.write_bytes(proto.SerializeToString())
        size = quantize_int8(source, target)
        assert target.stat().st_size == size
        assert target.stat().st_mode & 0o777 == 0o600
        options = LoadOptions(threads=1)
        engine = OnnxEngine()
        return engine.load(source, options), engine.load(target, options), onnx.load(target)

    return quantize


def close(one, other, rows=4, wide=16):
    x = from_array("x", RNG.standard_normal((rows, wide)).astype(np.float32))
    left, right = one.run([x])[0].array, other.run([x])[0].array
    return np.abs(left - right).max() / np.abs(left).max()


@pytest.mark.parametrize(
    ("node", "weights"),
    [
        (("MatMul", ["x", "w"], {}), {"w": WEIGHT}),
        (("Gemm", ["x", "w"], {}), {"w": WEIGHT}),
        (("Gemm", ["x", "w", "b"], {}), {"w": WEIGHT, "b": BIAS}),
        (("Gemm", ["x", "w", "b"], {"transB": 1}), {"w": WEIGHT.T.copy(), "b": BIAS}),
    ],
)
def test_products_are_of_integers(quantize, node, weights):
    """Each way to write a product with a constant matrix, with the same result, nearly."""
    kind, inputs, attributes = node
    proto = made([helper.make_node(kind, inputs, ["y"], **attributes)], weights)
    exact, small, graph = quantize(proto)
    kinds = [n.op_type for n in graph.graph.node]
    assert "MatMulInteger" in kinds
    assert kind not in kinds
    assert "w" not in [tensor.name for tensor in graph.graph.initializer]
    assert 0 < close(exact, small) < 0.05


@pytest.mark.parametrize(
    "attributes", [{"transA": 1}, {"alpha": 0.5}, {"beta": 2.0}], ids=lambda a: next(iter(a))
)
def test_products_of_another_kind_stay(quantize, attributes):
    """What is not rewritten is left as it is, beside what is."""
    square = RNG.standard_normal((16, 16)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "s"], ["a"]),
        helper.make_node("Gemm", ["a", "s", "c"], ["y"], **attributes),
    ]
    exact, small, graph = quantize(made(nodes, {"s": square, "c": square[0]}))
    assert [n.op_type for n in graph.graph.node].count("Gemm") == 1
    assert "s" in [tensor.name for tensor in graph.graph.initializer]
    assert 0 < close(exact, small, rows=16) < 0.05


def test_a_shared_weight_and_a_shared_input(quantize):
    """Both are quantised once."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["x", "w"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    exact, small, graph = quantize(made(nodes, {"w": WEIGHT}))
    kinds = [n.op_type for n in graph.graph.node]
    assert kinds.count("DynamicQuantizeLinear") == 1
    assert (
        sum(t.data_type == TensorProto.INT8 and len(t.dims) == 2 for t in graph.graph.initializer)
        == 1
    )
    assert 0 < close(exact, small) < 0.05


def test_a_weight_that_a_branch_uses_too(quantize):
    """It stays for the branch."""
    then = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"])], "then", [], [value("t", FLOAT, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["m"], ["e"])], "else", [], [value("e", FLOAT, None)]
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other),
    ]
    for yes in (True, False):
        exact, small, graph = quantize(made(nodes, {"w": WEIGHT, "yes": np.array(yes)}))
        assert "w" in [tensor.name for tensor in graph.graph.initializer]
        assert (close(exact, small) == 0) == yes


def test_a_constant_node_is_a_weight(quantize):
    """And goes when nobody uses it."""
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(WEIGHT)),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    exact, small, graph = quantize(made(nodes, {}))
    assert "Constant" not in [n.op_type for n in graph.graph.node]
    assert 0 < close(exact, small) < 0.05


@pytest.mark.parametrize(
    ("weights", "inputs"),
    [
        ({"w": WEIGHT * np.float32(np.inf)}, ("x",)),
        ({"w": WEIGHT}, ("x", "w")),
        ({}, ("x", "w")),
    ],
    ids=["not finite", "may be overridden", "no constant"],
)
def test_what_is_no_weight(tmp_path, weights, inputs):
    """Is not quantised; and where nothing is, there is no int8 form."""
    source = tmp_path / "m.onnx"
    proto = made([helper.make_node("MatMul", ["x", "w"], ["y"])], weights, inputs=inputs)
    source.write_bytes(proto.SerializeToString())
    with pytest.raises(InvalidModel, match="constant FP32 matrices"):
        quantize_int8(source, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_an_old_opset_is_refused(tmp_path):
    """Its operators have no integers."""
    proto = made([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": WEIGHT})
    proto.opset_import[0].version = 10
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(InvalidModel, match="opset 11"):
        quantize_int8(tmp_path / "m.onnx", tmp_path / "t")


def test_the_same_file_gives_the_same_form(tmp_path):
    """Else the form would not be part of what a model is."""
    proto = made([helper.make_node("Gemm", ["x", "w", "b"], ["y"])], {"w": WEIGHT, "b": BIAS})
    source = tmp_path / "m.onnx"
    source.write_bytes(proto.SerializeToString())
    for name in ("one", "other"):
        quantize_int8(source, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_names_of_ours_that_are_taken(quantize):
    """A model that was made to clash, or is such a form already, does not."""
    nodes = [
        helper.make_node("MatMul", ["x", "blindai_int8_0"], ["blindai_int8_2"]),
        helper.make_node("Relu", ["blindai_int8_2"], ["y"]),
    ]
    exact, small, _ = quantize(made(nodes, {"blindai_int8_0": WEIGHT}))
    assert 0 < close(exact, small) < 0.05


def test_no_pair_of_products_leaves_sixteen_bits(quantize):
    """The largest weights and inputs give the same on processors whose sums are that narrow."""
    ones = np.ones((16, 1), np.float32)
    exact, small, graph = quantize(
        made([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": ones})
    )
    (matrix,) = (
        numpy_helper.to_array(t)
        for t in graph.graph.initializer
        if t.data_type == TensorProto.INT8 and len(t.dims) == 2
    )
    assert 2 * 255 * int(np.abs(matrix).max()) < 2**15
    x = from_array("x", np.ones((3, 16), np.float32))
    np.testing.assert_allclose(small.run([x])[0].array, exact.run([x])[0].array, rtol=1e-2)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 4000), flip=st.integers(0, 255))
def test_any_bytes_are_quantised_or_refused(tmp_path_factory, cut, flip):
    """A damaged file raises nothing but `InvalidModel`."""
    folder = tmp_path_factory.mktemp("damaged")
    data = bytearray(
        made([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": WEIGHT}).SerializeToString()
    )
    data[cut % len(data)] ^= flip
    (folder / "m").write_bytes(data)
    try:
        quantize_int8(folder / "m", folder / "t")
    except InvalidModel:
        assert not (folder / "t").exists()


def test_nothing_to_quantise(tmp_path):
    """The error says what int8 is for."""
    (tmp_path / "m").write_bytes(identity())
    with pytest.raises(InvalidModel, match="MatMul, Gemm"):
        quantize_int8(tmp_path / "m", tmp_path / "t")
