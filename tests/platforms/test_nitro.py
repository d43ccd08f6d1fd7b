"""AWS Nitro: real documents, and those of a fake AWS with one thing wrong each."""

from __future__ import annotations

import random
from ast import literal_eval
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from blindai.attestation.model import Claims, Evidence, Platform
from blindai.attestation.steps import Steps
from blindai.attestation.trust import VENDOR_ROOTS
from blindai.attestation.vocabulary import VOCABULARY
from blindai.errors import (
    AttestationError,
    EndorsementError,
    EvidenceError,
    SignatureError,
)
from blindai.platforms import nitro
from blindai.testing.fake_nitro import FakeNitro
from tests.platforms.vectors import load_cases, read, requires_vectors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blindai.attestation.trust import Anchor

VENDOR = FakeNitro()
GOOD = VENDOR.attest(b"\x07" * 32)
CASES = load_cases("nitro")


def verify(
    evidence: Evidence,
    *,
    anchors: Sequence[Anchor] = VENDOR.anchors,
    now: datetime = VENDOR.now,
) -> Claims:
    return nitro.verify(evidence, anchors=anchors, now=now, steps=Steps(nitro.STEPS))


@requires_vectors
@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_real_documents_give_what_the_manifest_expects(case: dict[str, Any]) -> None:
    """Each document of a real enclave verifies under AWS's root, debug ones as weak."""
    evidence, ignored = nitro.assemble(read(case["evidence"]), [])
    claims = verify(
        evidence,
        anchors=VENDOR_ROOTS[Platform.NITRO],
        now=datetime.fromisoformat(case["at"]),
    )
    expected = {"weak": {"debug"}, "genuine": set()}[case["expect"]["outcome"]]
    assert claims.weaknesses == expected
    assert claims.measurements["module_id"].decode() == case["module_id"]
    assert ignored == []
    for index, start in literal_eval(case["pcrs"]).items():
        assert claims.measurements[f"pcr{index}"].hex().startswith(start)


@requires_vectors
def test_real_documents_are_read_from_hexadecimal_text() -> None:
    """A document as wrapped hexadecimal text is the same evidence as its bytes."""
    data = read(CASES[0]["evidence"])
    text = "0x" + "\n".join(data.hex()[i : i + 64] for i in range(0, 2 * len(data), 64)) + "\n"
    assert nitro.assemble(text.encode(), [b"unused"])[0] == Evidence(Platform.NITRO, data)
    assert nitro.assemble(text.encode(), [b"unused"])[1] == [0]


def test_good_evidence_gives_its_claims() -> None:
    """A good document gives user data, time, expiry and the PCRs that are set."""
    claims = verify(GOOD)
    assert claims.report_data == b"\x07" * 32
    assert claims.issued_at == VENDOR.now
    assert claims.not_after == VENDOR.now + timedelta(hours=3)
    assert set(claims.measurements) == {"pcr0", "pcr1", "pcr2", "pcr4", "pcr8", "module_id"}
    assert set(claims.measurements) <= VOCABULARY[Platform.NITRO].measurements
    assert claims.weaknesses == frozenset()


def test_every_step_is_taken() -> None:
    """All planned steps have passed when a document verifies."""
    steps = Steps(nitro.STEPS)
    nitro.verify(GOOD, anchors=VENDOR.anchors, now=VENDOR.now, steps=steps)
    assert {step.status for step in steps.taken} == {"passed"}


def test_a_tagged_document_is_accepted() -> None:
    """COSE tag 18 around the document changes nothing."""
    assert verify(Evidence(Platform.NITRO, b"\xd2" + GOOD.body)) == verify(GOOD)


def test_absent_user_data_is_empty_report_data() -> None:
    """A document without user data carries an empty one, which no binding equals."""
    assert verify(VENDOR.attest(b"", fields={"user_data": None})).report_data == b""


