"""Models run in onnxruntime, with every datatype, and fail in our words only."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from blindai.errors import (
    DeadlineExceeded,
    InferenceError,
    InvalidInput,
    InvalidModel,
    ModelNotFound,
    Overloaded,
)
from blindai.inference.engine import RunHandle
from blindai.inference.tensors import (
    DataType,
    Tensor,
    TensorSpec,
    from_array,
    from_buffer,
    to_bytes,
)
from tests.inference.models import ELEMENTS, add, identity, model, one_node, slow, value

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
BFLOAT16 = TensorProto.BFLOAT16


def sample(datatype: DataType, shape: tuple[int, ...]) -> Tensor:
    """A tensor that no two elements of are alike, as far as the datatype goes."""
    count = int(np.prod(shape))
    if datatype is DataType.BYTES:
        array = np.array([f"é\0{i}".encode() for i in range(count)] + [None], object)[:-1]
    else:
        # 1 to 127 where there are so many, and no wrap-around where there are not.
        most = min(127, datatype.limits[1]) if datatype.is_integer else 100
        array = (np.arange(count) % most + 1).astype(datatype.numpy)
    return Tensor("x", array.reshape(shape), datatype)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,), (2, 0, 3)])
@pytest.mark.parametrize("datatype", ELEMENTS)
def test_every_datatype_passes_through_a_model_unchanged(load, datatype, shape):
    """Scalars, empty tensors and others, of all datatypes, bit for bit."""
    loaded = load(identity(datatype, [f"d{i}" for i in range(len(shape))]))
    assert loaded.inputs[0].datatype is datatype
    given_tensor = sample(datatype, shape)
    (output,) = loaded.run([given_tensor])
    assert (output.name, output.datatype, output.shape) == ("y", datatype, shape)
    assert bytes(to_bytes(output)) == bytes(to_bytes(given_tensor))


@pytest.mark.parametrize("datatype", [d for d in ELEMENTS if d.bits])
def test_buffers_from_the_network_run_as_they_are(load, datatype):
    """Read-only, unaligned views of a request's body, and strided arrays."""
    tensor = sample(datatype, (2, 3))
    body = b"!" + bytes(to_bytes(tensor))
    loaded = load(identity(datatype, ("n", 3)))
    view = from_buffer("x", datatype, [2, 3], memoryview(body)[1:])
    assert view.array.flags.writeable == datatype.is_packed
    (output,) = loaded.run([view])
    assert bytes(to_bytes(output)) == body[1:]
    wide = np.repeat(tensor.array, 2, axis=1)[:, ::2]
    (output,) = loaded.run([Tensor("x", wide, datatype)])
    assert bytes(to_bytes(output)) == body[1:]


@given(st.lists(st.floats(width=16, allow_nan=False), min_size=1, max_size=5))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20
)
def test_bfloat16_is_computed_with(load, numbers):
    """Casts to and from bfloat16 agree with ml_dtypes."""
    loaded = load(one_node("Cast", {"x": (FLOAT, ["n"])}, (BFLOAT16, ["n"]), to=BFLOAT16))
    wide = np.array(numbers, np.float32)
    (output,) = loaded.run([from_array("x", wide)])
    assert output.array.tobytes() == wide.astype(ml_dtypes.bfloat16).tobytes()


def test_bfloat16_beside_other_datatypes(load):
    """In and out, alone or asked for together, and text out of it."""
    nodes = [
        helper.make_node("Cast", ["b"], ["f"], to=FLOAT),
        helper.make_node("Cast", ["i"], ["b_out"], to=BFLOAT16),
        helper.make_node("Cast", ["i"], ["s"], to=STRING),
    ]
    made = model(
        nodes,
        [value("b", BFLOAT16), value("i", INT64)],
        [value("f", FLOAT), value("b_out", BFLOAT16), value("s", STRING)],
    )
    loaded = load(made.SerializeToString())
    inputs = [
        from_array("b", np.array([1.5], ml_dtypes.bfloat16)),
        from_array("i", np.array([7], np.int64)),
    ]
    f, b_out, s = loaded.run(inputs)
    assert (f.array.item(), float(b_out.array.item()), s.array.item()) == (1.5, 7.0, b"7")
    assert [tensor.array.item() for tensor in loaded.run(inputs, ["s", "f"])] == [b"7", 1.5]


