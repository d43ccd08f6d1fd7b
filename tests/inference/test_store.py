"""Models come in whole or not at all, are held once, and go when their last name goes."""

import gc
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import (
    ConfigurationError,
    InvalidInput,
    InvalidModel,
    LimitExceeded,
    ModelConflict,
    ModelNotFound,
    Overloaded,
)
from blindai.inference.engine import LoadOptions
from blindai.inference.onnx import OnnxEngine
from blindai.inference.store import ModelStore, check_name
from blindai.inference.tensors import from_array
from tests.inference.models import ELEMENTS, add, identity

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
ONE, TWO = add(1.0), add(2.0)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class CountingEngine:
    """The ONNX engine; counts what it loads, and waits where a test wants it to."""

    name = "counting"

    def __init__(self):
        self.loads = 0
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def load(self, path, options):
        self.loads += 1
        self.entered.set()
        assert self.go_on.wait(20)
        return OnnxEngine().load(path, options)


@pytest.fixture
def engine():
    return CountingEngine()


@pytest.fixture
def make_store(tmp_path, engine):
    """Make the store of the test, with other limits than usual."""
    stores = []

    def make(**limits):
        store = ModelStore(
            tmp_path / "store",
            engine=engine,
            options=LoadOptions(threads=1),
            clock=lambda: NOW,
            **limits,
        )
        stores.append(store)
        return store

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(make_store):
    return make_store()


@pytest.fixture
def files(tmp_path):
    """List the files of the store's folder."""
    return lambda: sorted(path.name for path in (tmp_path / "store").iterdir())


def put(store, name, data, *, chunk=64, size=None, **how):
    with store.begin_upload(name, expected_size=size) as upload:
        for start in range(0, len(data), chunk):
            upload.write(data[start : start + chunk])
        return upload.commit(**how)


def answer(entry) -> float:
    """What the model makes of 1.0."""
    x = from_array("x", np.array([1.0], np.float32))
    return entry.model.run([x])[0].array.item()


def test_an_upload_becomes_a_model_by_name_and_by_sha256(store, files):
    """The record says what came, and the file is kept under its SHA-256."""
    record = put(store, "plus-one", ONE, size=len(ONE), expected_sha256=sha256(ONE))
    assert record.names == ("plus-one",)
    assert record.sha256 == sha256(ONE)
    assert record.size == len(ONE)
    assert [str(spec) for spec in record.inputs] == ["FP32[n]"]
    assert (record.engine, record.loaded_at, str(record.form)) == ("counting", NOW, "onnx.fp32")
    assert store.records() == [record]
    assert files() == [f"{sha256(ONE)}.onnx"]
    for key in ("plus-one", sha256(ONE), sha256(ONE).upper(), f"sha256:{sha256(ONE)}"):
        entry = store.get(key)
        assert answer(entry) == 2.0
        assert entry.path.read_bytes() == ONE


def test_the_same_bytes_are_loaded_once(store, engine, files):
    """Two names are one session, one file and one record."""
    put(store, "a", ONE)
    record = put(store, "b", ONE)
    assert record.names == ("a", "b")
    assert engine.loads == 1
    assert store.get("a") is store.get("b") is store.get(sha256(ONE))
    assert files() == [f"{sha256(ONE)}.onnx"]
    assert store.bytes_in_use() == len(ONE)
    assert put(store, "b", ONE) == record
    assert engine.loads == 1


def test_a_model_goes_with_its_last_name(store, files):
    """Its memory too, when the last who holds it lets go."""
    put(store, "a", ONE)
    put(store, "b", ONE)
    store.delete("a")
    assert store.get("b").record.names == ("b",)
    assert store.get(sha256(ONE)).record.names == ("b",)
    held = store.get("b")
    store.delete("b")
    assert store.records() == []
    assert files() == []
    for key in ("a", "b", sha256(ONE)):
        with pytest.raises(ModelNotFound, match="no model"):
            store.get(key)
        with pytest.raises(ModelNotFound, match="no model"):
            store.delete(key)
    assert answer(held) == 2.0
    assert store.bytes_in_use() == len(ONE)
    del held
    gc.collect()
    assert store.bytes_in_use() == 0


