"""ONNX files that reach outside themselves, or are none, never reach onnxruntime."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from blindai.errors import InvalidModel
from blindai.inference.onnx_file import load_outline
from tests.inference.models import add, identity, model, value


@pytest.fixture
def outline(tmp_path):
    """Look at the bytes of a file."""

    def outline(data: bytes):
        path = tmp_path / "model.onnx"
        path.write_bytes(data)
        return load_outline(path)

    return outline


def external(name: str = "w", location: str = "/etc/passwd") -> TensorProto:
    """A tensor whose elements lie in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def in_weights():
    node = helper.make_node("Add", ["x", "w"], ["y"])
    return model([node], [value("x")], [value("y")], [external()])


def in_constant():
    constant = helper.make_node("Constant", [], ["w"])
    constant.attribute.append(
        AttributeProto(name="value", type=AttributeProto.TENSOR, t=external())
    )
    return model([constant, helper.make_node("Add", ["x", "w"], ["y"])], [value("x")], [value("y")])


def in_subgraph():
    branch = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["z"])], "branch", [], [value("z")], [external()]
    )
    outer = helper.make_graph(
        [helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)],
        "outer",
        [],
        [value("z")],
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=outer, else_branch=outer)
    return model([node], [value("c", TensorProto.BOOL, [])], [value("y")])


def in_function():
    constant = helper.make_node("Constant", [], ["w"])
    constant.attribute.append(
        AttributeProto(name="value", type=AttributeProto.TENSOR, t=external())
    )
    body = [constant, helper.make_node("Add", ["a", "w"], ["b"])]
    function = helper.make_function("own", "F", ["a"], ["b"], body, [helper.make_opsetid("", 21)])
    node = helper.make_node("F", ["x"], ["y"], domain="own")
    return model([node], [value("x")], [value("y")], functions=[function])


def in_sparse_weights():
    made = model([helper.make_node("Identity", ["x"], ["y"])], [value("x")], [value("y")])
    sparse = made.graph.sparse_initializer.add(dims=[1])
    sparse.values.CopyFrom(external())
    return made


def in_training_info():
    made = model([helper.make_node("Identity", ["x"], ["y"])], [value("x")], [value("y")])
    made.training_info.add().initialization.initializer.append(external())
    return made


def without_location():
    made = in_weights()
    made.graph.initializer[0].data_location = TensorProto.DEFAULT
    return made


@pytest.mark.parametrize(
    "make",
    [
        in_weights,
        in_constant,
        in_subgraph,
        in_function,
        in_sparse_weights,
        in_training_info,
        without_location,
    ],
)
def test_external_data_is_refused_wherever_it_stands(outline, make):
    """A model could otherwise read any file of the server."""
    with pytest.raises(InvalidModel, match="tensor 'w' with external data"):
        outline(make().SerializeToString())


@pytest.mark.parametrize("location", ["*/_ORT_MEM_ADDR_/*", "weights.bin", "../secret", ""])
def test_external_data_is_refused_whatever_its_location(outline, location):
    """Also the location that onnxruntime takes for an address in memory."""
    made = in_weights()
    made.graph.initializer[0].CopyFrom(external(location=location))
    with pytest.raises(InvalidModel, match="external data"):
        outline(made.SerializeToString())


@pytest.mark.parametrize("nested", [False, True])
def test_an_operator_of_an_unknown_domain_is_refused(outline, nested):
    """It would need a library, and none is ever loaded."""
    node = helper.make_node("Evil", ["x"], ["y"], domain="com.example")
    if nested:
        branch = helper.make_graph([node], "branch", [], [value("y")])
        node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    made = model([node], [value("x")], [value("y")])
    with pytest.raises(InvalidModel, match=r"'Evil' of domain 'com\.example'"):
        outline(made.SerializeToString())


def test_an_unused_domain_and_own_functions_are_accepted(outline):
    """Exporters import domains that they do not use, and define functions in their own."""
    body = [helper.make_node("Identity", ["a"], ["b"])]
    function = helper.make_function("own", "F", ["a"], ["b"], body, [helper.make_opsetid("", 21)])
    node = helper.make_node("F", ["x"], ["y"], domain="own")
    made = model([node], [value("x")], [value("y")], functions=[function])
    made.opset_import.append(helper.make_opsetid("com.example", 1))
    assert outline(made.SerializeToString()).shapes == {"x": ("n",), "y": ("n",)}


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "an empty file"),
        (b"hello, this is a text\n", "22 bytes of text"),
        (b"<html><body>404</body></html>", "text"),
        (b"PK\x03\x04" + bytes(60), "a ZIP archive"),
        (b"\x80\x02}q\x00.", "a Python pickle"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "an HDF5 file"),
        (b"GGUF\x03" + bytes(60), "a GGUF file"),
        (b"\x1c\0\0\0TFL3" + bytes(60), "a TensorFlow Lite file"),
        (b"\x1c\0\0\0ORTM" + bytes(60), "onnxruntime's own format"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        (bytes(64), "something else"),
        (b"\xff" * 64, "something else"),
    ],
)
def test_what_is_no_onnx_file_is_named(outline, data, what):
    """The error says what came, as far as its first bytes show."""
    with pytest.raises(InvalidModel, match="expected an ONNX model, came") as caught:
        outline(data)
    assert what in str(caught.value)


def test_a_missing_file_is_an_invalid_model(tmp_path):
    """A file that went away is no crash."""
    with pytest.raises(InvalidModel, match="No such file"):
        load_outline(tmp_path / "gone.onnx")


def test_shapes_keep_symbols_and_tell_scalars_from_any_rank(outline):
    """-1 and nameless dimensions are any size."""
    made = model(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in "abcd"],
        [
            value("a", TensorProto.FLOAT, ["batch", 3, None]),
            value("b", TensorProto.FLOAT, []),
            value("c", TensorProto.FLOAT, None),
            value("d", TensorProto.FLOAT, [-1, 0]),
        ],
        [value(f"{name}_out", TensorProto.FLOAT, None) for name in "abcd"],
    )
    shapes = outline(made.SerializeToString()).shapes
    assert shapes["a"] == ("batch", 3, None)
    assert shapes["b"] == ()
    assert shapes["c"] is None
    assert shapes["d"] == (None, 0)
    assert shapes["a_out"] is None


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_file_has_an_outline_or_is_an_invalid_model(outline, data):
    """Truncated at any length, with any byte changed, or anything else."""
    good = bytearray(
        data.draw(st.sampled_from([add(), identity(), in_function().SerializeToString()]))
    )
    how = data.draw(st.sampled_from(["cut", "change", "other"]))
    if how == "cut":
        good = good[: data.draw(st.integers(0, len(good)))]
    elif how == "change":
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    else:
        good = data.draw(st.binary(max_size=100))
    try:
        outline(bytes(good))
    except InvalidModel:
        return
    assert how != "other"


def test_weights_inside_the_file_are_accepted(outline):
    """In raw form and as a list of numbers."""
    raw = numpy_helper.from_array(np.ones(1, np.float32), "w")
    listed = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    for weight in (raw, listed):
        node = helper.make_node("Add", ["x", "w"], ["y"])
        assert outline(
            model([node], [value("x")], [value("y")], [weight]).SerializeToString()
        ).shapes == {"x": ("n",), "y": ("n",)}
