"""Models make room for others, and come back as they were."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from blindai.errors import InferenceError, ModelNotFound, Overloaded, SealedDataError
from blindai.inference.engines import load_engine
from blindai.inference.memory import Memory, default_budget
from blindai.inference.resting import RestingModel
from blindai.inference.store import ModelStore
from blindai.inference.tensors import DataType, Tensor
from tests.inference.models import padded

SIZE = 2 << 20
X = [Tensor("x", np.ones(1, np.float32), DataType.FP32)]


def model(number):
    """Return a model of about 2 MiB that adds a number."""
    return padded(float(number), SIZE)


def run(entry):
    """Return what a model makes of 1."""
    return entry.model.run(X)[0].array.tolist()


class Place:
    """A store with room in memory for so many models, which it can get back."""

    def __init__(self, folder, models):
        self.memory = Memory(models * 3 * (SIZE + 4096))
        self.store = ModelStore(folder, engine=load_engine("onnx"), memory=self.memory)
        self.files = {}
        self.fetched = []

    def put(self, number):
        content = model(number)
        with self.store.begin_upload(f"m{number}") as upload:
            upload.write(content)
            key = upload.commit().key
        self.files[key] = content
        self.store.let_rest(key, lambda write: self.fetch(key, write))
        return key

    def fetch(self, key, write):
        self.fetched.append(key)
        if key not in self.files:
            raise ModelNotFound(key)
        content = memoryview(self.files[key])
        for start in range(0, len(content), 100_000):
            write(content[start : start + 100_000])

    def resting(self):
        return [
            record.names[0]
            for record in self.store.records()
            if self.store.get(record.key).model.is_resting
        ]


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path / "store", 2.5)
    yield made
    made.store.close()


def test_the_one_that_ran_longest_ago_rests(place):
    """A third model is taken in, and the one that was not used goes; it comes back when it runs."""
    for number in (0, 1):
        place.put(number)
    assert run(place.store.get("m0")) == [1.0]
    place.put(2)
    assert place.resting() == ["m1"]
    files = {path.name for path in place.store.folder.glob("*.onnx")}
    assert len(files) == 2
    assert run(place.store.get("m1")) == [2.0]
    assert place.resting() == ["m0"]
    assert len(place.fetched) == 1
    assert place.memory.used <= place.memory.total


def test_what_cannot_come_back_stays(tmp_path):
    """Without anything that could rest there is no room, and what runs goes on."""
    memory = Memory(7 * SIZE // 2)
    with ModelStore(tmp_path / "store", engine=load_engine("onnx"), memory=memory) as store:
        with store.begin_upload("m0") as upload:
            upload.write(model(0))
            upload.commit()
        with store.begin_upload("m1") as upload, pytest.raises(Overloaded, match="no memory"):
            upload.write(model(1))
        assert run(store.get("m0")) == [1.0]
        assert memory.refused == 1
        used = memory.used
        store.delete("m0")
        assert (used, memory.used) == (3 * len(model(0)), 0)


def test_a_run_keeps_its_weights(place):
    """A model that is put to rest in the middle of a run ends that run as usual."""
    place.put(0)
    resting = place.store.get("m0").model
    inner = resting.wake()
    assert resting.rest()
    assert inner.run(X)[0].array.tolist() == [1.0]
    assert place.memory.used == 3 * len(model(0))
    del inner
    assert place.memory.used == 0


def test_deleted_while_it_rests(place):
    """It runs no more, and leaves neither a file nor a count."""
    key = place.put(0)
    entry = place.store.get("m0")
    entry.model.rest()
    place.store.delete("m0")
    del place.files[key]
    with pytest.raises(ModelNotFound):
        run(entry)
    assert list(place.store.folder.glob("*.onnx")) == []
    assert place.memory.used == 0


def test_the_same_file_again_after_a_deletion(place):
    """Whoever still holds the first one does not take the second one's file away."""
    place.put(0)
    first = place.store.get("m0")
    run(first)
    place.store.delete("m0")
    place.put(0)
    assert first.model.rest()
    second = place.store.get("m0")
    assert second.path.exists()
    assert run(second) == run(first) == [1.0]
    assert second.path.read_bytes() == model(0)


