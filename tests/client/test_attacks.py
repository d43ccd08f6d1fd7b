"""Everybody who is not the enclave is refused, by both clients, over real sockets.

Each test also looks at what reached the attacker: the request for evidence at most.
"""

from __future__ import annotations

import base64
import socket
import ssl
import tempfile
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import blindai
from blindai.attestation import wire
from blindai.attestation.model import EvidenceBundle
from blindai.attestation.policy import Acceptance
from blindai.channel.tls import pinned_context
from blindai.client.session import Session
from tests.client.fakes import FakeServer, Identity, as_json, plain_context

MEASUREMENT = "measurement = ['" + "ab" * 32 + "']"
STRICT = (
    f"version = 1\n[[accept]]\nplatform = 'simulation'\ntolerate = ['simulated']\n{MEASUREMENT}"
)


def relay(to):
    """Return what a man in the middle answers: the real server's evidence for the nonce."""

    def evidence(nonce):
        bundle, _ = Session(to.address, None).fetch_evidence(nonce)
        return wire.dump_bundle(bundle)

    return evidence


def test_man_in_the_middle_who_relays_evidence(connect, server):
    """Genuine evidence over a TLS connection that ends elsewhere is a BindingError."""
    with FakeServer() as attacker:
        attacker.evidence = relay(server)
        with pytest.raises(blindai.BindingError, match="another key") as caught:
            connect(attacker.address)
        assert [s.name for s in caught.value.steps if s.status == "failed"] == ["channel"]
        assert attacker.verbs == []


def test_man_in_the_middle_who_puts_his_own_certificate_into_the_bundle(connect, server):
    """A bundle whose certificate is the attacker's does not fit the attested keyset."""
    with FakeServer() as attacker:

        def evidence(nonce):
            genuine = server.identity.bundle(nonce)
            return wire.dump_bundle(
                EvidenceBundle(genuine.evidence, genuine.keyset, attacker.identity.certificate)
            )

        attacker.evidence = evidence
        with pytest.raises(blindai.BindingError):
            connect(attacker.address)


def test_replayed_evidence(connect, server):
    """Evidence that answers another nonce is a BindingError."""
    stored = wire.dump_bundle(server.identity.bundle(b"n" * 32))
    server.evidence = lambda nonce: stored
    with pytest.raises(blindai.BindingError, match="nonce"):
        connect(server.address)


def test_evidence_without_a_nonce(connect, server):
    """The cached bundle that answers no nonce does not pass for a fresh one."""
    server.evidence = lambda nonce: wire.dump_bundle(server.identity.bundle(None))
    with pytest.raises(blindai.BindingError, match="nonce"):
        connect(server.address)


def test_expired_keyset(connect):
    """Keys past their time are a BindingError, however genuine."""
    then = datetime.now(UTC) - timedelta(hours=2)
    with (
        FakeServer(now=then, lifetime=timedelta(hours=1)) as server,
        pytest.raises(blindai.BindingError, match="expired"),
    ):
        connect(server.address)


def test_keyset_of_another_server(connect, server):
    """Evidence of one server beside the keyset of another is a BindingError."""
    other = Identity()

    def evidence(nonce):
        mine = server.identity.bundle(nonce)
        return wire.dump_bundle(
            EvidenceBundle(other.bundle(nonce).evidence, mine.keyset, mine.certificate)
        )

    server.evidence = evidence
    with pytest.raises(blindai.BindingError):
        connect(server.address)


def test_forged_evidence(connect, server):
    """A flipped bit in signed bytes is a SignatureError."""

    def evidence(nonce):
        bundle = server.identity.bundle(nonce)
        attachments = dict(bundle.evidence.attachments)
        attachments["signature"] = bytes(64)
        forged = type(bundle.evidence)(bundle.evidence.platform, bundle.evidence.body, attachments)
        return wire.dump_bundle(EvidenceBundle(forged, bundle.keyset, bundle.certificate))

    server.evidence = evidence
    with pytest.raises(blindai.SignatureError):
        connect(server.address)


def test_another_key_under_the_same_name(connect, server):
    """A server with other keys fails at the handshake of a client that has verified the first.

    The client asks it for evidence, which does not fit the policy's measurement, and raises;
    the inputs never reach it.
    """
    policy = blindai.Policy.from_toml(STRICT.replace("ab" * 32, measurement_of(server).hex()))
    client = connect(server.address, policy=policy)
    client.run_model("double", [[1.0, 2.0]])
    server.requests.clear()
    server.rotate()
    server.evidence = lambda nonce: wire.dump_bundle(Identity().bundle(nonce))
    before = server.fallen
    with pytest.raises(blindai.AttestationError):
        client.run_model("double", [[3.0, 4.0]])
    assert server.fallen > before
    assert server.verbs == []


def measurement_of(server):
    """Return what the server's evidence measures."""
    result = Session(server.address, blindai.Policy.simulation()).channel().attestation
    return result.claims.measurements["measurement"]


