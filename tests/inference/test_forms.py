"""A model in another precision: what it costs is told, and nothing is chosen behind one's back."""

import importlib.util
import os
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from blindai.errors import InvalidInput, InvalidModel, ModelConflict, Overloaded
from blindai.inference.engine import LoadOptions
from blindai.inference.engines import load_engine
from blindai.inference.forms import deviation_of, load_form
from blindai.inference.options import FORMS, REFERENCE, Form, ModelOptions, parse_options
from blindai.inference.records import Measured
from blindai.inference.store import ModelStore
from blindai.inference.tensors import from_array
from tests.inference.models import identity, one_node, value
from tests.inference.models import model as tiny_model

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed: make hardware"
)
WIDE = 64


def mlp(width=WIDE, layers=3):
    """Return a perceptron with constant weights."""
    rng = np.random.default_rng(1)
    weights, nodes, x = [], [], "x"
    for layer in range(layers):
        matrix = (rng.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [x, f"w{layer}"], [f"m{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"m{layer}"], [f"y{layer}"]))
        x = f"y{layer}"
    takes = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])
    gives = helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", width])
    graph = helper.make_graph(nodes, "mlp", [takes], [gives], weights)
    opset = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def half_quantised():
    """Return a model whose outputs are zero, unless it is only half quantised."""
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((WIDE, WIDE)).astype(np.float32)
    weights = [numpy_helper.from_array(matrix, "w"), numpy_helper.from_array(matrix.T, "t")]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Transpose", ["t"], ["u"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "u"], ["b"]),
        helper.make_node("Sub", ["a", "b"], ["y"]),
    ]
    shape = ["batch", WIDE]
    return tiny_model(
        nodes, [value("x", shape=shape)], [value("y", shape=shape)], weights
    ).SerializeToString()


@pytest.fixture
def load(tmp_path):
    """Return a function that loads a model with options."""

    def load(model=None, **options):
        path = tmp_path / "model.onnx"
        path.write_bytes(model or mlp())
        return load_form(path, ModelOptions(**options), LoadOptions(threads=1), load_engine())

    return load


def run(chosen, rows=2):
    """Return the output for some rows."""
    x = np.random.default_rng(2).standard_normal((rows, WIDE)).astype(np.float32)
    (output,) = chosen.model.run([from_array("x", x)])
    return output.array


def test_default_is_onnxruntime_as_it_is(load):
    """Who says nothing gets the reference, and no deviation."""
    chosen = load()
    assert (chosen.form, chosen.deviation) == (REFERENCE, None)
    assert chosen.engine.startswith("onnxruntime ")