@pytest.mark.parametrize("change", [lambda it: it[:-1], lambda it: it + b" ", lambda _: model(1)])
def test_another_file_does_not_come_back(place, change):
    """What lasts has to be what was taken in; as soon as it is again, it runs."""
    key = place.put(0)
    entry = place.store.get("m0")
    entry.model.rest()
    place.files[key] = change(model(0))
    with pytest.raises(SealedDataError, match="came another"):
        run(entry)
    assert place.memory.used == 0
    assert [path.name for path in place.store.folder.glob("*upload*")] == []
    place.files[key] = model(0)
    assert run(entry) == [1.0]


def test_kept_awake(place):
    """What somebody reads the file of does not rest meanwhile."""
    place.put(0)
    entry = place.store.get("m0")
    with entry.model.awake(), ThreadPoolExecutor(1) as other:
        assert other.submit(entry.model.rest).result() is False
        assert hashlib.sha256(entry.path.read_bytes()).hexdigest() == entry.record.sha256
    assert entry.model.rest() is True


def test_many_threads_and_no_room(place):
    """Six models in the room of two and a half, run by many at once: every answer is right."""
    for number in range(6):
        place.put(number)

    def often(seed):
        for step in range(12):
            number = (seed * 5 + step * 7) % 6
            while True:
                try:
                    assert run(place.store.get(f"m{number}")) == [1.0 + number]
                except Overloaded:
                    continue
                break

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(often, range(4)))
    assert place.memory.used <= place.memory.total
    assert place.memory.rested > 6


def test_one_loads_and_the_others_wait(place):
    """However many run a model that rests, it comes back once."""
    place.put(0)
    entry = place.store.get("m0")
    entry.model.rest()
    barrier = threading.Barrier(4)

    def together(_):
        barrier.wait()
        return run(entry)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(together, range(4))) == [[1.0]] * 4
    assert len(place.fetched) == 1


def test_closed(place):
    """After the store was closed nothing wakes."""
    place.put(0)
    entry = place.store.get("m0")
    place.store.close()
    with pytest.raises(InferenceError, match="unloaded"):
        run(entry)


def test_small_ones_stay(tmp_path):
    """A model that is quicker fetched than missed is left where it is."""
    with ModelStore(
        tmp_path / "store", engine=load_engine("onnx"), memory=Memory(1 << 30)
    ) as store:
        with store.begin_upload("m") as upload:
            upload.write(padded(1.0, 1000))
            key = upload.commit().key
        store.let_rest(key, lambda _: None)
        assert not isinstance(store.get("m").model, RestingModel)


V2 = {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/memory.max": "max\n"}
V1 = {"proc/self/cgroup": "5:cpu,memory:/a\n1:name=systemd:/\n0::/\n"}
NO_LIMIT = str(2**63 - 4096)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 3 << 30),
        ({"proc/meminfo": "MemTotal:  1000 kB\nMemFree: 1 kB\n"}, 768_000),
        (V2 | {"sys/fs/cgroup/a/b/memory.max": "4000\n"}, 3000),
        (V2 | {"sys/fs/cgroup/a/memory.max": "4000\n"}, 3000),
        (V2 | {"sys/fs/cgroup/a/memory.max": "0\n", "proc/meminfo": "MemTotal: 4 kB"}, 3072),
        ({"proc/self/cgroup": "0::/../x", "sys/fs/cgroup/memory.max": "400"}, 300),
        (V1 | {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "8000"}, 6000),
        (V1 | {"sys/fs/cgroup/memory/memory.limit_in_bytes": "800"}, 600),
        (
            V1
            | {
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": NO_LIMIT,
                "proc/meminfo": "MemTotal: 1000 kB",
            },
            768_000,
        ),
        ({"proc/self/cgroup": "::::\n\n:", "proc/meminfo": "\0\nMemTotal: x"}, 3 << 30),
    ],
)
def test_budget_of_a_machine(tmp_path, files, expected):
    """Three quarters of the least that the machine or a control group allows."""
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert default_budget(tmp_path) == expected
