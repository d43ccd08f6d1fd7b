"""The weights of an ONNX file are told from the rest of it, and nothing else is."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model

from blindai.errors import InvalidModel
from blindai.inference.engine import LoadOptions
from blindai.inference.onnx import OnnxEngine
from blindai.inference.onnx_file import load_parts
from blindai.inference.onnx_weights import find_in_memory, split_model
from blindai.inference.options import ModelOptions
from blindai.inference.sandbox import Sandbox
from blindai.inference.tensors import from_array
from tests.inference.models import model, value

MEMORY = Path("/dev/shm")
TYPES = [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16, 17, 18, 19, 20, 24]
# As little as there can be, so that small models have weights.
LEAST = 1


@pytest.fixture
def memory():
    """A folder in memory."""
    if not MEMORY.is_dir():
        pytest.skip("this system has no /dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="blindai-test-", dir=MEMORY))
    yield folder
    shutil.rmtree(folder)


def made(*weights: TensorProto) -> onnx.ModelProto:
    """A model with weights that nothing uses."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return model([node], [value("x")], [value("y")], weights)


def raw(name: str = "w", size: int = 8, element: int = TensorProto.UINT8) -> TensorProto:
    """A matrix of one column, for elements of one byte."""
    return TensorProto(name=name, data_type=element, dims=[size, 1], raw_data=bytes(range(size)))


def looking_up(rows: int) -> onnx.ModelProto:
    """Rows of a matrix, which onnxruntime uses as it is."""
    table = np.arange(rows * 1000, dtype=np.float32).reshape(rows, 1000)
    node = helper.make_node("Gather", ["w", "x"], ["y"])
    weights = [numpy_helper.from_array(table, "w")]
    return model([node], [value("x", TensorProto.INT64)], [value("y", shape=["n", 1000])], weights)


def multiplying(size: int, name: str = "w") -> onnx.ModelProto:
    """A product with a matrix, which onnxruntime rearranges."""
    weight = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    shape = ["n", size]
    return model(
        [node],
        [value("x", shape=shape)],
        [value("y", shape=shape)],
        [numpy_helper.from_array(weight, name)],
    )


def restored(data: bytes, **limits) -> onnx.ModelProto | None:
    """The model with its weights put back; `None`: it was not split."""
    split = split_model(data, **limits)
    if split is None:
        return None
    back = onnx.ModelProto.FromString(split.without_weights())
    bare = [TensorProto.FromString(weight.tensor) for weight in split.weights]
    weights = iter(split.weights)
    for tensor in back.graph.initializer:
        if tensor in bare:
            weight = next(weights)
            tensor.raw_data = data[weight.offset : weight.offset + weight.length]
    assert next(weights, None) is None
    return back


@st.composite
def tensors(draw):
    """Weights of every type that numpy and onnx know, and some that stay."""
    shape = draw(st.lists(st.integers(1, 4), max_size=4))
    element = draw(st.sampled_from(TYPES))
    size = int(np.prod(shape)) * helper.tensor_dtype_to_np_dtype(element).itemsize
    tensor = TensorProto(
        name=draw(st.text(max_size=3)),
        data_type=element,
        dims=shape,
        raw_data=draw(st.binary(min_size=size, max_size=size)),
    )
    if draw(st.booleans()):
        tensor.doc_string = draw(st.text(max_size=5))
    if draw(st.booleans()):
        tensor.metadata_props.add(key="k", value=draw(st.text(max_size=200)))
    return tensor


def is_weight(tensor: TensorProto) -> bool:
    """Whether it is not left where it is."""
    return len(tensor.dims) > 1


@given(st.lists(tensors(), max_size=6))
def test_with_its_weights_put_back_a_model_is_what_it_was(weights):
    """As onnx itself reads both."""
    original = made(*weights)
    back = restored(original.SerializeToString(), least=LEAST)
    assert back == (original if any(map(is_weight, weights)) else None)


@given(st.lists(tensors(), min_size=1, max_size=6).filter(lambda them: any(map(is_weight, them))))
def test_onnx_finds_the_weights_where_they_are_said_to_be(weights):
    """What is written is external data, as others understand it."""
    original = made(*weights)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(original.SerializeToString())
        split = split_model(file.read_bytes(), least=LEAST)
        found = onnx.ModelProto.FromString(split.referring_to("model.onnx"))
        load_external_data_for_model(found, folder)
    for tensor in found.graph.initializer:
        tensor.ClearField("data_location")
    assert found == original


