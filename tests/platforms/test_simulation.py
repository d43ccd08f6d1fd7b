"""Simulated evidence is strict in its form and honest in its claims."""

from datetime import UTC, datetime

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.attestation.model import Evidence, Platform
from blindai.attestation.steps import Steps
from blindai.errors import AttestationError, EvidenceError, SignatureError
from blindai.platforms import simulation
from blindai.testing.fake_simulation import FakeSimulation

VENDOR = FakeSimulation()


def claims(evidence, anchors=VENDOR.anchors):
    """Verify simulated evidence."""
    return simulation.verify(
        evidence, anchors=anchors, now=VENDOR.now, steps=Steps(simulation.STEPS)
    )


def test_claims():
    """The claims are those of the body, and always carry the weakness."""
    issued = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    found = claims(VENDOR.attest(b"\x07" * 32, issued_at=issued))
    assert found.platform is Platform.SIMULATION
    assert found.measurements == {"measurement": VENDOR.measurement}
    assert found.weaknesses == {"simulated"}
    assert found.report_data == b"\x07" * 32 + bytes(32)
    assert found.issued_at == issued
    assert found.not_after is None
    assert found.versions == {}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"measurement": bytes(31)}, "measurement has to be 32 bytes"),
        ({"measurement": "m" * 32}, "measurement has to be 32 bytes"),
        ({"report_data": bytes(32)}, "report_data has to be 64 bytes"),
        ({"issued_at": -1}, "Unix seconds"),
        ({"issued_at": True}, "Unix seconds"),
        ({"issued_at": 253_402_300_800}, "Unix seconds"),
        ({"issued_at": "now"}, "Unix seconds"),
        ({"debug": True}, "exactly"),
        ({"measurement": bytes(1100)}, "at most 1024"),
    ],
)
def test_signed_but_malformed(fields, why):
    """A good signature does not make a malformed body acceptable."""
    with pytest.raises(EvidenceError, match=why):
        claims(VENDOR.attest(bytes(32), fields=fields))


def test_signed_but_no_map():
    """A body of another shape is refused."""
    for body in (b"", cbor2.dumps([]), cbor2.dumps({"measurement": bytes(32)})):
        with pytest.raises(EvidenceError):
            claims(VENDOR.sign(body))


def test_key_twice():
    """A body that says one thing twice is refused: two readers could see two things."""
    good = VENDOR.attest(bytes(32)).body
    measurement = b"\x6bmeasurement\x58\x20" + VENDOR.measurement
    assert measurement in good
    doubled = b"\xa4" + good[1:] + b"\x6bmeasurement\x58\x20" + bytes(32)
    with pytest.raises(EvidenceError, match="twice"):
        claims(VENDOR.sign(doubled))


@pytest.mark.parametrize(
    "attachments",
    [
        {},
        {"public_key": b"", "signature": b""},
        {"public_key": bytes(32), "signature": bytes(64)},
        {"signature": bytes(64)},
    ],
)
def test_unknown_key(attachments):
    """Only the pinned key counts, and a missing one is not it."""
    evidence = VENDOR.attest(bytes(32))
    with pytest.raises(SignatureError, match="unknown key"):
        claims(Evidence(Platform.SIMULATION, evidence.body, attachments))


@given(st.binary(max_size=80))
def test_any_signature(signature):
    """No bytes but the signature are the signature."""
    evidence = VENDOR.attest(bytes(32))
    attachments = {**evidence.attachments, "signature": signature}
    with pytest.raises(SignatureError, match="signature of the simulated evidence"):
        claims(Evidence(Platform.SIMULATION, evidence.body, attachments))


@given(st.binary(max_size=200))
def test_any_signed_body(body):
    """Whatever is signed gives claims or an error of ours."""
    with pytest.raises(AttestationError):
        claims(VENDOR.sign(body))
