"""What is sealed comes back unchanged or not at all, and one bad file is one bad model."""

import io
import os
import sys
import threading
import tracemalloc

import pytest

from blindai.errors import (
    ConfigurationError,
    InvalidInput,
    LimitExceeded,
    ModelNotFound,
    SealedDataError,
)
from blindai.inference.at_rest import keep_model, restore_models
from blindai.inference.engine import LoadOptions
from blindai.inference.onnx import OnnxEngine
from blindai.inference.sealed_file import HEADER_SIZE
from blindai.inference.store import ModelStore
from blindai.inference.vault import Vault, take_over
from tests.inference.models import add
from tests.inference.vaults import (
    KEY,
    LARGE,
    MIB,
    OTHER_KEY,
    SMALL,
    contents,
    file_of,
    opens,
    seal,
    sha256,
    unseal,
)

CHUNK = MIB + 16


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "vault"


@pytest.fixture
def vault(folder):
    with Vault(folder, KEY) as vault:
        yield vault


@pytest.mark.parametrize("data", [b"", b"x", b"y" * MIB, b"z" * (MIB + 1), LARGE], ids=len)
def test_models_survive_a_restart(folder, data):
    """Whatever the size of a model, it is back, with its names and options, when reopened."""
    with Vault(folder, KEY) as vault:
        sealed = seal(vault, data, "b", "a", threads=2, note="fast", spin=False)
    with Vault(folder, KEY) as vault:
        assert vault.models() == (sealed,)
        assert sealed.names == ("a", "b")
        assert sealed.options == {"threads": 2, "note": "fast", "spin": False}
        assert unseal(vault, data) == data


def test_nothing_is_in_clear(folder, vault):
    """Neither weights nor names nor options nor digests can be read from the disk."""
    secret = b"weights of a secret model" * 10
    seal(vault, secret, "covidnet", note="hush")
    on_disk = b"".join(path.read_bytes() for path in folder.iterdir())
    for trace in (b"weights", b"covidnet", b"hush", sha256(secret).encode(), KEY):
        assert trace not in on_disk
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_names_move(folder, vault):
    """A name that is taken by another model leaves the first, whose file goes with its last."""
    first = seal(vault, SMALL, "a", "b")
    seal(vault, LARGE, "a")
    assert [(m.sha256, m.names) for m in vault.models()] == [
        (sha256(SMALL), ("b",)),
        (sha256(LARGE), ("a",)),
    ]
    vault.add_name("b", sha256(LARGE))
    assert [m.names for m in vault.models()] == [("a", "b")]
    assert not file_of(folder, first).exists()
    with pytest.raises(ModelNotFound, match="no sealed model"):
        unseal(vault, SMALL)


def test_removal(folder, vault):
    """A model is gone from the disk with its last name, and only then."""
    model = seal(vault, SMALL, "a", "b")
    vault.remove("a")
    assert unseal(vault, SMALL) == SMALL
    vault.remove("b")
    assert not vault.models()
    assert not file_of(folder, model).exists()
    for gone in (lambda: vault.remove("b"), lambda: vault.add_name("c", sha256(SMALL))):
        with pytest.raises(ModelNotFound):
            gone()


def test_sealing_again_mends(folder, vault):
    """A model whose file was damaged is whole again when it is uploaded again."""
    model = seal(vault, SMALL, "a", "b")
    file_of(folder, model).write_bytes(b"")
    again = seal(vault, SMALL, "a")
    assert again.names == ("a", "b")
    assert unseal(vault, SMALL) == SMALL
    assert not file_of(folder, model).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": sha256(b"other")}, "expected a model with SHA-256"),
        ({"sha256": "../x"}, "a SHA-256"),
        ({"size": len(SMALL) - 1}, "came more"),
        ({"size": len(SMALL) + 1}, f"came {len(SMALL)}"),
        ({"size": -1}, "a size"),
        ({"size": 1 << 80}, "expected at most"),
        ({"names": ["../etc"]}, "expected a model name"),
        ({"names": []}, "expected names"),
        ({"options": {"float": 0.5}}, "read again"),
        ({"options": {"nan": float("nan")}}, "read again"),
        ({"options": {"object": object()}}, "came others"),
        ({"options": {"text": "\ud800"}}, "came others"),
    ],
)
def test_bad_input_leaves_nothing(folder, vault, change, message):
    """What cannot be sealed is refused, and no file is left of it."""
    before = sorted(folder.iterdir())
    arguments = {"sha256": sha256(SMALL), "size": len(SMALL), "names": ["a"]} | change
    with pytest.raises(InvalidInput, match=message):
        vault.seal(io.BytesIO(SMALL), **arguments)
    assert sorted(folder.iterdir()) == before
    assert seal(vault, SMALL, "a") in vault.models()


