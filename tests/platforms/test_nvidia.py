"""NVIDIA devices: real reports, a fake vendor, and whatever else may arrive."""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from blindai.attestation.model import Claims, Evidence, Platform
from blindai.attestation.steps import Steps
from blindai.attestation.trust import VENDOR_ROOTS
from blindai.attestation.vocabulary import VOCABULARY
from blindai.errors import AttestationError, EndorsementError, EvidenceError, SignatureError
from blindai.platforms import nvidia
from blindai.platforms.nvidia.device import parse_device_identity, parse_tcb_info
from blindai.platforms.nvidia.report import parse_report
from blindai.testing.fake_nvidia import FakeNVIDIA, _sign
from tests.platforms.vectors import VECTORS, load_cases, read, requires_vectors

NONCE = bytes(range(32))
CASES = load_cases("nvidia-gpu")
# The device certificates of the vectors never expire, and the cases name no time.
AT = datetime(2026, 11, 22, tzinfo=UTC)
FLIPS = 60
BODY = FakeNVIDIA().attest(NONCE, attach=frozenset()).body


@pytest.fixture(scope="module")
def vendor():
    return FakeNVIDIA()


@pytest.fixture(scope="module")
def good(vendor):
    return vendor.attest(NONCE)


def verify(evidence, vendor, *, now=None, anchors=None, steps=None) -> Claims:
    return nvidia.verify(
        evidence,
        anchors=vendor.anchors if anchors is None else anchors,
        now=now or vendor.now,
        steps=steps or Steps(nvidia.STEPS),
    )


def attach(evidence: Evidence, **attachments: bytes) -> Evidence:
    return replace(evidence, attachments={**evidence.attachments, **attachments})


def detach(evidence: Evidence, *names: str) -> Evidence:
    kept = {n: v for n, v in evidence.attachments.items() if n not in names}
    return replace(evidence, attachments=kept)


def flip(data: bytes, position: int, bit: int = 0) -> bytes:
    return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]


@requires_vectors
@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_real_evidence_gives_what_the_manifest_says(case):
    """Each real case is genuine with its nonce, or refused for what it is."""
    evidence, ignored = nvidia.assemble(read(case["evidence"]), [read(case["chain"])])
    anchors = VENDOR_ROOTS[Platform.NVIDIA_GPU]
    if case["expect"]["outcome"] == "reject":
        with pytest.raises(SignatureError):
            nvidia.verify(evidence, anchors=anchors, now=AT, steps=Steps(nvidia.STEPS))
        return
    claims = nvidia.verify(evidence, anchors=anchors, now=AT, steps=Steps(nvidia.STEPS))
    assert claims.report_data.hex() == case["nonce"]
    assert claims.measurements["driver_version"].decode() in case["name"]
    assert claims.measurements["model"] == b"GH100"
    assert claims.weaknesses == {"no-revocation-check", "no-reference-measurements"}
    assert claims.not_after is None
    assert ignored == []


@requires_vectors
def test_real_evidence_is_assembled_from_single_files_in_any_order():
    """Certificates may come one by one, shuffled and in DER, with what is not needed named."""
    case = CASES[0]
    chain = x509.load_pem_x509_certificates(read(case["chain"]))
    random.Random(5).shuffle(chain)
    foreign = (VECTORS / "roots" / "aws_nitro_root_g1.pem").read_bytes()
    extras = [foreign, *(c.public_bytes(Encoding.DER) for c in chain), b"no such thing"]
    body = bytes.fromhex(read(case["evidence"]).decode())
    evidence, ignored = nvidia.assemble(b"0x" + body.hex(" ", 8).encode() + b"\r\n", extras)
    assert evidence.body == body
    assert ignored == [0, len(extras) - 1]
    anchors = VENDOR_ROOTS[Platform.NVIDIA_GPU]
    claims = nvidia.verify(evidence, anchors=anchors, now=AT, steps=Steps(nvidia.STEPS))
    assert claims.measurements["vbios_version"] == b"96.00.5E.00.01"
    assert claims.measurements["fwid"].hex().startswith("faa77bfb")


