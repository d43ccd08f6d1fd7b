"""What the server acknowledged is there after a power cut, and nothing else is."""

import shutil

import pytest

from blindai.attestation.model import Platform
from blindai.attesters.simulation import SimulationAttester
from blindai.errors import SealedDataError
from blindai.inference.engines import load_engine
from blindai.inference.store import ModelStore
from blindai.server.handover import Handover
from blindai.server.sealing import SealedModels
from tests.faults.test_vault_power_cut import FragileCounter, FragileDisk, PowerCut
from tests.inference.models import identity
from tests.inference.test_forms import mlp
from tests.inference.vaults import KEY, Counter, sha256

FIRST, SECOND = identity(), mlp()


class Machine:
    """An attester with a sealing key, and a counter if it was given one."""

    platform = Platform.TPM

    def __init__(self, counter):
        self.counter = counter

    def attest(self, report_data):
        raise NotImplementedError

    def sealing_key(self):
        return KEY

    def rollback_counter(self):
        return self.counter


class Server:
    """The part of a server that keeps models, as it is after a start."""

    def __init__(self, root, counter, disk=None):
        self.store = ModelStore(root / "store", engine=load_engine("onnx"))
        try:
            vault = root / "vault"
            self.sealed = SealedModels(vault, Machine(counter), self.store, disk=disk)
            assert self.sealed.restore() == []
        except BaseException:
            self.store.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sealed.close()
        self.store.close()

    def upload(self, name, model):
        with self.store.begin_upload(name) as upload:
            upload.write(model)
            record = upload.commit(replace=True)
        self.sealed.keep(name, self.store.get(record.key))

    def holds(self):
        """Return name → SHA-256."""
        return {name: r.sha256 for r in self.store.records() for name in r.names}


ONE = {"m": sha256(FIRST)}
ACTIONS = {
    "upload": (lambda s: s.upload("n", SECOND), ONE | {"n": sha256(SECOND)}),
    "another name": (lambda s: s.upload("n", FIRST), ONE | {"n": sha256(FIRST)}),
    "replace": (lambda s: s.upload("m", SECOND), {"m": sha256(SECOND)}),
    "delete": (lambda s: s.sealed.delete("m"), {}),
    "withdraw": (lambda s: s.sealed.withdraw(), ONE),
}


@pytest.mark.parametrize("counted", [False, True], ids=["uncounted", "counted"])
@pytest.mark.parametrize("name", ACTIONS)
def test_acknowledged_is_kept(tmp_path, name, counted):
    """Cut at any step, a restart finds what was; after the answer, what was asked for."""
    action, after = ACTIONS[name]
    first = Counter()
    with Server(tmp_path / "start", first if counted else None) as server:
        server.upload("m", FIRST)
    states = []
    for cut_at in range(200):
        root = tmp_path / "cut"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(tmp_path / "start" / "vault", root / "vault")
        disk = FragileDisk.holding(root / "vault", cut_at)
        counter = FragileCounter(first.value, disk) if counted else None
        try:
            with Server(root, counter, disk) as server:
                action(server)
                acknowledged = True
        except PowerCut:
            acknowledged = False
        survivors = disk.survivors()
        for way in ("only what was synced", "half of the bytes", "everything"):
            again = tmp_path / "again"
            shutil.rmtree(again, ignore_errors=True)
            (again / "vault").mkdir(parents=True)
            for file, content in survivors[way].items():
                (again / "vault" / file).write_bytes(content)
            with Server(again, Counter(counter.value) if counted else None) as server:
                held = server.holds()
            assert held in ([after] if acknowledged else [ONE, after]), (cut_at, way)
            states.append(held)
        if acknowledged:
            break
    assert acknowledged
    assert cut_at > 3
    assert ONE in states
    assert after in states


def test_handover_is_whole_or_not_there(tmp_path):
    """A power cut leaves no half of what is left for the next version."""
    own = SimulationAttester()
    blob = None
    for cut_at in range(20):
        folder = tmp_path / f"{cut_at}" / "vault"
        folder.parent.mkdir()
        disk = FragileDisk.holding(folder.parent, cut_at)
        try:
            Handover(folder, own, disk).leave(KEY, {"measurement": bytes(32)})
            finished = True
        except PowerCut:
            finished = False
        for files in disk.survivors().values():
            found = files.get("vault.handover")
            assert found is not None or not finished
            blob = blob or found
            assert found in (None, blob)
        if finished:
            break
    assert finished
    assert KEY in blob
    with pytest.raises(SealedDataError, match="other code"):
        own.open_from_predecessor(blob)