@given(data=st.data())
def test_any_bytes_are_split_as_protobuf_reads_them_or_not_at_all(data):
    """Truncated, changed, or anything else: never another error, never another model."""
    good = bytearray(made(raw("a"), raw("b", 3)).SerializeToString())
    how = data.draw(st.sampled_from(["cut", "change", "insert", "other"]))
    at = data.draw(st.integers(0, len(good) - 1))
    if how == "cut":
        good = good[:at]
    elif how == "change":
        good[at] = data.draw(st.integers(0, 255))
    elif how == "insert":
        good[at:at] = data.draw(st.binary(max_size=12))
    else:
        good = data.draw(st.binary(max_size=200))
    try:
        original = onnx.ModelProto.FromString(bytes(good))
    except DecodeError:
        split_model(bytes(good), least=LEAST)
        return
    back = restored(bytes(good), least=LEAST)
    assert back is None or back == original


def with_external_data() -> TensorProto:
    tensor = raw()
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def with_a_location() -> TensorProto:
    tensor = raw()
    tensor.data_location = TensorProto.EXTERNAL
    return tensor


def with_numbers() -> TensorProto:
    tensor = raw()
    tensor.int32_data.append(1)
    return tensor


def with_another_size() -> TensorProto:
    tensor = raw()
    tensor.dims[0] += 1
    return tensor


def with_a_negative_size() -> TensorProto:
    tensor = raw()
    tensor.dims.extend([-1, -1])
    return tensor


def with_many_sizes() -> TensorProto:
    tensor = raw()
    tensor.dims.extend([1] * 32)
    return tensor


def with_a_field_of_tomorrow() -> TensorProto:
    return TensorProto.FromString(raw().SerializeToString() + b"\xa0\x06\x01")


@pytest.mark.parametrize(
    "make",
    [
        with_external_data,
        with_a_location,
        with_numbers,
        with_another_size,
        with_a_negative_size,
        with_many_sizes,
        with_a_field_of_tomorrow,
        lambda: TensorProto(name="w", data_type=TensorProto.UINT8, dims=[2], raw_data=b"12"),
        lambda: TensorProto(name="w", data_type=TensorProto.UINT8, raw_data=b"1"),
        lambda: raw(element=TensorProto.STRING),
        lambda: raw(element=TensorProto.INT4),
        lambda: raw(element=99),
        lambda: raw(element=TensorProto.UNDEFINED),
        lambda: TensorProto(name="w", raw_data=b"12"),
        lambda: TensorProto(name="w", data_type=TensorProto.UINT8, dims=[2]),
    ],
)
def test_a_tensor_that_is_odd_stays_as_it_is(make):
    """So whatever is wrong with it is found by who reads the rest; and vectors may be shapes."""
    assert split_model(made(make()).SerializeToString(), least=LEAST) is None
    split = split_model(made(raw("a"), make(), raw("b")).SerializeToString(), least=LEAST)
    left = onnx.ModelProto.FromString(split.without_weights()).graph.initializer
    assert left[1] == make()
    assert len(split.weights) == 2


@pytest.mark.parametrize("number", [2, 9])
def test_a_tensor_that_says_something_twice_stays_as_it_is(number):
    """Readers take the last of them; nobody writes that."""
    tensor = raw().SerializeToString()
    again = {2: b"\x10\x03", 9: b"\x4a\x08ABCDEFGH"}[number]
    twice = TensorProto.FromString(tensor + again)
    assert twice.data_type == (3 if number == 2 else 2)
    whole = made().SerializeToString()
    graph = made().graph.SerializeToString()
    message = b"\x2a" + bytes([len(tensor + again)]) + tensor + again
    # A second graph is merged with the first one: this is one graph that is made by hand.
    start = whole.index(graph)
    data = whole[: start - 1] + bytes([len(graph) + len(message)]) + graph + message
    data += whole[start + len(graph) :]
    assert onnx.ModelProto.FromString(data).graph.initializer[0] == twice
    assert split_model(data, least=LEAST) is None


def test_a_file_with_two_graphs_is_not_split():
    """Readers merge them."""
    data = made(raw()).SerializeToString()
    assert split_model(data + data, least=LEAST) is None


def test_sizes_may_come_one_by_one():
    """As an older protobuf wrote them."""
    tensor = raw(size=6)
    tensor.dims[:] = [2, 3]
    packed, loose = b"\x0a\x02\x02\x03", b"\x08\x02\x08\x03"
    data = made(tensor).SerializeToString()
    one_by_one = data.replace(packed, loose) if packed in data else data.replace(loose, packed)
    assert one_by_one != data
    for each in (data, one_by_one):
        assert restored(each, least=LEAST) == made(tensor)