@requires_vectors
def test_real_firmware_id_is_the_one_of_the_certificate():
    """The two newer reports repeat their certificate's firmware id, which the oldest does not."""
    stated = []
    for case in CASES[:3]:
        evidence, _ = nvidia.assemble(read(case["evidence"]), [read(case["chain"])])
        leaf = x509.load_pem_x509_certificates(evidence.attachments["chain"])[0]
        report = parse_report(evidence.body)
        stated.append(report.fwid)
        assert report.fwid in {None, parse_device_identity(leaf).fwid}
    assert [value is None for value in stated] == [True, False, False]


def test_good_evidence_passes_every_step(vendor, good):
    """With OCSP and reference measurements attached nothing weakens the claims."""
    steps = Steps(nvidia.STEPS)
    claims = verify(good, vendor, steps=steps)
    assert claims.report_data == NONCE
    assert claims.weaknesses == frozenset()
    assert claims.measurements["driver_version"] == b"550.90.07"
    assert claims.measurements["vbios_version"] == b"96.00.9F.00.01"
    assert claims.measurements["chip_id"].hex() == "48b02d0000000001"
    assert claims.not_after == vendor.now + timedelta(days=1)
    assert {step.status for step in steps.taken} == {"passed"}
    assert claims.measurements.keys() <= VOCABULARY[Platform.NVIDIA_GPU].measurements


def test_what_is_not_attached_is_a_weakness(vendor):
    """A bare report verifies, says what was not checked, and skips those steps."""
    steps = Steps(nvidia.STEPS)
    claims = verify(vendor.attest(NONCE, attach=frozenset()), vendor, steps=steps)
    assert claims.weaknesses == {"no-revocation-check", "no-reference-measurements"}
    assert claims.not_after is None
    skipped = {step.name for step in steps.taken if step.status == "skipped"}
    assert skipped == {"rim-driver", "rim-vbios", "measurements", "revocation"}


@pytest.mark.parametrize("name", ["rim_driver", "rim_vbios"])
def test_one_of_two_references_is_not_enough(vendor, good, name):
    """References for the driver alone, or the VBIOS alone, leave the rest unknown."""
    assert verify(detach(good, name), vendor).weaknesses == {"no-reference-measurements"}


def test_debug_mode_is_a_weakness(vendor):
    """The debug flag of the certificate shows in the claims."""
    assert verify(vendor.attest(NONCE, debug=True), vendor).weaknesses == {"debug"}


@pytest.mark.parametrize("index", [0, 31, 32, 63])
def test_changed_firmware_is_a_weakness(vendor, index):
    """A measurement that NVIDIA did not release shows in the claims."""
    evidence = vendor.attest(NONCE, changed=frozenset({index}))
    steps = Steps(nvidia.STEPS)
    assert verify(evidence, vendor, steps=steps).weaknesses == {
        "measurements-differ-from-reference"
    }
    step = next(step for step in steps.taken if step.name == "measurements")
    assert step.detail == "63 of 64 are as released"
    assert [what for what, _, _ in step.compared] == [f"measurement {index}"]


def test_revoked_chip_is_refused(vendor):
    """A chip whose certificate is on hold is refused."""
    with pytest.raises(EndorsementError, match="certificateHold"):
        verify(vendor.attest(NONCE, revoked=True), vendor)


def test_wrong_root_is_refused(vendor, good):
    """Another vendor's root, no root, or the reference root alone do not vouch for a device."""
    for anchors in (FakeNVIDIA().anchors, (), vendor.anchors[1:]):
        with pytest.raises(SignatureError):
            verify(good, vendor, anchors=anchors)


def test_reference_root_does_not_vouch_for_devices(vendor, good):
    """A report signed under the root of reference measurements is refused."""
    stated = parse_report(good.body)
    certificate, key = vendor._rim_signer
    chain = b"".join(c.public_bytes(Encoding.PEM) for c in (certificate, vendor._rim_root[0]))
    forged = replace(good, body=stated.signed + _sign(key, stated.signed))
    with pytest.raises(SignatureError, match="no pinned root"):
        verify(attach(forged, chain=chain), vendor)