def test_text_beside_a_bfloat16_input(load):
    """One of the two mixtures that onnxruntime carries."""
    nodes = [
        helper.make_node("Cast", ["b"], ["f"], to=FLOAT),
        helper.make_node("Identity", ["s"], ["t"]),
    ]
    inputs = [value("b", BFLOAT16), value("s", STRING)]
    loaded = load(model(nodes, inputs, [value("f"), value("t", STRING)]).SerializeToString())
    f, t = loaded.run([from_array("b", np.array([2], ml_dtypes.bfloat16)), from_array("s", ["é"])])
    assert (f.array.item(), t.array.item()) == (2.0, "é".encode())


def test_text_in_and_bfloat16_out_is_refused_when_loaded(load):
    """The Python interface of onnxruntime cannot carry it, and says so too late."""
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in "bs"]
    inputs = [value("b", BFLOAT16), value("s", STRING)]
    outputs = [value("b_out", BFLOAT16), value("s_out", STRING)]
    with pytest.raises(InvalidModel, match="no BF16 output beside a BYTES input"):
        load(model(nodes, inputs, outputs).SerializeToString())


def test_bytes_that_are_no_text_are_invalid_input(load):
    """Their repr would be taken without a word."""
    loaded = load(identity(DataType.BYTES))
    with pytest.raises(InvalidInput, match="x: expected UTF-8 text"):
        loaded.run([from_array("x", [b"\xff"])])


def test_specs_have_symbols_ranks_and_inferred_shapes(load):
    """Of outputs, the session knows more than the file where it can infer."""
    data = one_node("Transpose", {"x": (FLOAT, ["a", 3])}, (FLOAT, None), perm=[1, 0])
    loaded = load(data)
    assert loaded.inputs == (TensorSpec("x", DataType.FP32, ("a", 3)),)
    assert loaded.outputs == (TensorSpec("y", DataType.FP32, (3, "a")),)
    anything = load(identity(shape=None))
    assert anything.inputs[0].shape is None
    assert load(identity(shape=())).inputs[0].shape == ()
    for shape in ((), (2, 2)):
        assert anything.run([from_array("x", np.zeros(shape, np.float32))])[0].shape == shape


def test_inputs_are_checked_before_the_run(load):
    """With our message, not onnxruntime's."""
    with pytest.raises(InvalidInput, match=r"x: expected FP32\[n\], came FP64\[2\]"):
        load(identity()).run([from_array("x", np.zeros(2))])


def test_outputs_come_in_the_order_asked_for(load):
    """All of them where none are named; unknown and repeated names are refused."""
    nodes = [helper.make_node("Neg", ["x"], ["n"]), helper.make_node("Abs", ["x"], ["a"])]
    loaded = load(model(nodes, [value("x")], [value("n"), value("a")]).SerializeToString())
    x = [from_array("x", np.array([-2.0], np.float32))]
    assert [tensor.name for tensor in loaded.run(x)] == ["n", "a"]
    assert [tensor.name for tensor in loaded.run(x, [])] == ["n", "a"]
    assert [(t.name, t.array.item()) for t in loaded.run(x, ["a", "n"])] == [("a", 2), ("n", 2)]
    for wrong in (["z"], ["a", "a"], ["a", "z"]):
        with pytest.raises(InvalidInput, match="expected outputs of n, a"):
            loaded.run(x, wrong)


def test_a_model_without_inputs_runs(load):
    """Constants are models too."""
    node = helper.make_node("Constant", [], ["y"], value_float=3.0)
    loaded = load(model([node], [], [value("y", FLOAT, [])]).SerializeToString())
    assert loaded.run([])[0].array.item() == 3.0


@pytest.mark.parametrize(
    ("element", "message"),
    [
        (TensorProto.COMPLEX64, "onnxruntime cannot load the model"),
        (TensorProto.FLOAT6E2M3, r"float6e2m3"),
    ],
)
def test_a_datatype_that_onnxruntime_has_not_is_refused(load, element, message):
    """When it is uploaded."""
    node = helper.make_node("Identity", ["x"], ["y"])
    data = model([node], [value("x", element)], [value("y", element)]).SerializeToString()
    with pytest.raises(InvalidModel, match=message):
        load(data)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7])
