"""Models of tenants that last: each tenant's in a vault of its own, and handed over with all."""

import contextlib
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from blindai.attestation.model import Platform
from blindai.attesters.simulation import source_digest
from blindai.inference.engines import load_engine
from blindai.inference.store import ModelStore
from blindai.inference.tensors import DataType, Tensor
from blindai.server.access.keys import create_key
from blindai.server.access.principal import Scope
from blindai.server.access.rules import AccessRules, Quota
from blindai.server.config import ServerConfig
from blindai.server.service import Service
from blindai.testing.server import start_server
from tests.inference.models import add, identity
from tests.server.talk import infer_body, request

pytestmark = pytest.mark.filterwarnings("ignore::blindai.SimulationWarning")
OWN = b'{"measurements": {"measurement": "%s"}}' % source_digest().hex().encode()
HANDOVER = "/blindai/v1/handover"


@pytest.fixture
def place(tmp_path):
    """The configuration of a server with two tenants, and what they and the operator present."""
    keys = tmp_path / "keys.json"
    tokens = {}
    for tenant in ("acme", "beta", ""):
        _, token = create_key(keys, name="k", scopes=Scope, now=datetime.now(UTC), tenant=tenant)
        tokens[tenant] = {"Authorization": f"Bearer {token}"}
    rules = AccessRules(
        public=frozenset(), api_keys=keys, tenants={"acme": Quota(), "beta": Quota()}
    )
    return {"access": rules, "sealed": tmp_path / "vault"}, tokens


def put(server, name, content, headers):
    reply = request(server, "PUT", f"/blindai/v1/models/{name}", content, headers)
    assert reply.status in {200, 201}, reply


def held(server, tokens):
    """Return the names that each tenant sees."""
    return {
        tenant: [
            entry["name"]
            for entry in request(server, "GET", "/blindai/v1/models", headers=headers).json()[
                "models"
            ]
        ]
        for tenant, headers in tokens.items()
    }


def become_other_code(config):
    """Take the simulated sealing keys away: what comes next gets others."""
    folder = config["sealed"]
    for key in (folder.with_name("vault.key"), *folder.parent.glob("vault-tenants/*.key")):
        key.unlink()


def test_each_gets_its_own_back(place):
    """After a restart every tenant has its models, and what it deleted stays gone for it alone."""
    config, tokens = place
    with start_server(config=config) as server:
        for tenant in tokens:
            put(server, "m", add(len(tenant) + 1.0), tokens[tenant])
        put(server, "shared", identity(), tokens["acme"])
        put(server, "shared", identity(), tokens["beta"])
        deleted = request(server, "DELETE", "/blindai/v1/models/shared", headers=tokens["beta"])
        assert deleted.status == 204
        server.restart()
        assert held(server, tokens) == {"acme": ["m", "shared"], "beta": ["m"], "": ["m"]}
        for tenant, headers in tokens.items():
            reply = request(server, "POST", "/v2/models/m/infer", infer_body([1.0]), headers)
            assert reply.json()["outputs"][0]["data"] == [len(tenant) + 2.0]


def test_handed_over_and_taken_back_together(place):
    """The operator hands over every vault, or none; a tenant's key does neither."""
    config, tokens = place
    folder = config["sealed"]
    with start_server(config=config) as server:
        put(server, "m", identity(), tokens["acme"])
        put(server, "m", identity(), tokens[""])
        for method, body in (("PUT", OWN), ("DELETE", b"")):
            assert request(server, method, HANDOVER, body, tokens["acme"]).status == 403
        assert request(server, "PUT", HANDOVER, OWN, tokens[""]).status == 204
        left = [folder.with_name("vault.handover"), *folder.parent.glob("vault-tenants/*.handover")]
        copies = {path: path.read_bytes() for path in left}
        assert len(copies) == 3
        server.stop()
        become_other_code(config)
    with start_server(config={**config, "take_over": True}) as server:
        assert held(server, tokens) == {"acme": ["m"], "beta": [], "": ["m"]}
        assert request(server, "PUT", HANDOVER, OWN, tokens[""]).status == 204
        copies = {path: path.read_bytes() for path in left}
        assert request(server, "DELETE", HANDOVER, headers=tokens[""]).status == 204
        assert not any(path.exists() for path in left)
    for path, content in copies.items():
        path.write_bytes(content)
    become_other_code(config)
    with start_server(config={**config, "take_over": True}) as server:
        assert held(server, tokens) == {"acme": [], "beta": [], "": []}


def test_one_shut_vault_keeps_no_other_from_it(place):
    """What was handed over of the others is taken back, and the answer says that one is shut."""
    config, tokens = place
    tenants = config["sealed"].with_name("vault-tenants")
    with start_server(config=config) as server:
        put(server, "m", identity(), tokens["acme"])
        put(server, "m", identity(), tokens["beta"])
        assert request(server, "PUT", HANDOVER, OWN, tokens[""]).status == 204
        server.stop()
        (tenants / "acme.key").unlink()
    with start_server(config=config) as server:
        assert held(server, tokens) == {"acme": [], "beta": ["m"], "": []}
        reply = request(server, "DELETE", HANDOVER, headers=tokens[""])
        assert reply.status == 503
        assert not (tenants / "beta.handover").exists()
        assert not config["sealed"].with_name("vault.handover").exists()


def test_pruned_on_every_shelf(tmp_path):
    """A tenant's model is not spared for having the name of one of the operator's."""
    before = datetime.now(UTC) - timedelta(days=8)
    with contextlib.ExitStack() as stack:
        stores = {
            tenant: stack.enter_context(
                ModelStore(tmp_path / tenant, engine=load_engine("onnx"), clock=lambda: before)
            )
            for tenant in ("operator", "acme")
        }
        for store in stores.values():
            for name, content in (("set", identity()), ("run", add(1.0))):
                with store.begin_upload(name) as upload:
                    upload.write(content)
                    upload.commit()
        config = ServerConfig(
            platform=Platform.SIMULATION, access=AccessRules(tenants={"acme": Quota()})
        )
        service = Service(stores["operator"], config, {"acme": stores["acme"]})
        stack.callback(service.close)
        x = Tensor("x", np.ones(1, np.float32), DataType.FP32)
        service.scheduler.submit(stores["acme"].get("run"), [x]).result()
        assert len(service.prune(timedelta(days=7), {"set"})) == 2
        left = {
            tenant: [name for record in store.records() for name in record.names]
            for tenant, store in stores.items()
        }
        assert left == {"operator": ["set"], "acme": ["run"]}