def test_device_root_does_not_vouch_for_references(vendor, good):
    """Reference measurements are refused where only the device root is pinned."""
    with pytest.raises(SignatureError):
        verify(good, vendor, anchors=vendor.anchors[:1])


def test_expired_and_not_yet_valid_certificates_are_refused():
    """The chain has to be valid at the moment of verification."""
    vendor = FakeNVIDIA(not_after=datetime(2026, 7, 1, tzinfo=UTC))
    evidence = vendor.attest(NONCE, attach=frozenset())
    claims = verify(evidence, vendor)
    assert claims.not_after == datetime(2026, 7, 1, tzinfo=UTC)
    for now in (datetime(2026, 7, 2, tzinfo=UTC), datetime(2021, 12, 31, tzinfo=UTC)):
        with pytest.raises(EndorsementError):
            verify(evidence, vendor, now=now)


def test_leaf_of_another_chip_is_refused(vendor, good):
    """A report does not verify with the certificates of another GPU of the same vendor."""
    other = vendor.another_chip().attest(NONCE)
    verify(other, vendor)
    with pytest.raises(SignatureError, match="not signed by"):
        verify(attach(good, chain=other.attachments["chain"]), vendor)


def test_missing_chain_is_refused(vendor, good):
    """Without certificates there is nothing to verify by."""
    with pytest.raises(EndorsementError, match="no certificate chain"):
        verify(detach(good, "chain"), vendor)


@pytest.mark.parametrize("missing", range(5))
def test_incomplete_chain_is_refused(vendor, good, missing):
    """Each certificate of the chain is needed."""
    chain = x509.load_pem_x509_certificates(good.attachments["chain"])
    rest = b"".join(c.public_bytes(Encoding.PEM) for i, c in enumerate(chain) if i != missing)
    with pytest.raises(SignatureError):
        verify(attach(good, chain=rest), vendor)


def test_wrong_curve_is_refused():
    """A device key that is not on P-384 is refused."""
    vendor = FakeNVIDIA(curve=ec.SECP256R1())
    with pytest.raises(SignatureError, match="not on P-384"):
        verify(vendor.attest(NONCE), vendor)


def test_firmware_id_of_another_firmware_is_refused(vendor):
    """The report has to state the firmware id that the certificate states."""
    with pytest.raises(SignatureError, match="firmware id"):
        verify(vendor.attest(NONCE, fwid=bytes(48)), vendor)


def test_references_of_another_version_are_refused(vendor, good):
    """References for another driver are no references for this one."""
    wrong = vendor.sign_rim("550.90.08", range(32))
    with pytest.raises(EndorsementError, match=r"550\.90\.08"):
        verify(attach(good, rim_driver=wrong), vendor)


def test_contradicting_references_are_refused(vendor, good):
    """Driver and VBIOS references may not speak about the same measurement."""
    wrong = vendor.sign_rim("550.90.07", range(33))
    with pytest.raises(EndorsementError, match=r"\[32\]"):
        verify(attach(good, rim_driver=wrong), vendor)


def test_truncated_reports_are_refused(vendor, good):
    """No beginning of a report is a report."""
    size = len(good.body)
    for length in [*range(0, size, 11), *range(size - 100, size)]:
        with pytest.raises(EvidenceError):
            verify(replace(good, body=good.body[:length]), vendor)


def test_flipped_bits_are_refused(vendor, good):
    """Request, response and signature: no byte of the body is free."""
    places = random.Random(7)
    (covered,) = vendor.signed_bytes(good)
    for _ in range(FLIPS):
        body = flip(good.body, places.choice(covered), places.randrange(8))
        with pytest.raises((EvidenceError, SignatureError)):
            verify(replace(good, body=body), vendor)


def test_one_zero_byte_after_the_signature_changes_nothing(vendor, good):
    """Some captures carry one; it is the only byte of a body that nobody signed."""
    assert verify(replace(good, body=good.body + b"\0"), vendor) == verify(good, vendor)
    for tail in (b"\1", b"\0\0"):
        with pytest.raises(EvidenceError):
            verify(replace(good, body=good.body + tail), vendor)