@pytest.mark.parametrize("datatype", [d for d in DataType if not d.is_native])
def test_types_without_numpy_pass_beside_others(load, datatype, count):
    """Also FP4E2M1, with which onnxruntime computes nothing on the CPU."""
    element = ELEMENTS.get(datatype, TensorProto.FLOAT4E2M1)
    made = model(
        [helper.make_node("Neg", ["a"], ["b"])],
        [value("x", element), value("a", FLOAT, ["m"])],
        [value("x", element), value("b", FLOAT, ["m"])],
    )
    made.ir_version, made.opset_import[0].version = 13, 25
    loaded = load(made.SerializeToString())
    most = datatype.limits[1] if datatype.is_integer else 3
    x = Tensor("x", (np.arange(count) % most + 1).astype(datatype.numpy), datatype)
    back, negative = loaded.run([x, from_array("a", np.ones(2, np.float32))])
    assert back.datatype is datatype
    assert back.shape == (count,)
    assert bytes(to_bytes(back)) == bytes(to_bytes(x))
    assert negative.array.tolist() == [-1.0, -1.0]


def test_int4_weights_are_computed_with(load):
    """Quantised weights come as an input, two to a byte."""
    nodes = [helper.make_node("DequantizeLinear", ["q", "scale"], ["y"])]
    inputs = [value("q", TensorProto.INT4), value("scale", FLOAT, [])]
    loaded = load(model(nodes, inputs, [value("y")]).SerializeToString())
    q = np.array([-8, 7, 1]).astype(ml_dtypes.int4)
    (y,) = loaded.run([from_array("q", q), from_array("scale", np.float32(0.5))])
    assert y.array.tolist() == [-4.0, 3.5, 0.5]


def test_outputs_that_are_no_tensors_are_refused_by_name(load):
    """Sequences have no form in the protocol."""
    node = helper.make_node("SequenceConstruct", ["x"], ["many"])
    output = helper.make_tensor_sequence_value_info("many", FLOAT, ["n"])
    with pytest.raises(InvalidModel, match=r"output 'many': .* came seq\(tensor\(float\)\)"):
        load(model([node], [value("x")], [output]).SerializeToString())


def test_a_model_that_onnxruntime_refuses_is_invalid_and_shows_no_path(load, tmp_path):
    """Wrong types, unknown operators, and versions from the future."""
    bad_type = one_node("Identity", {"x": (FLOAT, ["n"])}, (INT64, ["n"]))
    unknown = one_node("NoSuchOperator", {"x": (FLOAT, ["n"])}, (FLOAT, ["n"]))
    future = model([helper.make_node("Abs", ["x"], ["y"])], [value("x")], [value("y")])
    future.ir_version = 99
    cases = [
        (bad_type, "does not match expected type"),
        (unknown, "NoSuchOperator"),
        (future.SerializeToString(), "Unsupported model IR version: 99"),
    ]
    for data, why in cases:
        with pytest.raises(InvalidModel, match=why) as caught:
            load(data)
        assert str(tmp_path) not in str(caught.value)
        assert "onnxruntime_src" not in str(caught.value)


SECRET = 1234567


