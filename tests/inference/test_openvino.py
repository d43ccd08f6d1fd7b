"""OpenVINO answers what onnxruntime answers, ends when it is told to, and gives nothing away."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from blindai.errors import (
    DeadlineExceeded,
    InferenceError,
    InvalidInput,
    InvalidModel,
    ModelNotFound,
)
from blindai.inference.engine import LoadOptions, RunHandle
from blindai.inference.onnx import OnnxEngine
from blindai.inference.tensors import DataType, Tensor, from_array
from tests.inference.models import ELEMENTS, add, identity, model, one_node, value

pytest.importorskip("openvino", reason="openvino is not installed: make hardware")
from blindai.inference.openvino import OpenVinoEngine

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
SERVED = [
    datatype
    for datatype in ELEMENTS
    if datatype is not DataType.BYTES and (datatype.is_native or datatype is DataType.BF16)
]
UNSERVED = [datatype for datatype in ELEMENTS if datatype not in SERVED]


@pytest.fixture(scope="module")
def engine():
    return OpenVinoEngine()


@pytest.fixture
def load(engine, tmp_path):
    """Load the bytes of an ONNX file on one thread."""

    def load(data: bytes, **options):
        path = tmp_path / "model.onnx"
        path.write_bytes(data)
        return engine.load(path, LoadOptions(**({"threads": 1} | options)))

    return load


def endless(layers=400, width=1000) -> bytes:
    """Return products of matrices that no engine can fold into one: many seconds of work."""
    weight = numpy_helper.from_array(np.eye(width, dtype=np.float32), "w")
    names = ["x", *(f"t{i}" for i in range(layers - 1)), "y"]
    nodes = [helper.make_node("MatMul", [left, "w"], [right]) for left, right in pairwise(names)]
    shape = ["n", width]
    return model(
        nodes, [value("x", FLOAT, shape)], [value("y", FLOAT, shape)], [weight]
    ).SerializeToString()


@pytest.mark.parametrize("datatype", SERVED)
def test_every_datatype_comes_back_with_its_bits(load, datatype):
    """Read-only and unaligned memory, no elements, and NaN among the floats included."""
    loaded = load(identity(datatype, ("n", "m")))
    assert [(str(s), s.name) for s in loaded.inputs] == [(f"{datatype}[n, m]", "x")]
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(datatype.numpy)
    if datatype.is_float:
        array[0, 0] = np.nan
    odd = np.frombuffer(b"!" + array.tobytes(), np.uint8)[1:].view(datatype.numpy).reshape(2, 3)
    for each in (array, odd, array.T, array[:0]):
        (output,) = loaded.run([Tensor("x", each, datatype)])
        assert (output.name, output.datatype, output.shape) == ("y", datatype, each.shape)
        assert output.array.tobytes() == np.ascontiguousarray(each).tobytes()


def test_an_output_is_the_callers_own(load):
    """The next run does not write over it, nor over the input of the last."""
    loaded = load(identity())
    x = np.ones(4, np.float32)
    (first,) = loaded.run([from_array("x", x)])
    loaded.run([from_array("x", np.zeros(4, np.float32))])
    assert first.array.tolist() == x.tolist() == [1, 1, 1, 1]
    first.array[0] = 5
    assert x[0] == 1


@pytest.mark.parametrize("datatype", [DataType.INT64, DataType.UINT64, DataType.UINT32])
def test_integers_that_it_would_cut_off_are_refused(load, datatype):
    """It has 32 bits, and says nothing; the error carries no element."""
    loaded = load(identity(datatype))
    large = np.array([1, 2**31], datatype.numpy)
    with pytest.raises(InvalidInput, match="32 bits") as caught:
        loaded.run([Tensor("x", large, datatype)])
    assert "2147483648" not in str(caught.value)
    (output,) = loaded.run([Tensor("x", large - 1, datatype)])
    assert output.array.tolist() == [0, 2**31 - 1]


@pytest.mark.parametrize("datatype", UNSERVED)
def test_other_datatypes_are_left_to_onnxruntime(load, datatype):
    """Text, and elements of 8 bits and fewer that are no numbers of numpy."""
    with pytest.raises(InvalidModel, match=r"engine 'onnx'|Unsupported data type"):
        load(identity(datatype))


def test_names_that_were_optimised_away(load):
    """Inputs and outputs are called what the file calls them, in its order."""
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Identity", ["a"], ["y"]),
        helper.make_node("Identity", ["a"], ["z"]),
        helper.make_node("Neg", ["b"], ["n"]),
    ]
    made = model(
        nodes, [value("x"), value("b")], [value("z"), value("n"), value("y")]
    ).SerializeToString()
    loaded = load(made)
    assert [spec.name for spec in loaded.inputs] == ["x", "b"]
    assert [spec.name for spec in loaded.outputs] == ["z", "n", "y"]
    x, b = from_array("x", np.ones(1, np.float32)), from_array("b", np.ones(1, np.float32))
    found = {tensor.name: tensor.array.item() for tensor in loaded.run([b, x], ["y", "n"])}
    assert found == {"y": 1.0, "n": -1.0}
    for wanted in (["y", "y"], ["t"]):
        with pytest.raises(InvalidInput, match="each at most once"):
            loaded.run([x, b], wanted)


def test_dynamic_shapes(load, tmp_path):
    """One model takes every size, and answers as onnxruntime does."""
    weight = numpy_helper.from_array(np.random.default_rng(0).random((8, 3), np.float32), "w")
    made = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", FLOAT, ["n", "m", 8])],
        [value("y", FLOAT, ["n", "m", 3])],
        [weight],
    ).SerializeToString()
    loaded = load(made)
    reference = OnnxEngine().load(tmp_path / "model.onnx", LoadOptions(threads=1))
    for shape in ((1, 1, 8), (5, 3, 8), (2, 70, 8), (0, 2, 8)):
        x = from_array("x", np.random.default_rng(1).random(shape, np.float32))
        found, expected = loaded.run([x])[0].array, reference.run([x])[0].array
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_inputs_that_do_not_go_together(load):
    """They are refused in our words; the model goes on."""
    loaded = load(one_node("Add", {"a": (FLOAT, ["n"]), "b": (FLOAT, ["m"])}, (FLOAT, None)))
    left = from_array("a", np.full(3, 4242.0, np.float32))
    with pytest.raises(InvalidInput, match="do not go together") as caught:
        loaded.run([left, from_array("b", np.ones(2, np.float32))])
    assert caught.value.__cause__ is None
    assert "4242" not in str(caught.value)
    (output,) = loaded.run([left, from_array("b", np.ones(3, np.float32))])
    assert output.array.tolist() == [4243.0] * 3


def test_a_deadline_ends_a_run(load):
    """Long before the model would; and the next run is as any other."""
    loaded = load(endless())
    x = from_array("x", np.ones((300, 1000), np.float32))
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        loaded.run([x], deadline=began + 0.2)
    assert time.monotonic() - began < 5
    with pytest.raises(DeadlineExceeded):
        loaded.run([x], deadline=began)
    one = from_array("x", np.ones((1, 1000), np.float32))
    assert loaded.run([one])[0].array.sum() == 1000


def test_a_handle_ends_a_run(load):
    """From another thread, also if it is told before the start."""
    loaded = load(endless())
    x = from_array("x", np.ones((300, 1000), np.float32))
    handle = RunHandle()
    threading.Timer(0.2, handle.terminate).start()
    began = time.monotonic()
    with pytest.raises(InferenceError, match="stopped"):
        loaded.run([x], handle=handle)
    assert time.monotonic() - began < 5
    early = RunHandle()
    early.terminate()
    with pytest.raises(InferenceError, match="stopped"):
        loaded.run([x], handle=early)


def test_many_threads_each_get_their_own_answer(load):
    """Whatever runs beside them."""
    loaded = load(add(1.0), threads=0)

    def ask(number):
        x = from_array("x", np.full(1 + number % 7, number, np.float32))
        return loaded.run([x])[0].array.tolist() == [number + 1.0] * (1 + number % 7)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(400)))


def test_a_closed_model_runs_no_more(load):
    """As every engine's."""
    loaded = load(add())
    loaded.close()
    with pytest.raises(ModelNotFound):
        loaded.run([from_array("x", np.ones(1, np.float32))])