def test_int8(load, tmp_path):
    """Weights of 8 bits are close, and not the same; how close is told; no file is left."""
    chosen, exact = load(precision="int8"), run(load())
    assert str(chosen.form) == "onnx.int8"
    assert 0 < chosen.deviation < 0.1
    error = np.abs(run(chosen) - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.1
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_nothing_to_quantise(load):
    """A model without products is refused, and says what int8 is for."""
    with pytest.raises(InvalidModel, match="constant FP32 matrices"):
        load(identity(), precision="int8")


@needs_openvino
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_openvino(load, precision):
    """OpenVINO gives nearly the same in fp32, and in bf16 what its precision allows."""
    if precision == "bf16" and not load_engine("openvino").has_bf16:
        with pytest.raises(InvalidModel, match="does not compute in bf16"):
            load(engine="openvino", precision="bf16")
        return
    chosen, exact = load(engine="openvino", precision=precision), run(load())
    assert chosen.engine.startswith("openvino ")
    assert chosen.deviation < {"fp32": 1e-5, "bf16": 0.05}[precision]
    np.testing.assert_allclose(run(chosen), exact, atol=0.05)


def test_auto_stays_within_the_tolerance(load):
    """Whatever is chosen is within the tolerance; with none to speak of, it is the reference."""
    chosen = load(precision="auto", tolerance=0.05)
    assert chosen.deviation is None or chosen.deviation <= 0.05
    exact = load(precision="auto", tolerance=1e-9)
    assert exact.deviation is None or exact.deviation <= 1e-9


def test_auto_where_other_forms_cannot_be(load):
    """A model that no other form takes is served as it is."""
    assert load(identity("BYTES"), precision="auto").form == REFERENCE


def test_a_form_is_another_model(tmp_path):
    """The same bytes in two precisions are two models, which do not take each other's names."""
    with ModelStore(tmp_path / "store", engine=load_engine()) as store:

        def put(name, *, replace=False, **options):
            with store.begin_upload(name, options=ModelOptions(**options)) as upload:
                upload.write(mlp())
                return upload.commit(replace=replace)

        plain, small = put("plain"), put("small", precision="int8")
        assert plain.sha256 == small.sha256
        assert store.get(plain.sha256).record.form == REFERENCE
        assert store.get(f"{small.sha256}.onnx.int8").record.names == ("small",)
        assert store.get("small").record.deviation > 0
        with pytest.raises(ModelConflict, match=r"onnx\.fp32"):
            put("plain", precision="int8")
        assert put("plain", precision="int8", replace=True).names == ("plain", "small")
        with pytest.raises(ModelConflict, match="delete it first"):
            put("more", precision="int8", instances=1)
        store.delete("plain")
        store.delete("small")
        assert store.records() == []
        assert store.bytes_in_use() == 0


def test_no_name_reads_like_a_form(tmp_path):
    """Or whoever pinned a file and its form would be sent to another model."""
    with ModelStore(tmp_path / "store", engine=load_engine()) as store:
        for name in ("ab" * 32 + ".onnx.int8", "AB" * 32 + ".openvino.bf16"):
            with pytest.raises(InvalidInput, match="SHA-256"):
                store.begin_upload(name)


def test_a_second_copy_counts(tmp_path):
    """It takes room as long as somebody holds it, and there has to be some."""
    size = len(mlp())
    with ModelStore(tmp_path / "store", engine=load_engine(), max_total_bytes=2 * size) as store:
        with store.begin_upload("m") as upload:
            upload.write(mlp())
            upload.commit()
        again = store.load_again(store.get("m"), 1)
        assert store.bytes_in_use() == 2 * size
        with pytest.raises(Overloaded):
            store.load_again(store.get("m"), 1)
        del again
        assert store.bytes_in_use() == size


def test_loaded_again_with_other_threads(tmp_path):
    """A second copy has the same form, and answers the same."""
    with ModelStore(tmp_path / "store", engine=load_engine()) as store:
        with store.begin_upload("m", options=ModelOptions(precision="int8")) as upload:
            upload.write(mlp())
            upload.commit()
        entry = store.get("m")
        again = store.load_again(entry, 1)
        x = [from_array("x", np.ones((1, WIDE), np.float32))]
        np.testing.assert_allclose(again.run(x)[0].array, entry.model.run(x)[0].array, atol=1e-6)
        assert again is not entry.model


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"precison": "int8"}, "precison"),
        ({"precision": "fp8"}, "expected one of fp32, bf16, int8, auto"),
        ({"engine": "tensorrt"}, "expected one of onnx, openvino"),
        ({"engine": "onnx", "precision": "bf16"}, "no engine 'onnx'"),
        ({"max_batch": "0"}, "expected 1 to"),
        ({"max_batch": "-1"}, "expected a whole number"),
        ({"tolerance": "nan"}, "expected a number"),
        ({"max_wait": "1e9"}, "expected 0 to 10"),
    ],
)
def test_options_that_cannot_be(query, says):
    """The error says what was expected and what came."""
    with pytest.raises(InvalidInput, match=says):
        parse_options(query)


def test_more_rows_than_the_operator_allows():
    """An uploader cannot switch batching on behind the operator's back."""
    with pytest.raises(InvalidInput, match="expected at most 1, which is what this server's"):
        ModelOptions(max_batch=2).scheduling(1)
    assert ModelOptions().scheduling(1).max_batch == 1


@given(st.dictionaries(st.text(max_size=12), st.text(max_size=12), max_size=3))
def test_any_query(query):
    """No query makes the parser raise anything else, and what it reads it also writes."""
    try:
        options = parse_options(query)
    except InvalidInput:
        return
    assert parse_options(options.dump()) == options


@given(st.sampled_from(FORMS))
def test_forms_can_be_asked_for(form):
    """Each form has options that ask for it alone."""
    options = ModelOptions(engine=form.engine, precision=form.precision)
    assert options.forms == (form,)


def test_deviation():
    """It is a fraction of the largest element; what cannot be compared is infinitely far."""

    def far(one, other):
        return deviation_of([from_array("y", np.array(one))], [from_array("y", np.array(other))])

    assert far([1.0, 4.0], [1.0, 3.0]) == 0.25
    assert far([1, 2], [1, 2]) == 0
    assert far([1, 2], [1, 3]) == 0.5
    assert far([b"a"], [b"b"]) == 1
    assert far([1.0], [[1.0]]) == float("inf")
    assert far([float("nan"), 1.0], [float("nan"), 1.0]) == 0
    assert far([1.0], [float("nan")]) == float("inf")
    assert far([0.0], [1e-9]) == float("inf")


def test_auto_survives_a_form_that_fails(tmp_path):
    """A form that cannot run what the reference runs is not chosen, and is an error by name."""
    path = tmp_path / "model.onnx"
    path.write_bytes(half_quantised())
    options = LoadOptions(threads=1)
    assert load_form(path, ModelOptions(precision="auto"), options, load_engine()).form in FORMS
    with pytest.raises(InvalidModel, match="where there should be none"):
        load_form(path, ModelOptions(precision="int8"), options, load_engine())