def test_a_name_keeps_its_weights_unless_told_otherwise(store, files):
    """Other bytes under the same name are a conflict, which says both SHA-256."""
    put(store, "a", ONE)
    held = store.get("a")
    says = rf"{sha256(ONE)} \(onnx.fp32\); came another with {sha256(TWO)}"
    with pytest.raises(ModelConflict, match=says):
        put(store, "a", TWO)
    assert files() == [f"{sha256(ONE)}.onnx"]
    record = put(store, "a", TWO, replace=True)
    assert record.sha256 == sha256(TWO)
    assert answer(store.get("a")) == 3.0
    assert answer(held) == 2.0
    assert files() == [f"{sha256(TWO)}.onnx"]
    with pytest.raises(ModelNotFound):
        store.get(sha256(ONE))


def test_replacing_one_name_leaves_the_other_name_of_the_model(store, files):
    """Names of the same bytes are independent."""
    put(store, "a", ONE)
    put(store, "b", ONE)
    put(store, "c", TWO)
    put(store, "a", TWO, replace=True)
    assert [record.names for record in store.records()] == [("a", "c"), ("b",)]
    assert answer(store.get("b")) == 2.0
    assert len(files()) == 2


@pytest.mark.parametrize("how", ["abort", "leave", "raise", "truncated", "sha256", "invalid"])
def test_an_upload_that_fails_leaves_nothing_behind(store, files, how):
    """No file, no name, and nothing counted."""
    upload = store.begin_upload("a", expected_size=len(ONE) if how == "truncated" else None)
    upload.write(ONE[:-20])
    assert len(files()) == 1
    if how == "abort":
        upload.abort()
    elif how == "leave":
        with upload:
            pass
    elif how == "raise":
        with pytest.raises(ZeroDivisionError), upload:
            _ = 1 / 0
    elif how == "truncated":
        with pytest.raises(InvalidInput, match=f"expected {len(ONE)} bytes, came .*truncated"):
            upload.commit()
    elif how == "sha256":
        with pytest.raises(InvalidInput, match="expected a model with SHA-256"):
            upload.commit(expected_sha256=sha256(ONE))
    else:
        with pytest.raises(InvalidModel):
            upload.commit()
    assert files() == []
    assert store.records() == []
    assert store.bytes_in_use() == 0
    with pytest.raises(ConfigurationError, match="one that has ended"):
        upload.write(b"x")
    with pytest.raises(ConfigurationError, match="one that has ended"):
        upload.commit()
    assert put(store, "a", ONE).names == ("a",)


def test_the_size_is_limited_while_writing(make_store, files):
    """An announced size is refused at once, and a stream when it grows past the limit."""
    store = make_store(max_model_size=100)
    with pytest.raises(LimitExceeded, match="at most 100 bytes, came 101"):
        store.begin_upload("a", expected_size=101)
    with store.begin_upload("a") as upload:
        upload.write(bytes(60))
        with pytest.raises(LimitExceeded, match="at most 100 bytes"):
            upload.write(bytes(41))
        assert upload.size == 60
    assert files() == []


def test_more_bytes_than_announced_are_refused(store):
    """At the first byte too many."""
    with store.begin_upload("a", expected_size=10) as upload:
        upload.write(bytes(10))
        with pytest.raises(InvalidInput, match="expected 10 bytes, came more"):
            upload.write(b"x")


