"""Models that nobody uses are deleted in the end, and nothing else is."""

import io
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

import blindai
from blindai.attesters.simulation import SimulationAttester
from blindai.errors import ConfigurationError, SealedDataError
from blindai.inference.engines import load_engine
from blindai.inference.sealing_key import FileSealingKey
from blindai.inference.store import ModelStore
from blindai.inference.vault import Vault
from blindai.server.config import ServerConfig
from blindai.server.pruning import prune
from blindai.server.sealing import DAY, SealedModels, today
from blindai.testing.server import start_server
from tests.inference.models import identity
from tests.inference.test_forms import mlp

pytestmark = pytest.mark.filterwarnings("ignore::blindai.SimulationWarning")
WEEK = timedelta(days=7)
X = {"x": np.ones(2, np.float32)}


def put(store, name, content):
    with store.begin_upload(name) as upload:
        upload.write(content)
        return store.get(upload.commit().key)


def held(store):
    return sorted(name for record in store.records() for name in record.names)


def wait_until(condition):
    """Ask until it holds, for ten seconds at most."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def swept(store, sealed=None, *, days, ran=None, spared=frozenset()):
    """Sweep `days` after now; `ran` has the days after now on which models ran."""
    runs = {key: time.time() + day * DAY for key, day in (ran or {}).items()}
    return prune(
        store,
        sealed,
        last_run=lambda entry: runs.get(entry.record.names[0], 0.0),
        unused_for=WEEK,
        spared=spared,
        now=time.time() + days * DAY,
    )


@pytest.fixture
def store(tmp_path):
    with ModelStore(tmp_path / "store", engine=load_engine("onnx")) as made:
        yield made


def test_unused(store):
    """What was uploaded and never run goes after the days that were set, under all its names."""
    unused = put(store, "unused", identity()).record.sha256
    put(store, "unused-2", identity())
    put(store, "used", mlp())
    assert swept(store, days=6.9) == []
    assert swept(store, days=7.1, ran={"used": 3}) == [unused]
    assert held(store) == ["used"]
    assert swept(store, days=9.9, ran={"used": 3}) == []
    assert len(swept(store, days=10.1, ran={"used": 3})) == 1
    assert held(store) == []


def test_what_the_operator_set_stays(store):
    """A name that is served from the start keeps its model."""
    put(store, "set", identity())
    put(store, "other", identity())
    put(store, "uploaded", mlp())
    assert len(swept(store, days=100, spared={"set"})) == 1
    assert held(store) == ["other", "set"]


def test_a_clock_that_went_back(store):
    """A time before the upload makes no model old."""
    put(store, "m", identity())
    assert swept(store, days=-100_000) == []


def test_use_is_known_after_a_restart(tmp_path, store):
    """Of sealed models the day counts on which they last ran, and not the restart."""
    folder = tmp_path / "vault"
    sealed = SealedModels(folder, SimulationAttester(), store)
    for name, content in (("used", mlp()), ("unused", identity())):
        sealed.keep(name, put(store, name, content))
    assert swept(store, sealed, days=5, ran={"used": 5}) == []
    sealed.close()
    later = datetime.now(UTC) + timedelta(days=6)
    with ModelStore(
        tmp_path / "again", engine=load_engine("onnx"), clock=lambda: later
    ) as restarted:
        sealed = SealedModels(folder, SimulationAttester(), restarted)
        assert sealed.restore() == []
        assert len(swept(restarted, sealed, days=8.1)) == 1
        assert held(restarted) == ["used"]
        assert swept(restarted, sealed, days=11.9) == []
        assert len(swept(restarted, sealed, days=13.1)) == 1
        sealed.close()
    with ModelStore(tmp_path / "third", engine=load_engine("onnx")) as third:
        sealed = SealedModels(folder, SimulationAttester(), third)
        assert sealed.restore() == []
        assert held(third) == []
        sealed.close()


def test_the_disk_is_not_written_for_nothing(tmp_path, store):
    """A day that is known is not written down again."""
    sealed = SealedModels(tmp_path / "vault", SimulationAttester(), store)
    sealed.keep("m", put(store, "m", identity()))
    registry = tmp_path / "vault" / "registry.sealed"
    written = []
    for ran in (1, 1, 1.0001, 2.5):
        swept(store, sealed, days=3, ran={"m": ran})
        written.append(registry.read_bytes())
    sealed.close()
    assert written[0] == written[1]
    assert written[2] != written[3]


def test_a_shut_vault(tmp_path, store):
    """Nothing is deleted where it could not be for good."""
    folder = tmp_path / "vault"
    SealedModels(folder, SimulationAttester(), store).close()
    folder.with_name("vault.key").unlink()
    sealed = SealedModels(folder, SimulationAttester(), store)
    put(store, "m", identity())
    with pytest.raises(SealedDataError, match="cannot keep models"):
        swept(store, sealed, days=100)
    assert held(store) == ["m"]


def test_in_a_server(tmp_path, caplog):
    """A server that is started after the days are over deletes, and says so."""
    folder, models = tmp_path / "vault", tmp_path / "models"
    models.mkdir()
    (models / "set.onnx").write_bytes(mlp())
    config = {"sealed": folder, "models": models, "prune_after": WEEK}
    with start_server(config=config) as server:
        with blindai.connect(server.address, simulation=True, token=server.token) as client:
            client.upload_model(identity(), name="m")
            client.run_model("m", X)
        server.stop()
    key = FileSealingKey(folder.with_name("vault.key")).sealing_key()
    with Vault(folder, key) as vault:
        (model,) = vault.models()
        assert 0 <= today() - model.used <= 1
        vault.seal(
            io.BytesIO(identity()),
            sha256=model.sha256,
            size=model.size,
            names=["m"],
            options=model.options,
            used=model.used - 9,
        )
    with start_server(config=config) as server, caplog.at_level("INFO", "blindai.server"):
        with blindai.connect(server.address, simulation=True) as client:
            wait_until(lambda: [model.name for model in client.models()] == ["set"])
        wait_until(lambda: f"model_pruned sha256={model.sha256}" in caplog.text)


@pytest.mark.parametrize("seconds", [0, -1, 86_399])
def test_less_than_a_day(seconds):
    """Days are what is written down, so less than one is refused."""
    with pytest.raises(ConfigurationError, match="prune_after: expected a day or more"):
        ServerConfig(platform="simulation", prune_after=timedelta(seconds=seconds))