@pytest.mark.parametrize("library", ["ours", "ssl"])
def test_stolen_certificate_with_another_key(connect, server, library):
    """Who shows the attested certificate without its key is refused at the handshake.

    OpenSSL compares only public halves when it loads a key, so a key file with the victim's
    public and the thief's private half makes it sign with the wrong one.
    """
    client = connect(server.address)
    pinned = client.ssl_context
    server.requests.clear()
    server.context = stolen(server.identity)
    server.drop()
    if library == "ours":
        with pytest.raises(blindai.BindingError, match="does not hold its key"):
            client.models()
    else:
        with (
            pytest.raises(ssl.SSLError, match="BAD_SIGNATURE"),
            socket.create_connection(("127.0.0.1", server.port)) as sock,
        ):
            pinned.wrap_socket(sock, server_hostname="localhost")
    assert server.requests == []


def stolen(identity):
    """Return a context with the identity's certificate and a key that is not its."""
    mine = ec.generate_private_key(ec.SECP256R1())
    der = mine.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    raw = [
        key.public_key().public_numbers().x.to_bytes(32, "big")
        + key.public_key().public_numbers().y.to_bytes(32, "big")
        for key in (mine, identity.keys.tls)
    ]
    assert raw[0] in der
    text = base64.encodebytes(der.replace(raw[0], raw[1])).decode()
    pem = f"-----BEGIN EC PRIVATE KEY-----\n{text}-----END EC PRIVATE KEY-----\n"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(pem + ssl.DER_cert_to_PEM_cert(identity.certificate))
        file.flush()
        context.load_cert_chain(file.name)
    return context


def test_a_pinned_context_refuses_every_other_certificate(server):
    """The same names, issuer and validity do not help another key."""
    other = Identity()
    with (
        socket.create_connection(("127.0.0.1", server.port)) as sock,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        pinned_context(other.certificate).wrap_socket(sock, server_hostname="localhost")


def test_older_tls_is_not_spoken(connect, server):
    """A server that offers TLS 1.2 at most is not talked to."""
    context = plain_context(server.identity)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    server.context = context
    with pytest.raises(blindai.ConnectionFailed, match=r"TLS 1\.3"):
        connect(server.address)


def test_simulation_is_refused_unless_it_is_named(connect, server):
    """Without a policy a simulated server is refused, with why and what to do."""
    with pytest.raises(blindai.AppraisalError, match=r"simulation=True") as caught:
        connect(server.address, policy=None)
    assert "no hardware protects" in str(caught.value)
    assert [m.rule for m in caught.value.mismatches] == ["accept[0].tolerate"]
    assert [s.name for s in caught.value.steps if s.status == "failed"] == ["appraisal"]
    assert server.verbs == []


def test_a_policy_for_other_code_refuses(connect, server, tmp_path):
    """A policy file with another measurement refuses, and says which rule was not met."""
    path = tmp_path / "policy.toml"
    path.write_text(STRICT)
    with pytest.raises(blindai.AppraisalError) as caught:
        connect(server.address, policy=path)
    assert [m.rule for m in caught.value.mismatches] == ["accept[0].measurements.measurement"]


def test_weights_that_the_policy_does_not_name(connect, server):
    """The inputs go to weights that the policy names, or nowhere."""
    accept = (Acceptance(blindai.Platform.SIMULATION, tolerate=frozenset({"simulated"})),)
    good = bytes.fromhex(server.sha256)
    policy = blindai.Policy(accept, {"double": frozenset({good}), "other": frozenset({b"o" * 32})})
    client = connect(server.address, policy=policy)
    with pytest.raises(blindai.AppraisalError) as caught:
        client.run_model("third", [[1.0, 2.0]])
    assert [m.rule for m in caught.value.mismatches] == ["models.third"]
    assert server.verbs == []
    client.run_model("double", [[1.0, 2.0]])
    assert server.verbs[-1] == ("POST", f"/v2/models/{server.sha256}/infer")
    client.run_model(server.sha256, [[1.0, 2.0]])
    server.sha256 = "11" * 32
    with pytest.raises(blindai.AppraisalError) as caught:
        client.run_model("double", [[1.0, 2.0]])
    assert [m.rule for m in caught.value.mismatches] == ["models.double"]
    bodies = [body for _, target, _, body in server.requests if target.endswith("11/infer")]
    assert bodies == []


def test_results_of_other_weights_than_asked_for(connect, server):
    """An answer that names other weights than were asked for is not returned."""
    accept = (Acceptance(blindai.Platform.SIMULATION, tolerate=frozenset({"simulated"})),)
    policy = blindai.Policy(accept, {"double": frozenset({bytes.fromhex(server.sha256)})})
    client = connect(server.address, policy=policy)
    honest = server.sha256

    def lie(method, target, headers, body):
        server.sha256 = honest
        status, framing, answer = server.serve_model(method, target, headers, body)
        return (
            status,
            framing,
            answer.replace(honest.encode(), b"22" * 32) if (method == "POST") else answer,
        )

    server.answer = lie
    with pytest.raises(blindai.AppraisalError, match="22222222"):
        client.run_model("double", [[1.0, 2.0]])


def test_a_server_cannot_name_attestation_errors(connect, server):
    """What a server calls its error is raised only if it is a server's to raise."""
    server.answer = lambda *_: as_json(500, {"error": "x\x1b[31m", "type": "BindingError"})
    with pytest.raises(blindai.InferenceError) as caught:
        connect(server.address).models()
    assert type(caught.value) is blindai.InferenceError
    assert "\x1b" not in str(caught.value)