def test_full_registry(folder, vault):
    """A registry has a largest size; what does not fit leaves what is there."""
    seal(vault, SMALL, "a")
    with pytest.raises(LimitExceeded, match="registry of at most"):
        seal(vault, LARGE, "b", note="x" * (4 * MIB))
    assert unseal(vault, SMALL) == SMALL
    assert len(list(folder.iterdir())) == 2


def swap(data, one, two):
    """Exchange two chunks."""
    chunks = [data[i : i + CHUNK] for i in range(HEADER_SIZE, len(data), CHUNK)]
    chunks[one], chunks[two] = chunks[two], chunks[one]
    return data[:HEADER_SIZE] + b"".join(chunks)


DAMAGE = {
    "flipped": (lambda d: d[:5000] + bytes([d[5000] ^ 1]) + d[5001:], "chunk 1 of 3"),
    "flipped last": (lambda d: d[:-1] + bytes([d[-1] ^ 0x80]), "chunk 3 of 3"),
    "header": (lambda d: d[:15] + bytes([d[15] ^ 1]) + d[16:], "header was changed"),
    "magic": (lambda d: b"X" + d[1:], "expected a sealed file"),
    "truncated": (lambda d: d[:-1], "truncated"),
    "without end": (lambda d: d[: HEADER_SIZE + 2 * CHUNK], "truncated"),
    "empty": (lambda d: b"", "ends early"),
    "extended": (lambda d: d + b"x", "extended"),
    "reordered": (lambda d: swap(d, 0, 1), "chunk 1 of 3"),
    "repeated": (
        lambda d: (
            d[: HEADER_SIZE + CHUNK]
            + d[HEADER_SIZE : HEADER_SIZE + CHUNK]
            + d[HEADER_SIZE + 2 * CHUNK :]
        ),
        "chunk 2 of 3",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_bad_file_is_one_bad_model(folder, name):
    """A changed file is refused by the name of its model; the other models are there."""
    damage, message = DAMAGE[name]
    with Vault(folder, KEY) as vault:
        model = seal(vault, LARGE, "broken")
        seal(vault, SMALL, "whole")
    path = file_of(folder, model)
    path.write_bytes(damage(path.read_bytes()))
    with Vault(folder, KEY) as vault:
        with pytest.raises(SealedDataError, match=message) as caught:
            unseal(vault, LARGE)
        assert f"model 'broken' (sha256:{sha256(LARGE)})" in str(caught.value)
        assert unseal(vault, SMALL) == SMALL


def test_files_cannot_change_places(folder, vault):
    """Another model's file, an earlier one of the same model, a link or none is refused."""
    early = seal(vault, SMALL, "a")
    kept = file_of(folder, early).read_bytes()
    model = seal(vault, SMALL, "a")
    other = seal(vault, SMALL + b"!", "b")
    path = file_of(folder, model)
    for content in (kept, file_of(folder, other).read_bytes()):
        path.write_bytes(content)
        with pytest.raises(SealedDataError, match="another file, or an earlier one"):
            unseal(vault, SMALL)
    path.unlink()
    with pytest.raises(SealedDataError, match=r"'a'.*cannot be read: No such file"):
        unseal(vault, SMALL)
    path.symlink_to(file_of(folder, other))
    with pytest.raises(SealedDataError, match=r"'a'.*cannot be read"):
        unseal(vault, SMALL)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(SealedDataError, match=r"'a'.*regular file"):
        unseal(vault, SMALL)


def test_another_machine_or_other_code(folder):
    """With another sealing key everything stays shut, says why, and is left as it is."""
    with Vault(folder, KEY) as vault:
        seal(vault, SMALL, "a")
    (folder / f"{'0' * 32}.sealed").write_bytes(b"not named")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert "other code or on another machine" in opens(folder, OTHER_KEY)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert contents(folder) == {"a": SMALL}


def test_every_bit_of_the_registry_counts(folder):
    """A registry with any byte changed, cut off or added is refused, and nothing is removed."""
    with Vault(folder, KEY) as vault:
        model = seal(vault, SMALL, "a")
    path = folder / "registry.sealed"
    good = path.read_bytes()
    bad = [good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :] for i in range(len(good))]
    bad += [good[:size] for size in range(0, len(good), 7)] + [good + b"x"]
    for content in bad:
        path.write_bytes(content)
        assert "stay shut" in opens(folder)
        assert file_of(folder, model).exists()
    path.write_bytes(good)
    assert contents(folder) == {"a": SMALL}


def test_a_registry_that_is_missing_too_large_or_no_file(folder):
    """Models without a registry are no new vault; nor is a giant, a link or a folder."""
    with Vault(folder, KEY) as vault:
        seal(vault, SMALL, "a")
    path = folder / "registry.sealed"
    moved = path.rename(folder / "elsewhere")
    assert "is missing" in opens(folder)
    path.symlink_to(moved)
    assert "cannot be read" in opens(folder)
    path.unlink()
    os.mkfifo(path)
    assert "regular file" in opens(folder)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert "at most" in opens(folder)


def test_what_a_power_cut_left_is_cleared(folder):
    """Files that the registry does not name are removed; files of others are not."""
    with Vault(folder, KEY) as vault:
        seal(vault, SMALL, "a")
    orphans = [folder / f"{'0' * 32}.sealed", folder / f".registry-{'0' * 32}"]
    stranger = folder / "README"
    for path in [*orphans, stranger]:
        path.write_bytes(b"x")
    assert contents(folder) == {"a": SMALL}
    assert not any(path.exists() for path in orphans)
    assert stranger.exists()


def test_one_server_at_a_time(folder, vault, tmp_path):
    """A folder that another server uses, or that is none, is refused."""
    with pytest.raises(ConfigurationError, match="another server uses it"):
        Vault(folder, KEY)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="expected a folder"):
        Vault(tmp_path / "file", KEY)
    with pytest.raises(ConfigurationError, match="32 bytes, came 31"):
        Vault(tmp_path / "new", KEY[1:])
    assert not (tmp_path / "new").exists()