def test_small_weights_stay():
    """They cost less to copy than to map."""
    data = made(raw("a", 4), raw("b", 5)).SerializeToString()
    assert [weight.length for weight in split_model(data, least=5).weights] == [5]


def test_of_many_weights_the_largest_are_taken():
    """Each takes a mapping, of which a process has so many."""
    data = made(raw("a", 4), raw("b", 9), raw("c", 7), raw("d", 9)).SerializeToString()
    assert [weight.length for weight in split_model(data, least=LEAST, most=3).weights] == [9, 7, 9]
    assert restored(data, least=LEAST, most=3) == made(
        raw("a", 4), raw("b", 9), raw("c", 7), raw("d", 9)
    )


def test_a_file_in_memory_is_found_by_its_name(memory):
    """Also through a link, and by its descriptor as long as it has a name."""
    path = memory / "model.onnx"
    path.write_bytes(b"x")
    link = memory / "link"
    link.symlink_to(path)
    with path.open("rb") as file:
        descriptor = Path(f"/proc/self/fd/{file.fileno()}")
        assert find_in_memory(path) == find_in_memory(link) == find_in_memory(descriptor) == path
        path.unlink()
        assert find_in_memory(descriptor) is None
        path.write_bytes(b"another file")
        assert find_in_memory(descriptor) is None


@pytest.mark.parametrize("path", ["/proc/self/status", "/proc/self/nothing", "/dev/shm/\udcff"])
def test_what_is_not_in_memory_is_not_found(path):
    """Its pages may come from elsewhere the next time."""
    assert find_in_memory(Path(path)) is None


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def test_weights_are_used_where_they_lie(memory):
    """What onnxruntime does not rearrange stays in the file, also when its name is gone."""
    path = memory / ".upload-0"
    path.write_bytes(looking_up(100).SerializeToString())
    loaded = OnnxEngine().load(path, LoadOptions(threads=1))
    assert is_mapped(path)
    path.unlink()
    (output,) = loaded.run([from_array("x", np.array([3, 99]))])
    assert output.array[:, 0].tolist() == [3000.0, 99000.0]
    del loaded, output
    assert not is_mapped(path)


@pytest.mark.parametrize("shift", range(4))
def test_results_do_not_depend_on_where_a_file_lies(memory, tmp_path, load, shift):
    """Nor on whether the weights in it begin at a multiple of their elements' size."""
    path = memory / "model.onnx"
    data = multiplying(200)
    data.producer_name = "p" * shift
    path.write_bytes(data.SerializeToString())
    inputs = [from_array("x", np.linspace(-1, 1, 600, dtype=np.float32).reshape(3, 200))]
    (mapped,) = OnnxEngine().load(path, LoadOptions(threads=1)).run(inputs)
    (copied,) = load(path.read_bytes()).run(inputs)
    assert np.array_equal(mapped.array, copied.array)


def test_beside_weights_external_data_is_refused_as_ever(memory):
    """The marks that this server makes itself are no way in for others."""
    data = looking_up(100)
    data.graph.initializer.append(with_external_data())
    path = memory / "model.onnx"
    path.write_bytes(data.SerializeToString())
    with pytest.raises(InvalidModel, match="tensor 'w' with external data"):
        OnnxEngine().load(path, LoadOptions(threads=1))


def test_what_is_wrong_is_said_in_the_same_words(memory, load):
    """Wherever the file is, and without its folder."""
    data = multiplying(200, "another").SerializeToString()
    path = memory / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(InvalidModel) as here:
        OnnxEngine().load(path, LoadOptions(threads=1))
    with pytest.raises(InvalidModel) as there:
        load(data)
    assert str(here.value) == str(there.value)
    assert str(memory) not in str(here.value)


def test_a_model_in_memory_is_tried_by_another_process(memory):
    """Which may read that file, and finds it by its descriptor."""
    path = memory / "model.onnx"
    path.write_bytes(looking_up(5000).SerializeToString())
    with Sandbox(threads=1) as sandbox:
        assert sandbox.check(path, ModelOptions()) < 2 * path.stat().st_size


def test_the_parts_of_a_small_model_are_one(tmp_path):
    """There is nothing to be gained."""
    path = tmp_path / "model.onnx"
    path.write_bytes(made(raw()).SerializeToString())
    outline, split = load_parts(path)
    assert outline.inputs == ("x",)
    assert split is None
