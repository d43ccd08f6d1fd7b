"""What went wrong in the BlindAI of 2022 to 2024 does not here: docs/security-findings.md.

Each test makes the old mistake's occasion against a real server and a real client.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click.testing
import numpy as np
import pytest
from onnx import TensorProto, helper

import blindai
from blindai.attestation import wire
from blindai.attestation.policy import Policy
from blindai.attestation.stored import StoredEvidence
from blindai.cli import cli
from blindai.testing import start_server
from blindai.verify import verify
from tests.client.fakes import FakeServer
from tests.server.talk import authorized, infer_body, raw, request, status_of

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::blindai.SimulationWarning")


def model(operator, inputs, datatype=TensorProto.FLOAT, *, weights=0):
    """Return an ONNX model of one operator over inputs of two elements."""
    infos = [helper.make_tensor_value_info(name, datatype, ["n", 2]) for name in inputs]
    y = helper.make_tensor_value_info("y", datatype, ["n", 2])
    ballast = helper.make_tensor("w", TensorProto.UINT8, [weights], bytes(weights), raw=True)
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, ["y"])], "g", infos, [y], [ballast] if weights else []
    )
    opset = helper.make_opsetid("", 21)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()


SUBTRACT = model("Sub", ["a", "b"])
IDENTITY_UINT16 = model("Identity", ["x"], TensorProto.UINT16)


@pytest.fixture(scope="module")
def server():
    """Return a real server with two models from the start."""
    with start_server(models={"subtract": SUBTRACT, "u16": IDENTITY_UINT16}) as running:
        yield running


@pytest.fixture
def client(server):
    """Return a client that has verified it and may upload."""
    with blindai.connect(server.address, simulation=True, token=server.token) as connected:
        yield connected


def test_evidence_is_fresh_for_each_client(server):
    """Two clients get different evidence, and neither's answers the other's nonce."""
    shown: list[StoredEvidence] = []
    for _ in range(2):
        with blindai.connect(server.address, simulation=True) as client:
            shown.append(client.evidence)
    first, second = shown
    assert first.nonce != second.nonce
    assert first.bundle.evidence.body != second.bundle.evidence.body
    for nonce, good in ((first.nonce, True), (second.nonce, False)):
        arguments = {"nonce": nonce, "now": datetime.now(UTC)}
        if good:
            assert verify(first.bundle, Policy.simulation(), **arguments).nonce == nonce
            continue
        with pytest.raises(blindai.BindingError):
            verify(first.bundle, Policy.simulation(), **arguments)


def test_limits_count_bytes_while_they_are_read():
    """One huge tensor, and a model larger than it says, are cut off at the limit in bytes."""
    limit = 1 << 16
    with start_server(
        models={"subtract": SUBTRACT}, max_body_bytes=limit, max_model_bytes=limit
    ) as small:
        values = [0.0] * limit
        body = infer_body(values, name="a", shape=[limit // 2, 2])
        assert request(small, "POST", "/v2/models/subtract/infer", body).status == 413
        token = f"Authorization: Bearer {small.token}\r\n"
        head = "PUT /blindai/v1/models/large HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        chunk = f"{limit // 2:x}\r\n".encode() + bytes(limit // 2) + b"\r\n"
        answer = raw(small, f"{head}{token}\r\n".encode() + 40 * chunk)  # it never ends
        assert status_of(answer) == 413
        assert request(small, "GET", "/v2/models/subtract").status == 200


@pytest.mark.parametrize(
    "digest",
    ["z" * 64, "0" * 63, "0" * 65, "%00" * 64, "sha256:" + "0" * 64, "é" * 32, "0x" + "0" * 62],
)
def test_a_malformed_digest_harms_nobody(server, digest):
    """A digest that is none is refused as the client's mistake, and the server serves on."""
    path = "/v2/models/" + "".join(c if c.isascii() else f"%{ord(c):02X}" for c in digest)
    for method, target in (("GET", path), ("POST", f"{path}/infer")):
        reply = request(server, method, target, infer_body([1, 2], name="a", shape=[1, 2]))
        assert reply.status in (400, 404)
        assert reply.error in ("InvalidInput", "ModelNotFound")
    assert request(server, "GET", "/v2/health/live").status == 200


def bundle_of(server, nonce, signature=None):
    """Return the bundle of a fake server, with another signature if one is given."""
    bundle = server.identity.bundle(nonce)
    if signature is not None:
        attached = {**bundle.evidence.attachments, "signature": signature}
        bundle = replace(bundle, evidence=replace(bundle.evidence, attachments=attached))
    return wire.dump_bundle(bundle)


BROKEN = [
    (blindai.EvidenceError, lambda server, nonce: b"no bundle"),
    (blindai.BindingError, lambda server, nonce: bundle_of(server, b"n" * 32)),
    (blindai.SignatureError, lambda server, nonce: bundle_of(server, nonce, bytes(64))),
]


@pytest.mark.parametrize(("expected", "behave"), BROKEN)
def test_each_attestation_error_reaches_the_caller(expected, behave):
    """`connect` raises the very class that is documented, with the steps that led there."""
    with FakeServer() as fake:
        fake.evidence = partial(behave, fake)
        with pytest.raises(expected) as caught:
            blindai.connect(fake.address, simulation=True)
    assert type(caught.value) is expected
    assert isinstance(caught.value, blindai.AttestationError)