def test_debug_enclaves_are_weak() -> None:
    """All-zero PCR0 is the weakness "debug", with PCR0 to 2 still in the claims."""
    claims = verify(VENDOR.attest(bytes(32), debug=True))
    assert claims.weaknesses == {"debug"}
    assert claims.measurements["pcr0"] == bytes(48)


def test_another_root_is_refused() -> None:
    """A document under a root that is not pinned is not genuine."""
    with pytest.raises(SignatureError, match="no pinned root"):
        verify(GOOD, anchors=VENDOR_ROOTS[Platform.NITRO])


def test_a_stale_document_is_refused() -> None:
    """After the leaf's three hours, a document is a replay."""
    verify(GOOD, now=VENDOR.now + timedelta(hours=3))
    with pytest.raises(EndorsementError, match="stale"):
        verify(GOOD, now=VENDOR.now + timedelta(hours=3, seconds=1))


def test_a_document_from_the_future_is_refused() -> None:
    """Five minutes ahead is a clock that differs, more is refused."""
    verify(GOOD, now=VENDOR.now - timedelta(minutes=5))
    with pytest.raises(EndorsementError, match="after"):
        verify(GOOD, now=VENDOR.now - timedelta(minutes=5, seconds=1))


@pytest.mark.parametrize("hours", [-4, 1])
def test_a_leaf_has_to_live_at_the_documents_time(hours: int) -> None:
    """A leaf that was expired, or not yet valid, when the document was made is refused."""
    evidence = VENDOR.attest(bytes(32), leaf_issued_at=VENDOR.now + timedelta(hours=hours))
    with pytest.raises(EndorsementError):
        verify(evidence)


def test_another_enclaves_certificate_is_refused() -> None:
    """A document with the leaf of another enclave is not signed by it."""
    other = nitro.parse_document(nitro.parse_envelope(VENDOR.attest(bytes(32)).body).payload)
    with pytest.raises(SignatureError, match="not signed by"):
        verify(VENDOR.attest(bytes(32), fields={"certificate": other.certificate}))


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP521R1()])
def test_a_leaf_on_another_curve_is_refused(curve: ec.EllipticCurve) -> None:
    """ES384 means P-384."""
    with pytest.raises(SignatureError, match="P-384"):
        verify(VENDOR.attest(bytes(32), curve=curve))


def test_a_document_signed_by_the_root_is_refused() -> None:
    """A CA certificate is no enclave's."""
    root = nitro.parse_document(nitro.parse_envelope(GOOD.body).payload).cabundle[0]
    with pytest.raises(SignatureError):
        verify(VENDOR.attest(bytes(32), fields={"certificate": root}))


def test_an_unsorted_or_shortened_bundle() -> None:
    """The order of the bundle does not matter, a missing certificate does."""
    bundle = list(nitro.parse_document(nitro.parse_envelope(GOOD.body).payload).cabundle)
    verify(VENDOR.attest(bytes(32), fields={"cabundle": bundle[::-1]}))
    with pytest.raises(SignatureError):
        verify(VENDOR.attest(bytes(32), fields={"cabundle": bundle[:2] + bundle[3:]}))


@pytest.mark.parametrize(
    "fields",
    [
        {"digest": "SHA256"},
        {"digest": {}},
        {"timestamp": 0},
        {"timestamp": -1},
        {"timestamp": 2**60},
        {"timestamp": "soon"},
        {"pcrs": {}},
        {"pcrs": {0: bytes(48), 1: bytes(48)}},
        {"pcrs": {index: bytes(32) for index in range(3)}},
        {"pcrs": {index: bytes(48) for index in range(33)}},
        {"pcrs": {0: bytes(48), 1: bytes(48), 2: bytes(48), "3": bytes(48)}},
        {"module_id": ""},
        {"module_id": "m" * 257},
        {"certificate": b""},
        {"certificate": bytes(1025)},
        {"certificate": b"not a certificate"},
        {"cabundle": []},
        {"cabundle": [b"x"] * 9},
        {"cabundle": "none"},
        {"user_data": bytes(513)},
        {"user_data": "text"},
        {"nonce": bytes(513)},
        {"public_key": bytes(1025)},
        {"nonce": {"nested": [{}]}},
        {"extra": 1},
    ],
)
def test_fields_out_of_bounds_are_refused(fields: dict[str, object]) -> None:
    """Even a signed document has to have the types and sizes of the NSM."""
    with pytest.raises(EvidenceError):
        verify(VENDOR.attest(bytes(32), fields=fields))


