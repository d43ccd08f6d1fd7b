"""A server that restarts, or whose keys expire, is verified once more, and only then used."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

import blindai
from blindai.attestation import wire
from tests.client.fakes import FakeServer, Identity

ROW = np.array([[1, 2]], np.float32)


def evidence_count(server):
    return sum("/evidence" in target for _, target, _, _ in server.requests)


def test_restart_is_verified_once_and_the_request_sent_once(connect, server):
    """New keys cost one verification, and the request is served as if nothing had happened."""
    client = connect(server.address)
    client.run_model("double", ROW)
    before = client.attestation
    server.requests.clear()
    server.rotate()
    np.testing.assert_array_equal(client.run_model("double", ROW)["y"], ROW * 2)
    assert evidence_count(server) == 1
    assert server.verbs == [("POST", "/v2/models/double/infer")]
    assert client.attestation.keyset_digest != before.keyset_digest


def test_restart_before_an_upload(connect, server):
    """An upload survives a restart too: its bytes were not touched before the handshake."""
    client = connect(server.address)
    server.rotate()
    model = bytes(range(256)) * 9000
    assert client.upload_model(model, "m").size == len(model)


def test_restart_as_something_that_does_not_fit(connect, server):
    """A server whose new evidence does not fit is sent nothing but the request for it."""
    client = connect(server.address)
    client.run_model("double", ROW)
    server.requests.clear()
    stored = wire.dump_bundle(Identity().bundle(b"n" * 32))
    server.rotate()
    server.evidence = lambda nonce: stored
    with pytest.raises(blindai.BindingError):
        client.run_model("double", ROW)
    with pytest.raises(blindai.BindingError):
        client.upload_model(b"secret weights", "m")
    assert server.verbs == []
    assert all(body == b"" for _, _, _, body in server.requests)


def test_keys_that_change_at_every_connection(connect, server):
    """Another key right after a successful verification is a BindingError, not a loop."""
    client = connect(server.address)
    server.requests.clear()
    honest = server.evidence

    def evidence(nonce):
        shown = honest(nonce)
        server.identity = Identity()
        return shown

    server.evidence = evidence
    server.rotate()
    with pytest.raises(blindai.BindingError, match="right after"):
        client.models()
    assert evidence_count(server) == 1
    assert server.verbs == []


def test_expired_result_is_renewed_before_the_next_request(connect):
    """From `not_after` on, the server is verified again, on a kept connection too."""
    start = datetime.now(UTC)
    moment = [start]
    with FakeServer(now=start, lifetime=timedelta(minutes=5)) as server:
        client = connect(server.address, clock=lambda: moment[0])
        client.run_model("double", ROW)
        moment[0] = start + timedelta(minutes=6)
        with pytest.raises(blindai.BindingError, match="expired"):
            client.run_model("double", ROW)
        assert len([t for _, t in server.verbs if t.endswith("infer")]) == 1
        server.identity = Identity(now=start, lifetime=timedelta(minutes=20))
        client.run_model("double", ROW)
        assert client.attestation.not_after > moment[0]


def test_a_connection_that_was_closed_while_idle(connect, server):
    """A kept connection that the server closed is replaced without anybody noticing."""
    client = connect(server.address)
    client.run_model("double", ROW)
    verified = evidence_count(server)
    server.drop()
    client.run_model("double", ROW)
    assert evidence_count(server) == verified


def test_a_request_that_kills_the_server_is_not_repeated(connect, server):
    """A connection closed over an upload is an error: repeating might do harm twice."""
    client = connect(server.address)
    seen = []
    server.answer = lambda *request: seen.append(request)
    with pytest.raises(blindai.ConnectionFailed, match="closed the connection"):
        client.upload_model(b"model", "m")
    assert len(seen) == 1
