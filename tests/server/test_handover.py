"""Sealed models go to the next version of the code: the one that was named, and no other."""

import hashlib

import pytest

import blindai
from blindai.attesters.base import Succeeded
from blindai.attesters.simulation import SimulationAttester, source_digest
from blindai.errors import ConfigurationError, SealedDataError
from blindai.inference.engines import load_engine
from blindai.inference.store import ModelStore
from blindai.server.sealing import SealedModels
from blindai.testing.server import start_server
from tests.inference.models import identity
from tests.inference.test_forms import mlp
from tests.server.talk import authorized, request

pytestmark = pytest.mark.filterwarnings("ignore::blindai.SimulationWarning")
OWN = {"measurement": source_digest()}
OTHER = {"measurement": bytes(32)}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "vault"


@pytest.fixture
def server(folder):
    with start_server(config={"sealed": folder}) as running:
        yield running


def connect(server):
    return blindai.connect(server.address, simulation=True, token=server.token)


def become_other_code(folder):
    """Take the simulated sealing key away: what comes next gets another."""
    folder.with_name("vault.key").unlink()


def names(folder, **config):
    """Return the models that a new server has, with this configuration."""
    with (
        start_server(config={"sealed": folder, **config}) as server,
        connect(server) as client,
    ):
        return [model.name for model in client.models()]


def test_the_named_code_takes_over(server, folder):
    """It opens the models once it is told to, and from then on they are its own."""
    with connect(server) as client:
        client.upload_model(identity(), name="m")
        client.hand_over(OWN)
    server.restart()  # the code before still can
    with connect(server) as client:
        assert [model.name for model in client.models()] == ["m"]
    server.stop()
    become_other_code(folder)
    assert names(folder) == []
    assert names(folder, take_over=True) == ["m"]
    assert not folder.with_name("vault.handover").exists()
    assert names(folder) == ["m"]


def test_other_code_does_not(server, folder):
    """What was left for another measurement opens nothing; the code before goes on."""
    with connect(server) as client:
        client.upload_model(identity(), name="m")
        client.hand_over(OTHER)
    server.stop()
    # It is left for somebody else, and so stays where it is.
    assert names(folder, take_over=True) == ["m"]
    assert folder.with_name("vault.handover").exists()
    become_other_code(folder)
    assert names(folder, take_over=True) == []


def test_taken_back(server, folder):
    """After a withdrawal a copy of what was left opens nothing, and the models are still there."""
    left = folder.with_name("vault.handover")
    with connect(server) as client:
        client.upload_model(identity(), name="m")
        client.hand_over(OWN)
        copy = left.read_bytes()
        client.withdraw_handover()
        assert not left.exists()
        client.upload_model(identity(), name="later")
    server.restart()
    with connect(server) as client:
        assert [model.name for model in client.models()] == ["later", "m"]
    server.stop()
    left.write_bytes(copy)
    become_other_code(folder)
    assert names(folder, take_over=True) == []


def test_a_damaged_model_does_not_keep_the_others(server, folder, tmp_path):
    """The others are taken over; that they are not sealed anew yet is said at the start."""
    with connect(server) as client:
        client.upload_model(identity(), name="good")
        before = set(folder.glob("*.sealed"))
        client.upload_model(mlp(), name="bad")
        client.hand_over(OWN)
    (file,) = set(folder.glob("*.sealed")) - before - {folder / "registry.sealed"}
    server.stop()
    file.write_bytes(file.read_bytes()[:-1])
    become_other_code(folder)
    with ModelStore(tmp_path / "store", engine=load_engine("onnx")) as store:
        sealed = SealedModels(folder, SimulationAttester(), store, take_over=True)
        assert "can still open the sealed models: one of them is damaged" in sealed.caveats[0]
        digest = hashlib.sha256(mlp()).hexdigest()
        assert [str(path) for path, _ in sealed.restore()] == [f"sha256:{digest}"]
        assert [name for record in store.records() for name in record.names] == ["good"]
        sealed.delete("bad")
        sealed.withdraw()
        sealed.close()
    assert names(folder) == ["good"]


def test_only_with_the_token(server):
    """Nobody else has models handed over, or taken back."""
    body = b'{"measurements": {"measurement": "00"}}'
    for method, content in (("PUT", body), ("DELETE", b"")):
        assert request(server, method, "/blindai/v1/handover", content).status == 401
    headers = authorized(server)
    assert request(server, "DELETE", "/blindai/v1/handover", headers=headers).status == 204
    for wrong in (body, b"{}", b"[" * 5000, b'{"measurements": {"measurement": "no"}}'):
        assert request(server, "PUT", "/blindai/v1/handover", wrong, headers=headers).status == 400


def test_nothing_is_sealed():
    """A server that keeps its models in memory only says so."""
    with start_server() as server, connect(server) as client:
        with pytest.raises(blindai.InvalidInput, match="seals no models"):
            client.hand_over(OWN)
        with pytest.raises(blindai.InvalidInput, match="seals no models"):
            client.withdraw_handover()


def test_the_simulated_way():
    """It has the shape of the real one, and hides nothing."""
    attester = SimulationAttester()
    assert isinstance(attester, Succeeded)
    blob = attester.seal_for_successor(b"secret", OWN)
    assert b"secret" in blob
    assert b"SIMULATED" in blob
    assert attester.open_from_predecessor(blob) == b"secret"
    for bad in (b"", blob[:10], blob[:40], blob[: -len(b"secret")]):
        with pytest.raises(SealedDataError, match="was changed"):
            attester.open_from_predecessor(bad)
    with pytest.raises(SealedDataError, match="for other code"):
        attester.open_from_predecessor(attester.seal_for_successor(b"secret", OTHER))
    for wrong in ({}, {"pcr9": bytes(32)}, {"measurement": bytes(31)}, OWN | {"pcr0": bytes(32)}):
        with pytest.raises(ConfigurationError, match="expected one measurement of 32 bytes"):
            attester.seal_for_successor(b"secret", wrong)