def test_a_doubled_key_is_refused() -> None:
    """Two values for one key leave no room for a choice."""
    payload = nitro.parse_envelope(GOOD.body).payload
    doubled = bytes([payload[0] + 1]) + payload[1:] + cbor2.dumps("nonce") + cbor2.dumps(b"2")
    with pytest.raises(EvidenceError, match="twice"):
        nitro.parse_document(doubled)
    assert nitro.parse_document(b"\xbf" + payload[1:] + b"\xff") == nitro.parse_document(payload)


@pytest.mark.parametrize(
    "envelope",
    [
        [],
        [b"", {}, b""],
        [cbor2.dumps({1: -35}), {4: b"key"}, b"p", bytes(96)],
        [cbor2.dumps({1: -35}), None, b"p", bytes(96)],
        [cbor2.dumps({1: -35}), {}, b"p", bytes(95)],
        [cbor2.dumps({1: -7}), {}, b"p", bytes(96)],
        [cbor2.dumps({1: -35, 4: b"key"}), {}, b"p", bytes(96)],
        [{1: -35}, {}, b"p", bytes(96)],
        "text",
    ],
)
def test_other_envelopes_are_refused(envelope: object) -> None:
    """Only a COSE_Sign1 with the one protected header is read further."""
    with pytest.raises(EvidenceError):
        verify(Evidence(Platform.NITRO, cbor2.dumps(envelope)))


@pytest.mark.parametrize("size", range(0, len(GOOD.body), 97))
def test_truncated_documents_are_refused(size: int) -> None:
    """A document that ends early is malformed, wherever it ends."""
    with pytest.raises(EvidenceError):
        verify(Evidence(Platform.NITRO, GOOD.body[:size]))


def test_trailing_bytes_are_refused() -> None:
    """Nothing may follow a document."""
    with pytest.raises(EvidenceError):
        verify(Evidence(Platform.NITRO, GOOD.body + b"\0"))


def test_flipped_bits_of_signed_bytes_are_refused() -> None:
    """Every sampled flip of a signed byte is refused."""
    chosen = random.Random(3)
    for signed in VENDOR.signed_bytes(GOOD):
        for position in chosen.sample(signed, min(40, len(signed))):
            body = bytearray(GOOD.body)
            body[position] ^= 1 << chosen.randrange(8)
            with pytest.raises(AttestationError):
                verify(Evidence(Platform.NITRO, bytes(body)))


def test_random_mutants_raise_attestation_errors_only() -> None:
    """Whatever is changed, the document verifies or one of our errors is raised."""
    chosen = random.Random(4)
    for _ in range(300):
        body = bytearray(GOOD.body)
        for _ in range(chosen.randint(1, 4)):
            start = chosen.randrange(len(body))
            body[start : start + chosen.randint(0, 3)] = chosen.randbytes(chosen.randint(0, 3))
        if bytes(body) == GOOD.body:
            continue
        with pytest.raises(AttestationError):
            verify(replace(GOOD, body=bytes(body)))


@given(st.binary(max_size=200))
def test_garbage_is_malformed(data: bytes) -> None:
    """Any bytes give a document or `EvidenceError`, in both parsers."""
    for parse in (nitro.parse_envelope, nitro.parse_document):
        try:
            parse(data)
        except EvidenceError:
            continue