@pytest.mark.parametrize("position", [0, 1, 2, 3, 37, 38, 41, 42, 45, 46])
def test_other_messages_are_refused(good, position):
    """Another version, message, partial measurements or lying lengths are malformed."""
    with pytest.raises(EvidenceError):
        parse_report(flip(good.body, position, 3))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_report_or_malformed(data):
    """Parsing gives a report or EvidenceError."""
    for body in (data, bytes.fromhex("11e001ff") + bytes(33) + bytes.fromhex("11600000") + data):
        with contextlib.suppress(EvidenceError):
            assert parse_report(body).measurements


@given(st.binary(max_size=100))
def test_any_bytes_are_tcb_info_or_malformed(data):
    """Parsing the certificate's extension gives its fields or EvidenceError."""
    for value in (data, bytes([0x30, len(data)]) + data):
        try:
            fwid, flags = parse_tcb_info(value)
        except EvidenceError:
            continue
        assert fwid is None or len(fwid) == 48
        assert flags <= {"debug", "recovery", "not-secure"}


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        ("8000", set()),
        ("5000", {"not-secure", "debug"}),
        ("2000", {"recovery"}),
        ("00ff", set()),
        ("", set()),
    ],
)
def test_operational_flags_are_read_from_the_left(bits, expected):
    """Bit 0 of a BIT STRING is the highest bit of its first byte."""
    content = bytes([0x87, 1 + len(bits) // 2, 0]) + bytes.fromhex(bits)
    assert parse_tcb_info(bytes([0x30, len(content)]) + content) == (None, expected)


def test_mutants_only_raise_attestation_errors(vendor, good):
    """Whatever changes in body or attachments, verification ends in claims or a clear error."""
    chance = random.Random(11)
    refused = 0
    for _ in range(150):
        name = chance.choice(["body", *good.attachments])
        data = bytearray(good.body if name == "body" else good.attachments[name])
        for _ in range(chance.randrange(1, 4)):
            start = chance.randrange(len(data))
            stop = start + chance.choice([0, 0, 1, 9, 100])
            data[start:stop] = chance.randbytes(chance.choice([0, 1, 1, 2, 40]))
        mutant = bytes(data)
        evidence = replace(good, body=mutant) if name == "body" else attach(good, **{name: mutant})
        try:
            verify(evidence, vendor)
        except AttestationError:
            refused += 1
    assert refused > 100


def test_assemble_tells_everything_apart(vendor, good):
    """Chain, OCSP responses and both references are found whatever their order."""
    names = ["rim_vbios", "ocsp", "chain", "rim_driver"]
    extras = [*(good.attachments[name] for name in names), b"\x30\x03junk", b"", b"{}"]
    extras.append(vendor.sign_rim("1.2.3", range(2)))
    evidence, ignored = nvidia.assemble(good.body.hex().encode(), extras)
    assert evidence == good
    assert ignored == [4, 5, 6, 7]
    assert verify(evidence, vendor).weaknesses == frozenset()


def test_assemble_picks_the_certificate_that_signed(vendor, good):
    """Certificates of another GPU are ignored, and said to be."""
    other = vendor.another_chip().attest(NONCE)
    evidence, ignored = nvidia.assemble(
        good.body, [other.attachments["chain"].split(b"\n-----BEGIN")[0], good.attachments["chain"]]
    )
    assert ignored == [0]
    assert evidence.attachments["chain"] == good.attachments["chain"]


@given(st.lists(st.binary(max_size=80), max_size=3))
def test_assemble_takes_any_extras(extras):
    """Extras are used, named as ignored, or refused as malformed."""
    try:
        evidence, ignored = nvidia.assemble(BODY, extras)
    except EvidenceError:
        return
    assert evidence.attachments.keys() <= {"chain", "ocsp", "rim_driver", "rim_vbios"}
    assert set(ignored) <= set(range(len(extras)))