def test_a_model_that_takes_no_random_inputs(load):
    """It is served as it is; another precision by name is refused, because nothing can be told."""
    gives, takes = (TensorProto.FLOAT, ["m"]), (TensorProto.INT64, [1])
    picky = one_node("Reshape", {"x": (TensorProto.FLOAT, [7]), "shape": takes}, gives)
    assert load(picky, precision="auto").form == REFERENCE
    with pytest.raises(InvalidModel, match="takes no random inputs"):
        load(picky, precision="int8")


@needs_openvino
def test_openvino_connects_nowhere_and_writes_nothing(tmp_path):
    """Neither its import nor a run opens a connection or a file to write."""
    program = textwrap.dedent(
        """
        import sys, os
        events = []
        def watch(event, args):
            if event.startswith("socket.connect") or event == "socket.getaddrinfo":
                events.append((event, args[-1]))
            if event == "open" and isinstance(args[2], int) and args[2] & os.O_CREAT:
                events.append((event, args[0]))
        sys.addaudithook(watch)
        from pathlib import Path
        import numpy as np
        from blindai.inference.engine import LoadOptions
        from blindai.inference.engines import load_engine
        from blindai.inference.tensors import from_array
        model = load_engine("openvino").load(Path(sys.argv[1]), LoadOptions())
        model.run([from_array("x", np.ones((1, 64), np.float32))])
        print(events)
        """
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(mlp())
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-B", "-c", program, path],
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"
    assert list(home.rglob("*")) == []


class SlowEngine:
    """The reference engine on a machine where it is slow."""

    name = "slow"

    def __init__(self):
        self._engine = load_engine()

    def load(self, path, options):
        model = self._engine.load(path, options)
        return SlowModel(model)


class SlowModel:
    """A model that takes its time."""

    def __init__(self, model):
        self._model = model

    def __getattr__(self, name):
        return getattr(self._model, name)

    def run(self, *arguments, **options):
        time.sleep(0.05)
        return self._model.run(*arguments, **options)


@pytest.mark.parametrize(("tolerance", "is_chosen"), [(0.2, True), (1e-9, False)])
def test_auto_takes_what_is_faster_and_near_enough(tmp_path, tolerance, is_chosen):
    """Beside a slow reference another form is chosen, unless it is too far from it."""
    path = tmp_path / "model.onnx"
    path.write_bytes(mlp())
    options = ModelOptions(engine="onnx", precision="auto", tolerance=tolerance)
    chosen = load_form(path, options, LoadOptions(threads=1), SlowEngine())
    assert (str(chosen.form) == "onnx.int8") is is_chosen
    assert (chosen.form == REFERENCE) is not is_chosen


def known_int8(by: str | None = None) -> Measured:
    """Return what would be remembered of a model that was made int8."""
    found = Measured.here(Form("onnx", "int8"), 0.125, load_engine().name)
    return found if by is None else replace(found, by=by)


class Refusing:
    """A reference that must not be asked."""

    name = "none"

    def load(self, path, options):
        pytest.fail("the reference was loaded")


def test_what_was_measured_is_not_measured_again(tmp_path):
    """A form that was chosen before is loaded alone, and is told to be as far off as it was."""
    path = tmp_path / "model.onnx"
    path.write_bytes(mlp())
    for options in (ModelOptions(precision="auto"), ModelOptions(precision="int8")):
        chosen = load_form(path, options, LoadOptions(threads=1), Refusing(), known_int8())
        assert (str(chosen.form), chosen.deviation) == ("onnx.int8", 0.125)
        assert np.isfinite(run(chosen)).all()


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({"precision": "int8"}, known_int8(by="blindai 0.0.1, onnxruntime 1.0")),
        ({"precision": "int8"}, replace(known_int8(), form=REFERENCE)),
    ],
)
def test_what_others_measured_is_measured_again(tmp_path, options, known):
    """Another version of code or engine, or a form that was not asked for, counts for nothing."""
    path = tmp_path / "model.onnx"
    path.write_bytes(mlp())
    chosen = load_form(path, ModelOptions(**options), LoadOptions(threads=1), load_engine(), known)
    assert str(chosen.form) == "onnx.int8"
    assert 0 < chosen.deviation < 0.1
    assert chosen.deviation != known.deviation


def test_a_form_that_is_gone_is_chosen_anew(tmp_path):
    """Where a model that was made int8 cannot be any more, "auto" chooses among the others."""
    path = tmp_path / "model.onnx"
    path.write_bytes(identity("FP32"))
    options = ModelOptions(engine="onnx", precision="auto")
    chosen = load_form(path, options, LoadOptions(threads=1), load_engine(), known_int8())
    assert chosen.form == REFERENCE