def test_resealing_moves_everything(folder):
    """After resealing the new key opens, the old one does not, and no old file is left."""
    with Vault(folder, KEY) as vault:
        old = [seal(vault, SMALL, "a", threads=3), seal(vault, LARGE, "b", "c")]
        vault.reseal(OTHER_KEY)
        assert vault.key_version == 2
        assert unseal(vault, LARGE) == LARGE
        assert not any(file_of(folder, model).exists() for model in old)
        assert [m.options for m in vault.models()] == [{"threads": 3}, {}]
    assert "other code" in opens(folder, KEY)
    assert contents(folder, OTHER_KEY) == {"a": SMALL, "b": LARGE, "c": LARGE}


def test_taking_over(folder, tmp_path):
    """The data key opens a vault for other code once; what is sealed then, it does not open."""
    with Vault(folder, KEY) as vault:
        seal(vault, SMALL, "a")
        handed = vault.data_key
    with pytest.raises(SealedDataError, match="stay shut"):
        take_over(folder, data_key=bytes(32), sealing_key=OTHER_KEY)
    assert contents(folder, KEY) == {"a": SMALL}
    for _ in range(2):
        assert take_over(folder, data_key=handed, sealing_key=OTHER_KEY) is None
        assert contents(folder, OTHER_KEY) == {"a": SMALL}
    assert "other code" in opens(folder, KEY)
    assert "stay shut" in opens(folder, KEY, handed=handed)
    with pytest.raises(ConfigurationError, match="came 3"):
        take_over(folder, data_key=handed, sealing_key=b"abc")