def test_a_refused_policy_reaches_the_caller(server):
    """Genuine evidence that no policy accepts is an AppraisalError with every mismatch."""
    with pytest.raises(blindai.AppraisalError) as caught:
        blindai.connect(server.address, policy=Policy.from_toml(OTHER_CODE))
    assert caught.value.mismatches
    assert caught.value.steps


OTHER_CODE = f"""
version = 1
[[accept]]
platform = "sgx"
measurement = ["{"ab" * 32}"]
"""


class Counting(threading.Thread):
    """Forwards one connection to a server and counts the bytes of the client."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self._target = server.address.rsplit(":", 1)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent = 0
        self.start()

    def run(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection((self._target[0], int(self._target[1])))
            threading.Thread(target=self._pump, args=(far, near, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(near, far, True), daemon=True).start()

    def _pump(self, source, sink, count):
        try:
            while data := source.recv(1 << 16):
                self.sent += len(data) if count else 0
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for each in (source, sink):
                each.close()

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join(5)


def test_a_model_is_sent_as_its_bytes(server):
    """An upload takes hardly more bytes on the network than the file has."""
    content = model("Sub", ["a", "b"], weights=1 << 20)
    forwarder = Counting(server)
    try:
        with blindai.connect(forwarder.address, simulation=True, token=server.token) as client:
            before = forwarder.sent
            client.upload_model(content, "large")
            assert len(content) <= forwarder.sent - before < 1.05 * len(content)
            client.delete_model("large")
    finally:
        forwarder.close()


@pytest.mark.parametrize(
    "name",
    ["..%2F..%2Fescaped", "..%5Cescaped", "%2Ftmp%2Fescaped", "..", "a%00b", "%2e%2e%2fescaped"],
)
def test_a_name_is_never_a_path(tmp_path, name):
    """No name makes, reads or removes a file outside the server's own folder."""
    (tmp_path / "escaped").write_text("mine")
    store = tmp_path / "inner" / "store"
    store.mkdir(parents=True, mode=0o700)
    before = sorted(tmp_path.rglob("*"))
    with start_server(config={"store": store}) as running:
        for method, body in (("PUT", SUBTRACT), ("DELETE", None)):
            path = f"/blindai/v1/models/{name}"
            reply = request(running, method, path, body, authorized(running))
            assert reply.status in (400, 404)
        outside = [path for path in sorted(tmp_path.rglob("*")) if store not in path.parents]
    assert outside == before
    assert (tmp_path / "escaped").read_text() == "mine"
    assert not Path("/tmp/escaped").exists()


def test_uint16_crosses_in_both_directions(client):
    """Every uint16 that was sent comes back."""
    values = np.array([[0, 1], [255, 256], [32_768, 65_535]], np.uint16)
    answer = client.run_model("u16", {"x": values})["y"]
    assert answer.dtype == np.uint16
    np.testing.assert_array_equal(answer, values)
    np.testing.assert_array_equal(client.run_model("u16", {"x": [[1, 65_535]]})["y"], [[1, 65_535]])


def test_models_of_the_start_have_the_hash_of_their_file(client, tmp_path):
    """A model that the server loaded at its start is known by the SHA-256 of its bytes."""
    assert client.model("subtract").sha256 == hashlib.sha256(SUBTRACT).hexdigest()
    (tmp_path / "u16.onnx").write_bytes(IDENTITY_UINT16)
    with (
        start_server(config={"models": tmp_path}) as running,
        blindai.connect(running.address, simulation=True) as other,
    ):
        assert other.model("u16").sha256 == hashlib.sha256(IDENTITY_UINT16).hexdigest()
        assert [output.name for output in other.model("u16").outputs] == ["y"]


def test_what_is_misspelt_is_refused(server):
    """Options, settings, policy keys and fields of a request that nobody knows are errors."""
    run = click.testing.CliRunner().invoke
    assert run(cli, ["serve", "--platform", "simulation", "--token_file", "x"]).exit_code == 2
    assert run(cli, ["verify", "--simulaton"]).exit_code == 2
    with pytest.raises(TypeError), start_server(max_model_byte=1):
        pass
    with pytest.raises(blindai.PolicyError, match="tolerated"):
        Policy.from_toml(OTHER_CODE + 'tolerated = ["debug"]')
    with pytest.raises(TypeError):
        blindai.connect(server.address, simulated=True)


def test_named_inputs_come_in_any_order(client, server):
    """What is subtracted from what follows from the names, through the client and raw."""
    a, b = np.array([[5, 7]], np.float32), np.array([[1, 2]], np.float32)
    for inputs in ({"a": a, "b": b}, {"b": b, "a": a}):
        np.testing.assert_array_equal(client.run_model("subtract", inputs)["y"], [[4, 5]])
    entries = [
        {"name": name, "datatype": "FP32", "shape": [1, 2], "data": data}
        for name, data in (("b", [1, 2]), ("a", [5, 7]))
    ]
    reply = request(server, "POST", "/v2/models/subtract/infer", json.dumps({"inputs": entries}))
    assert reply.json()["outputs"][0]["data"] == [4, 5]


@pytest.mark.parametrize(
    "lock", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda p: p.stem
)
def test_every_dependency_is_locked_by_its_hash(lock):
    """Each package in a lock has one version and at least one SHA-256."""
    entries = re.split(r"^(?=[A-Za-z0-9])", lock.read_text(), flags=re.MULTILINE)
    packages = [entry for entry in entries if re.match(r"[A-Za-z0-9]", entry)]
    assert packages
    for entry in packages:
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z,-]+\])?==\S+", entry), entry[:60]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry[:60]