def test_all_models_and_uploads_together_have_a_budget(make_store):
    """What is loaded, what is still held after its deletion, and what is on its way."""
    store = make_store(max_total_bytes=len(ONE) + len(TWO) + 10)
    put(store, "a", ONE)
    with store.begin_upload("b") as upload:
        upload.write(TWO)
        assert store.bytes_in_use() == len(ONE) + len(TWO)
        with pytest.raises(Overloaded, match="no room for 11 bytes"):
            store.begin_upload("c", expected_size=11)
        with store.begin_upload("c") as other, pytest.raises(Overloaded, match="no room"):
            other.write(bytes(11))
        upload.commit()
    assert store.bytes_in_use() == len(ONE) + len(TWO)
    with pytest.raises(Overloaded):
        put(store, "c", identity())
    held = store.get("a")
    store.delete("a")
    with pytest.raises(Overloaded):
        put(store, "c", identity())
    del held
    gc.collect()
    assert put(store, "c", identity()).names == ("c",)


def test_names_and_uploads_are_limited(make_store):
    """Each name counts, also a second name of the same bytes."""
    store = make_store(max_models=2, max_uploads=1)
    put(store, "a", ONE)
    put(store, "b", ONE)
    with pytest.raises(LimitExceeded, match="at most 2 models"):
        put(store, "c", ONE)
    assert put(store, "b", TWO, replace=True).names == ("b",)
    with store.begin_upload("b"), pytest.raises(Overloaded, match="1 uploads are under way"):
        store.begin_upload("b")
    store.begin_upload("b").abort()


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a..b",
        ".hidden",
        "-a",
        "_a",
        "a/b",
        "a\\b",
        "/etc/passwd",
        "a\0b",
        "a b",
        "a\n",
        "é",
        "a:b",
        "a" * 129,
        "0" * 64,
        "AB" * 32,
    ],
)
def test_names_that_could_be_paths_or_digests_are_refused(store, files, name):
    """Before anything is written."""
    with pytest.raises(InvalidInput, match="expected a model name"):
        store.begin_upload(name)
    assert files() == []


@given(st.text(max_size=140) | st.from_regex(r"[A-Za-z0-9._/-]{1,140}", fullmatch=True))
def test_any_text_is_a_name_or_invalid_input(name):
    """A name that passes is a plain file name in any system's eyes."""
    try:
        check_name(name)
    except InvalidInput:
        return
    assert name.isascii()
    assert 1 <= len(name) <= 128
    assert name[0].isalnum()
    assert ".." not in name
    assert os.path.basename(name) == name  # noqa: PTH119 - of a text, not of a path


def test_models_run_and_are_found_while_another_loads(make_store, engine):
    """Loading holds no lock that a run needs."""
    store = make_store()
    put(store, "a", ONE)
    engine.entered.clear()
    engine.go_on.clear()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(put, store, "b", TWO)
        try:
            assert engine.entered.wait(20)
            assert answer(store.get("a")) == 2.0
            assert [record.names for record in store.records()] == [("a",)]
            with pytest.raises(ModelNotFound):
                store.get("b")
            with store.begin_upload("c") as upload:
                upload.write(b"x")
            store.delete("a")
        finally:
            engine.go_on.set()
        assert loading.result(20).names == ("b",)
    assert [record.names for record in store.records()] == [("b",)]


def test_the_same_bytes_from_two_sides_at_once_are_loaded_once(store, engine):
    """Whoever comes second gets what the first loaded."""
    with ThreadPoolExecutor(4) as pool:
        records = list(pool.map(lambda i: put(store, f"m{i}", ONE), range(4)))
    assert engine.loads == 1
    assert {record.sha256 for record in records} == {sha256(ONE)}
    assert store.get("m0").record.names == ("m0", "m1", "m2", "m3")


def test_a_replaced_name_is_never_missing(store):
    """Whoever asks while it changes gets the old model or the new one."""
    put(store, "a", ONE)
    stop = threading.Event()
    answers = set()

    def ask():
        while not stop.is_set():
            answers.add(answer(store.get("a")))

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            for data in (TWO, ONE) * 10:
                put(store, "a", data, replace=True)
        finally:
            stop.set()
        asking.result(20)
    assert answers <= {2.0, 3.0}


