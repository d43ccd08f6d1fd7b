"""Uploaded models come back after a restart, whole, or not at all and with a reason."""

import contextlib
import os
import random
import shutil
import subprocess
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import blindai
from blindai.attesters.simulation import SimulationAttester
from blindai.errors import ConfigurationError, ModelNotFound, SealedDataError
from blindai.inference.engines import load_engine
from blindai.inference.store import ModelStore
from blindai.server.sealing import SealedModels
from blindai.testing.server import start_server
from tests.inference.models import identity
from tests.inference.test_forms import WIDE, mlp
from tests.server.talk import authorized, request

pytestmark = [
    pytest.mark.filterwarnings("ignore::blindai.SimulationWarning"),
]
X = {"x": np.ones((1, WIDE), np.float32)}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "vault"


@pytest.fixture
def server(folder):
    with start_server(config={"sealed": folder}) as running:
        yield running


def connect(server):
    return blindai.connect(server.address, simulation=True, token=server.token)


def test_models_survive_a_restart(server, folder):
    """With their names, their precision and their answers; a deleted one stays gone."""
    with connect(server) as client:
        client.upload_model(mlp(), name="small", precision="int8")
        client.upload_model(identity(), name="gone")
        client.upload_model(identity(), name="kept")
        client.delete_model("gone")
        before = client.run_model("small", X)[0]
    assert not any(mlp()[1000:1100] in path.read_bytes() for path in folder.rglob("*.sealed"))
    server.restart()
    with connect(server) as client:
        assert {m.name: m.precision for m in client.models()} == {"kept": "fp32", "small": "int8"}
        np.testing.assert_allclose(client.run_model("small", X)[0], before, atol=1e-6)
        with pytest.raises(ModelNotFound):
            client.run_model("gone", X)


def test_what_was_measured_is_remembered(server):
    """After a restart a model has the form and the deviation that were told at its upload."""
    with connect(server) as client:
        client.upload_model(mlp(), name="small", precision="int8")
        client.upload_model(mlp(layers=2), name="chosen", precision="auto", tolerance=0.2)
        before = {m.name: (m.form, m.deviation) for m in client.models()}
    assert before["small"][1] > 0
    server.restart()
    with connect(server) as client:
        assert {m.name: (m.form, m.deviation) for m in client.models()} == before
        # The same options still mean the same model.
        again = client.upload_model(mlp(layers=2), name="chosen", precision="auto", tolerance=0.2)
        assert (again.form, again.deviation) == before["chosen"]


def test_names_move_as_they_did(server):
    """A replaced model is replaced for good."""
    with connect(server) as client:
        client.upload_model(identity(), name="m")
        last = client.upload_model(mlp(), name="m", replace=True)
    server.restart()
    with connect(server) as client:
        assert [m.sha256 for m in client.models()] == [last.sha256]


def test_a_damaged_file_is_that_models_error_alone(server, folder, caplog, capfd):
    """The others serve, and the damaged one is not there; the log has its digest, no name."""
    with connect(server) as client:
        client.upload_model(identity(), name="good")
        before = set(folder.glob("*.sealed"))
        bad = client.upload_model(mlp(), name="private-name")
    (file,) = set(folder.glob("*.sealed")) - before
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with caplog.at_level("INFO", "blindai.server"):
        server.restart()
    assert f"model_refused file=sha256:{bad.sha256}" in caplog.text
    assert "private-name" not in caplog.text + "".join(capfd.readouterr())
    with connect(server) as client:
        assert [m.name for m in client.models()] == ["good"]


def test_another_machines_vault_stays_shut(server, folder):
    """Nothing of it is touched, uploads say why, and the rest serves."""
    with connect(server) as client:
        client.upload_model(identity(), name="m")
    server.stop()
    key = folder.with_name("vault.key")
    saved, mine = folder.with_name("saved"), key.read_bytes()
    shutil.copytree(folder, saved)
    key.write_bytes(os.urandom(32))
    with start_server(config={"sealed": folder}, models={"other": identity()}) as other:
        with connect(other) as client:
            assert [m.name for m in client.models()] == ["other"]
            with pytest.raises(SealedDataError, match="stay shut"):
                client.upload_model(mlp(), name="new")
            assert [m.name for m in client.models()] == ["other"]
        reply = request(other, "PUT", "/blindai/v1/models/new", mlp(), headers=authorized(other))
        assert (reply.status, reply.error) == (503, "SealedDataError")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in saved.iterdir()
    }
    key.write_bytes(mine)
    with start_server(config={"sealed": folder}) as again, connect(again) as client:
        assert [m.name for m in client.models()] == ["m"]