def test_taking_over_with_a_damaged_model(folder):
    """The others are this code's then, and that they are under the old data key is told."""
    with Vault(folder, KEY) as vault:
        seal(vault, SMALL, "whole")
        path = file_of(folder, seal(vault, LARGE, "broken"))
        handed = vault.data_key
    path.write_bytes(path.read_bytes()[:-1])
    failure = take_over(folder, data_key=handed, sealing_key=OTHER_KEY)
    assert "'broken'" in str(failure)
    with Vault(folder, OTHER_KEY) as vault:
        assert unseal(vault, SMALL) == SMALL
        assert vault.data_key == handed
        vault.remove("broken")
    assert take_over(folder, data_key=handed, sealing_key=OTHER_KEY) is None
    assert contents(folder, OTHER_KEY) == {"whole": SMALL}


def test_resealing_stops_at_a_bad_model(folder, vault):
    """A model that cannot be opened is named; nothing was changed, nothing is left over."""
    seal(vault, SMALL, "whole")
    model = seal(vault, LARGE, "broken")
    path = file_of(folder, model)
    path.write_bytes(path.read_bytes()[:-1])
    before = sorted(folder.iterdir())
    with pytest.raises(SealedDataError, match="'broken'"):
        vault.reseal(OTHER_KEY)
    assert sorted(folder.iterdir()) == before
    vault.remove("broken")
    vault.reseal(OTHER_KEY)
    assert unseal(vault, SMALL) == SMALL


def test_readers_are_not_disturbed(vault):
    """Who reads a model gets it, while it is resealed all the time."""
    seal(vault, SMALL, "a")
    stop = threading.Event()

    def change():
        while not stop.is_set():
            vault.reseal(KEY)

    changing = threading.Thread(target=change)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    changing.start()
    try:
        for _ in range(400):
            assert unseal(vault, SMALL) == SMALL
    finally:
        stop.set()
        changing.join()
        sys.setswitchinterval(interval)


class Zeros:
    """A source of so many zeros, which are nowhere in memory."""

    def __init__(self, size):
        self.left = size

    def readinto(self, buffer):
        came = min(len(buffer), self.left)
        buffer[:came] = bytes(came)
        self.left -= came
        return came


def test_memory_does_not_grow_with_the_model(vault):
    """Sealing, unsealing and resealing 96 MiB takes a few MiB, whatever the size."""
    size = 96 * MIB
    digest = sha256(bytes(size))
    came = 0

    def count(piece):
        nonlocal came
        came += len(piece)

    tracemalloc.start()
    try:
        vault.seal(Zeros(size), sha256=digest, size=size, names=["zeros"])
        vault.unseal(digest, count)
        vault.reseal(OTHER_KEY)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert came == size
    assert peak < 8 * MIB


def test_a_server_restarts_with_its_models(tmp_path, folder):
    """Models that ran are back after a restart; one that was damaged is named, alone."""

    def new_store(name):
        return ModelStore(tmp_path / name, engine=OnnxEngine(), options=LoadOptions(threads=1))

    with new_store("first") as store, Vault(folder, KEY) as vault:
        for value, names in ((1.0, ("one", "uno")), (2.0, ("two",))):
            for name in names:
                with store.begin_upload(name) as upload:
                    upload.write(add(value))
                    upload.commit()
            keep_model(vault, store.get(names[0]))
        gone = store.get("two")
    with pytest.raises(ModelNotFound, match="deleted before"), Vault(folder, KEY) as vault:
        keep_model(vault, gone)
    with new_store("second") as store, Vault(folder, KEY) as vault:
        assert restore_models(vault, store) == []
        assert [record.names for record in store.records()] == [("one", "uno"), ("two",)]
        broken = next(model for model in vault.models() if model.names == ("two",))
        path = file_of(folder, broken)
        path.write_bytes(path.read_bytes() + b"x")
    with new_store("third") as store, Vault(folder, KEY) as vault:
        ((model, error),) = restore_models(vault, store)
        assert model == broken
        assert "'two'" in str(error)
        assert [record.names for record in store.records()] == [("one", "uno")]
        assert store.bytes_in_use() == len(add(1.0))