def test_external_data_is_refused(load, tmp_path):
    """A model reads no other file of the server."""
    (tmp_path / "secret").write_bytes(b"\1" * 64)
    weight = TensorProto(name="w", data_type=FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="secret")
    made = model([helper.make_node("Add", ["x", "w"], ["y"])], [value("x")], [value("y")], [weight])
    with pytest.raises(InvalidModel, match="external data"):
        load(made.SerializeToString())


def test_what_openvino_does_not_know_is_no_model(load):
    """The error says so, and names none of the server's files."""
    unknown = one_node("NoSuchOperator", {"x": (FLOAT, ["n"])}, (FLOAT, None))
    with pytest.raises(InvalidModel, match="openvino cannot load the model") as caught:
        load(unknown)
    assert "src/" not in str(caught.value)
    with pytest.raises(InvalidModel, match="expected an ONNX model"):
        load(b"nonsense")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_arithmetic_is_what_was_asked_for(precision, tmp_path):
    """Or it is refused: never one precision under another's name."""
    engine = OpenVinoEngine(precision)
    path = tmp_path / "model.onnx"
    path.write_bytes(endless(layers=4))
    if precision == "bf16" and not engine.has_bf16:
        with pytest.raises(InvalidModel, match="does not compute in bf16"):
            engine.load(path, LoadOptions())
        return
    loaded = engine.load(path, LoadOptions())
    x = np.random.default_rng(0).random((8, 1000), np.float32)
    error = np.abs(loaded.run([from_array("x", x)])[0].array - x).max()
    assert (error < 1e-6) == (precision == "fp32")