@pytest.mark.parametrize(
    ("data", "inputs", "error", "message"),
    [
        (
            one_node("MatMul", {"a": (FLOAT, ["i", "j"]), "b": (FLOAT, ["k", "l"])}, (FLOAT, None)),
            {"a": np.zeros((2, 3), np.float32), "b": np.zeros((2, 3), np.float32)},
            InvalidInput,
            "MatMul node 'the_node' refuses these inputs: dimensions that do not go together",
        ),
        (
            one_node("Gather", {"a": (FLOAT, ["i"]), "b": (INT64, ["j"])}, (FLOAT, None)),
            {"a": np.zeros(2, np.float32), "b": np.array([SECRET])},
            InvalidInput,
            "Gather node 'the_node' refuses these inputs: an index out of bounds",
        ),
        (
            one_node("Reshape", {"a": (FLOAT, ["i"]), "b": (INT64, ["j"])}, (FLOAT, None)),
            {"a": np.zeros(2, np.float32), "b": np.array([SECRET])},
            InvalidInput,
            "a shape of another size",
        ),
        (
            one_node("Cast", {"a": (STRING, ["i"])}, (FLOAT, None), to=FLOAT),
            {"a": [f"x{SECRET}"]},
            InvalidInput,
            "Cast node 'the_node' refuses these inputs: text that is no number",
        ),
        (
            one_node("Expand", {"a": (FLOAT, ["i"]), "b": (INT64, ["j"])}, (FLOAT, None)),
            {"a": np.zeros(1, np.float32), "b": np.array([SECRET * 2**30])},
            Overloaded,
            "no memory for this run",
        ),
        (
            one_node("Expand", {"a": (FLOAT, ["i"]), "b": (INT64, ["j"])}, (FLOAT, None)),
            {"a": np.zeros(1, np.float32), "b": np.array([-SECRET])},
            InvalidInput,
            "Expand",
        ),
    ],
)
def test_a_failing_run_names_the_node_and_no_element(load, capfd, data, inputs, error, message):
    """The messages of onnxruntime carry elements of the inputs: "idx=1234567 must be"."""
    loaded = load(data)
    with pytest.raises(error, match=message) as caught:
        loaded.run([from_array(name, array) for name, array in inputs.items()])
    assert str(SECRET) not in str(caught.value)
    assert caught.value.__suppress_context__
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


def test_a_deadline_stops_a_run(load):
    """Within the model, not after it."""
    loaded = load(slow())
    x = [from_array("x", np.ones((1000, 1000), np.float32))]
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        loaded.run(x, deadline=start + 0.1)
    assert time.monotonic() - start < 5
    assert loaded.run([from_array("x", np.ones((1, 1000), np.float32))])[0].shape == (1, 1000)


def test_a_handle_stops_a_run_from_another_thread(load):
    """A client that went away: no deadline was the reason."""
    loaded = load(slow())
    handle = RunHandle()
    timer = threading.Timer(0.1, handle.terminate)
    timer.start()
    with pytest.raises(InferenceError, match="stopped before its end") as caught:
        loaded.run([from_array("x", np.ones((1000, 1000), np.float32))], handle=handle)
    timer.join()
    assert not isinstance(caught.value, DeadlineExceeded)


def test_a_deadline_in_time_does_nothing(load):
    """The run ends first."""
    loaded = load(add(2.0))
    x = [from_array("x", np.array([1.0], np.float32))]
    assert loaded.run(x, deadline=time.monotonic() + 60)[0].array.item() == 3.0


def test_a_model_runs_from_many_threads(load):
    """Each run gets its own answer."""
    loaded = load(add(1.0), threads=2)
    with ThreadPoolExecutor(4) as pool:
        outputs = list(
            pool.map(
                lambda i: loaded.run([from_array("x", np.array([i], np.float32))])[0].array.item(),
                range(200),
            )
        )
    assert outputs == [float(i + 1) for i in range(200)]


def test_a_closed_model_refuses_runs(load):
    """As a model that is not there."""
    loaded = load(add())
    loaded.close()
    with pytest.raises(ModelNotFound, match="unloaded"):
        loaded.run([from_array("x", np.array([1.0], np.float32))])


def test_a_large_run_gives_its_memory_back(load):
    """Without the shrinkage of the arena, 200 MB stay resident; until a run after a second."""
    nodes = [
        helper.make_node("Neg", ["x"], ["n"]),
        helper.make_node("ReduceSum", ["n"], ["y"], keepdims=0),
    ]
    data = model(nodes, [value("x")], [value("y", FLOAT, [])]).SerializeToString()
    small = [from_array("x", np.ones(10, np.float32))]
    large = [from_array("x", np.ones(50_000_000, np.float32))]
    # The first run makes the part of the arena that stays for good.
    kept = load(data, shrink_above=10**9)
    kept.run(small)
    before = resident()
    kept.run(large)
    assert resident() - before > 100 * 2**20
    time.sleep(1.05)
    kept.run(small)
    assert resident() - before < 50 * 2**20
    returned = load(data, shrink_above=10**6)
    returned.run(small)
    before = resident()
    returned.run(large)
    assert resident() - before < 50 * 2**20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_every_element_type_of_onnx_that_is_served_is_in_the_tests():
    """The parametrisation above covers all datatypes but one, which has a test of its own."""
    assert set(ELEMENTS) == set(DataType) - {DataType.FP4E2M1}
