"""A server with an audit log: who changed what, by every way, and nothing without an entry."""

import contextlib
import hashlib
import json
import logging
import resource
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from blindai.attestation.policy import Policy
from blindai.audit import verify_audit_log
from blindai.channel.audit import parse_entry
from blindai.errors import ConfigurationError
from blindai.server.access.keys import create_key, revoke_key
from blindai.server.access.principal import Scope
from blindai.server.access.rules import AccessRules, Quota
from blindai.testing.server import start_server
from tests.inference.models import add, identity
from tests.server.talk import authorized, request

FILE = add(2.0)
SHA256 = hashlib.sha256(FILE).hexdigest()
MODEL = "/blindai/v1/models/canary-5d41"


def entries(path):
    """Return what a log says, after all of it was verified."""
    with path.open("rb") as file:
        verify_audit_log(file, Policy.simulation(), now=datetime.now(UTC))
    return [parse_entry(line) for line in path.read_bytes().splitlines()]


def told(path):
    """Return what each entry of a log is, and whom it is about."""
    return [(e.event, e.outcome, e.kind, e.subject, e.tenant, e.model) for e in entries(path)]


@contextlib.contextmanager
def files_of_at_most(size):
    """Let the kernel refuse longer files, as it does on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_the_operators_token(tmp_path):
    """Upload and deletion, by both paths that there are, are of the operator's token."""
    path = tmp_path / "audit.jsonl"
    load = "/v2/repository/models/canary-5d41"
    with start_server(config={"audit_log": path}) as server:
        headers = authorized(server)
        assert request(server, "PUT", MODEL, FILE, headers).status == 201
        assert request(server, "POST", f"{load}/unload", b"", headers).status == 200
        assert request(server, "PUT", MODEL, FILE).status == 401
        assert request(server, "PUT", MODEL, b"no model", headers).status == 422
        assert request(server, "DELETE", MODEL, headers=headers).status == 404
    who = ("token", "operator", None)
    outcome = (None, None, None)
    nothing = hashlib.sha256(b"no model").hexdigest()
    assert told(path)[1:] == [
        ("upload", "begun", *who, SHA256),
        ("upload", "done", *outcome, None),
        ("delete", "begun", *who, SHA256),
        ("delete", "done", *outcome, None),
        ("upload", "begun", *who, nothing),
        ("upload", "failed", *outcome, None),
        ("delete", "begun", *who, None),
        ("delete", "failed", *outcome, None),
        ("stop", None, *outcome, None),
    ]
    assert b"canary" not in path.read_bytes()
    assert server.token.encode() not in path.read_bytes()


def test_tenants_and_their_keys(tmp_path):
    """A tenant's key is named, never shown; that keys were made and revoked is told, too."""
    path, keys = tmp_path / "audit.jsonl", tmp_path / "keys.json"
    record, token = create_key(
        keys, name="nurse", scopes=[Scope.UPLOAD], now=datetime.now(UTC), tenant="clinic"
    )
    rules = AccessRules(api_keys=keys, tenants={"clinic": Quota()})
    headers = {"Authorization": f"Bearer {token}"}
    with start_server(config={"audit_log": path, "access": rules}) as server:
        before = hashlib.sha256(keys.read_bytes()).hexdigest()
        assert request(server, "PUT", MODEL, FILE, headers).status == 201
        revoke_key(keys, record.id, now=datetime.now(UTC))
        after = hashlib.sha256(keys.read_bytes()).hexdigest()
        time.sleep(1.2)
        assert request(server, "PUT", MODEL, FILE, headers).status == 401
    found = entries(path)
    uploads = [e for e in found if e.event == "upload" and e.outcome == "begun"]
    assert [(e.kind, e.subject, e.tenant) for e in uploads] == [("key", record.id, "clinic")]
    changes = [(e.count, e.sha256) for e in found if e.event == "access"]
    assert changes == [(1, before), (1, after)]
    assert token not in path.read_text()


@pytest.mark.filterwarnings("ignore:models are sealed under a key in a file")
def test_handover(tmp_path):
    """Who let other code open the sealed models, and which, is there, also where it failed."""
    path = tmp_path / "audit.jsonl"
    config = {"audit_log": path, "sealed": tmp_path / "vault"}
    body = json.dumps({"measurements": {"code": "ab" * 32}})
    with start_server(config=config) as server:
        headers = authorized(server)
        status = request(server, "PUT", "/blindai/v1/handover", body, headers).status
        request(server, "DELETE", "/blindai/v1/handover", headers=headers)
    found = [e for e in entries(path) if e.event in {"handover", "withdraw"}]
    assert found[0].measurements == {"code": "ab" * 32}
    assert [e.outcome for e in found][:2] == ["begun", "done" if status == 204 else "failed"]
    assert [(e.event, e.outcome) for e in found][2:] == [
        ("withdraw", "begun"),
        ("withdraw", "done"),
    ]


def test_full_disk(tmp_path, caplog):
    """What cannot be written down is not done: a model stays, another does not come."""
    path = tmp_path / "audit.jsonl"
    with start_server(models={"m": identity()}, config={"audit_log": path}) as server:
        headers = authorized(server)
        with files_of_at_most(path.stat().st_size + 10), caplog.at_level(logging.CRITICAL):
            refused = request(server, "DELETE", "/blindai/v1/models/m", headers=headers)
        assert (refused.status, refused.error) == (503, "Overloaded")
        assert int(refused.headers["retry-after"]) > 1
        assert request(server, "GET", "/v2/models/m").status == 200
        assert request(server, "DELETE", "/blindai/v1/models/m", headers=headers).status == 204
    assert [e.event for e in entries(path)] == ["keys", "delete", "delete", "stop"]


def test_no_log_no_server():
    """A server whose log cannot be written does not start."""
    with (
        pytest.raises(ConfigurationError, match="audit"),
        start_server(config={"audit_log": "/dev/full"}),
    ):
        pytest.fail("it started")


def test_new_keys(tmp_path):
    """Renewed keys are introduced with their evidence, and sign from then on."""
    path = tmp_path / "audit.jsonl"
    config = {"audit_log": path, "key_lifetime": timedelta(seconds=2)}
    with start_server(config=config) as server:
        time.sleep(1.5)
        assert request(server, "PUT", MODEL, FILE, authorized(server)).status == 201
    events = [e.event for e in entries(path)]
    assert events.count("keys") >= 2
    assert events[-1] == "stop"


def test_a_real_confined_server(tmp_path):
    """`blindai serve --audit-log` writes it, confined as it is, and clients see that it does."""
    path, token = tmp_path / "log" / "audit.jsonl", tmp_path / "token"
    path.parent.mkdir()
    (tmp_path / "m.onnx").write_bytes(FILE)
    blindai = str(Path(sys.executable).with_name("blindai"))
    command = [blindai, "serve", "--platform", "simulation", "--port", "0", "--public-port", "0"]
    command += ["--no-grpc", "--no-fetch-endorsements", "--token-file", token, "--json"]
    with subprocess.Popen(
        [*map(str, command), "--audit-log", str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            ready = json.loads(process.stdout.readline())
            upload = [blindai, "upload", str(tmp_path / "m.onnx"), "--name", "m", "--simulation"]
            upload += ["--server", ready["attested"], "--token", token.read_text().strip()]
            done = subprocess.run(upload, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert [e.event for e in entries(path)] == ["keys", "upload", "upload", "stop"]
    assert [each.name for each in path.parent.iterdir()] == ["audit.jsonl"]