def test_full_disk_loses_nothing(tmp_path):
    """An upload that cannot be sealed is refused, and what had the name keeps it, for good."""
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(small)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        with start_server(config={"sealed": small / "vault"}) as server:
            with connect(server) as client:
                old = client.upload_model(identity(), name="m")
                with pytest.raises(blindai.Overloaded, match="room"):
                    client.upload_model(mlp(width=256), name="m", replace=True)
                assert [m.sha256 for m in client.models()] == [old.sha256]
            server.restart()
            with connect(server) as client:
                assert [m.sha256 for m in client.models()] == [old.sha256]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_one_file_in_two_precisions_is_refused(server):
    """A vault holds one form of a file; the second upload says so and changes nothing."""
    with connect(server) as client:
        client.upload_model(mlp(), name="exact")
        with pytest.raises(blindai.ModelConflict, match="another precision"):
            client.upload_model(mlp(), name="small", precision="int8")
        assert [m.name for m in client.models()] == ["exact"]


@pytest.fixture
def parts(tmp_path, folder):
    """Yield a store, and what keeps its models."""
    with ModelStore(tmp_path / "store", engine=load_engine("onnx"), max_uploads=99) as store:
        sealed = SealedModels(folder, SimulationAttester(), store)
        yield store, sealed
        sealed.close()


def put(store, name, content):
    """Upload a model to a store alone; return it."""
    with store.begin_upload(name) as upload:
        upload.write(content)
        return store.get(upload.commit(replace=True).key)


def held(store):
    return {name: record.sha256 for record in store.records() for name in record.names}


def test_deleted_before_it_was_sealed(parts, folder, tmp_path):
    """An upload whose name is gone in this moment is refused, and is not back after a restart."""
    store, sealed = parts
    entry = put(store, "m", identity())
    sealed.delete("m")
    with pytest.raises(blindai.ModelConflict, match="deleted, or given to another"):
        sealed.keep("m", entry)
    first = put(store, "m", identity())
    second = put(store, "m", mlp())
    with pytest.raises(blindai.ModelConflict, match="deleted, or given to another"):
        sealed.keep("m", first)
    sealed.keep("m", second)
    sealed.close()
    with ModelStore(tmp_path / "again", engine=load_engine("onnx")) as again:
        assert SealedModels(folder, SimulationAttester(), again).restore() == []
        assert held(again) == {"m": second.record.sha256}


def test_many_at_once(parts, folder, tmp_path):
    """Uploads and deletions of the same names at once: what serves in the end is what is sealed."""
    store, sealed = parts
    models = [identity(), mlp(), mlp(width=12)]
    names = ["a", "b"]

    def work(seed):
        dice = random.Random(seed)
        for _ in range(12):
            name = dice.choice(names)
            with contextlib.suppress(blindai.ModelConflict, ModelNotFound):
                if dice.random() < 0.3:
                    sealed.delete(name)
                else:
                    sealed.keep(name, put(store, name, dice.choice(models)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    expected = held(store)
    sealed.close()
    with ModelStore(tmp_path / "again", engine=load_engine("onnx")) as again:
        assert SealedModels(folder, SimulationAttester(), again).restore() == []
        assert held(again) == expected


def test_a_damaged_model_can_be_deleted(server, folder):
    """It does not serve, and its name is taken away all the same."""
    with connect(server) as client:
        client.upload_model(identity(), name="bad")
    (file,) = set(folder.glob("*.sealed")) - {folder / "registry.sealed"}
    file.write_bytes(file.read_bytes()[:-1])
    server.restart()
    with connect(server) as client:
        assert client.models() == []
        client.delete_model("bad")
        with pytest.raises(ModelNotFound):
            client.delete_model("bad")


def test_it_is_said(folder):
    """In simulation the key is a file, which is warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with start_server(config={"sealed": folder}):
            pass
    assert any("sealed under a key in a file" in str(each.message) for each in caught)


def test_no_key_no_vault(folder):
    """A platform without a sealing key refuses a folder for sealed models."""

    class Keyless:
        def __init__(self, attester):
            self.platform = attester.platform
            self.attest = attester.attest

        def sealing_key(self):
            return None

        def rollback_counter(self):
            return None

    from blindai.testing import FAKES  # noqa: PLC0415 - needed here only

    vendor = FAKES["nitro"]()
    with (
        pytest.raises(ConfigurationError, match="gives no key to seal models under"),
        start_server(attester=Keyless(vendor), config={"sealed": folder}),
    ):
        pass