def test_a_store_that_closes_takes_nothing_in(make_store, engine, files, tmp_path):
    """Also what is loading just then; the folder is left empty and free."""
    store = make_store()
    put(store, "a", ONE)
    engine.entered.clear()
    engine.go_on.clear()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(put, store, "b", TWO)
        try:
            assert engine.entered.wait(20)
            held = store.get("a")
            store.close()
        finally:
            engine.go_on.set()
        with pytest.raises(Overloaded, match="shutting down"):
            loading.result(20)
    with pytest.raises(ModelNotFound, match="unloaded"):
        answer(held)
    assert files() == []
    assert put(make_store(), "a", ONE).names == ("a",)


def test_a_new_store_clears_what_an_earlier_one_left(make_store, files, tmp_path):
    """Its own files only."""
    folder = tmp_path / "store"
    folder.mkdir()
    ours = [f"{'0' * 64}.onnx", f".upload-{'0' * 32}", f".deleted-{'f' * 32}"]
    for name in [*ours, "notes.txt", "model.onnx"]:
        (folder / name).touch()
    make_store()
    assert files() == ["model.onnx", "notes.txt"]


def test_a_folder_serves_one_store(make_store, tmp_path):
    """A second server would clear the files of the first."""
    make_store()
    with pytest.raises(ConfigurationError, match="another server uses it"):
        make_store()


def test_a_folder_that_is_none_is_refused(make_store, tmp_path):
    """With the reason that the system gives."""
    (tmp_path / "store").touch()
    with pytest.raises(ConfigurationError, match="expected a folder for models at"):
        make_store()


def test_a_folder_of_models_is_loaded_and_its_bad_files_are_named(store, tmp_path):
    """One bad file does not keep the others out."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "one.onnx").write_bytes(ONE)
    (folder / "two.onnx").write_bytes(TWO)
    (folder / "notes.txt").write_text("not a model")
    (folder / "bad.onnx").write_text("not a model")
    (folder / "bad name.onnx").write_bytes(ONE)
    (folder / "empty.onnx").touch()
    (folder / "folder.onnx").mkdir()
    (folder / "link.onnx").symlink_to(folder / "one.onnx")
    os.mkfifo(folder / "pipe.onnx")
    failed = store.load_folder(folder)
    assert {path.name: type(error) for path, error in failed} == {
        "bad.onnx": InvalidModel,
        "bad name.onnx": InvalidInput,
        "empty.onnx": InvalidModel,
        "folder.onnx": InvalidModel,
        "link.onnx": InvalidModel,
        "pipe.onnx": InvalidModel,
    }
    messages = {path.name: str(error) for path, error in failed}
    assert all(message.startswith(f"{name}: ") for name, message in messages.items())
    assert "came a symbolic link" in messages["link.onnx"]
    assert "came a folder, pipe or device" in messages["pipe.onnx"]
    assert [record.names for record in store.records()] == [("one",), ("two",)]
    assert answer(store.get("two")) == 3.0
    assert (folder / "one.onnx").read_bytes() == ONE
    store.delete("one")
    assert (folder / "one.onnx").exists()


def test_a_folder_of_models_that_is_missing_is_a_configuration_error(store, tmp_path):
    """The operator sees which."""
    with pytest.raises(ConfigurationError, match=r"expected a folder of models at .*missing"):
        store.load_folder(tmp_path / "missing")


def test_every_datatype_can_be_uploaded(store):
    """Records speak of them all."""
    for datatype in ELEMENTS:
        record = put(store, f"identity-{datatype.lower()}", identity(datatype))
        assert record.inputs[0].datatype is datatype


def test_a_negative_size_is_invalid_input(store):
    """Whatever a header says."""
    with pytest.raises(InvalidInput, match="came -1"):
        store.begin_upload("a", expected_size=-1)


def test_files_and_folder_are_for_the_server_alone(make_store, tmp_path):
    """Weights are somebody's secret."""
    store = make_store()
    put(store, "a", ONE)
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700
    assert store.get("a").path.stat().st_mode & 0o077 == 0
