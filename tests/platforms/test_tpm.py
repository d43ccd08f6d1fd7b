"""TPM 2.0: a real quote, and those of a fake vendor with one thing wrong each."""

from __future__ import annotations

import base64
import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from blindai.attestation.model import Claims, Evidence, Platform
from blindai.attestation.steps import Steps
from blindai.attestation.trust import VENDOR_ROOTS
from blindai.attestation.vocabulary import VOCABULARY
from blindai.errors import AttestationError, EndorsementError, EvidenceError, SignatureError
from blindai.platforms import tpm
from blindai.platforms.tpm.keys import parse_key, parse_signature
from blindai.platforms.tpm.quote import dump_registers, parse_quote, parse_registers
from blindai.testing.fake_tpm import (
    RESTRICTED_SIGNING,
    FakeTPM,
    boot_events,
    make_event_log,
    make_public_area,
    make_quote,
)
from tests.platforms.vectors import load_cases, read, requires_vectors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blindai.attestation.trust import Anchor
    from blindai.testing.fake_tpm import SchemeName

VENDOR = FakeTPM()
GOOD = VENDOR.attest(b"\x07" * 32)
CASES = load_cases("tpm")


def verify(
    evidence: Evidence,
    *,
    anchors: Sequence[Anchor] = VENDOR.anchors,
    now: datetime = VENDOR.now,
) -> Claims:
    return tpm.verify(evidence, anchors=anchors, now=now, steps=Steps(tpm.STEPS))


def attach(evidence: Evidence, **attachments: bytes) -> Evidence:
    return replace(evidence, attachments={**evidence.attachments, **attachments})


def detach(evidence: Evidence, *names: str) -> Evidence:
    rest = {key: value for key, value in evidence.attachments.items() if key not in names}
    return replace(evidence, attachments=rest)


def signed(body: bytes, vendor: FakeTPM = VENDOR) -> Evidence:
    """Return good evidence with another body, signed with the right key."""
    good = vendor.attest(bytes(32))
    return attach(replace(good, body=body), signature=vendor.sign(body))


def from_go_attestation(document: dict[str, Any]) -> tuple[bytes, list[bytes]]:
    """Read the JSON of google/go-attestation: quote, and files beside it."""
    values = {
        str(pcr["Index"]): base64.b64decode(pcr["Digest"]).hex()
        for pcr in document["Log"]["PCRs"]
        if pcr["DigestAlg"] == 3
    }
    extras = [
        base64.b64decode(document["Log"]["Raw"]),
        base64.b64decode(document["AK"]["Public"]),
        json.dumps({"sha1": values}).encode(),
        b"unused",
        base64.b64decode(document["Quote"]["Signature"]),
    ]
    return base64.b64decode(document["Quote"]["Quote"]), extras


@requires_vectors
@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_real_evidence_gives_what_the_manifest_expects(case: dict[str, Any]) -> None:
    """A Windows VM's quote verifies, with what is old and unknown about it as weaknesses."""
    body, extras = from_go_attestation(json.loads(read(case["evidence"])))
    evidence, ignored = tpm.assemble(body, extras)
    claims = verify(
        evidence, anchors=VENDOR_ROOTS[Platform.TPM], now=datetime(2026, 6, 1, tzinfo=UTC)
    )
    assert case["expect"]["outcome"] == "genuine"
    assert ignored == [3]
    assert claims.report_data == b""
    assert claims.weaknesses == {"sha1", "ak-not-certified", "memory-not-encrypted"}
    assert claims.measurements["secure_boot"] == b"\1"
    assert len(claims.measurements["boot_authority"]) == 32
    assert "kernel" not in claims.measurements


@requires_vectors
def test_a_real_quote_with_another_byte_is_refused() -> None:
    """Quote, signature, PCR values and log of the real machine cannot be changed."""
    body, extras = from_go_attestation(json.loads(read(CASES[0]["evidence"])))
    evidence, _ = tpm.assemble(body, extras)
    for name in ("signature", "pcrs", "body"):
        data = bytearray(body if name == "body" else evidence.attachments[name])
        data[-1] ^= 1
        changed = (
            replace(evidence, body=bytes(data))
            if name == "body"
            else attach(evidence, **{name: bytes(data)})
        )
        with pytest.raises(AttestationError):
            verify(changed)


@pytest.mark.parametrize("scheme", ["ECDSA", "RSASSA", "RSAPSS"])
@pytest.mark.parametrize("hash_name", ["sha256", "sha384", "sha512"])
def test_good_evidence_gives_its_claims(scheme: SchemeName, hash_name: str) -> None:
    """Every scheme and hash verifies; PCRs, events, key and firmware are claimed."""
    vendor = FakeTPM(scheme)
    claims = verify(vendor.attest(b"\x07" * 32, hash_name=hash_name), anchors=vendor.anchors)
    assert claims.report_data == b"\x07" * 32
    assert claims.weaknesses == {"memory-not-encrypted"}
    assert claims.versions == {"firmware": 0x20240101}
    assert claims.not_after == vendor.now + timedelta(days=30)
    vocabulary = VOCABULARY[Platform.TPM]
    assert {"pcr0", "pcr9", "kernel", "ak"} <= set(claims.measurements) <= vocabulary.measurements
    assert claims.weaknesses <= vocabulary.weaknesses


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_larger_curves_are_accepted(curve: ec.EllipticCurve) -> None:
    """Attestation keys on P-384 and P-521 are as good as on P-256."""
    vendor = FakeTPM(curve=curve)
    assert verify(vendor.attest(bytes(32)), anchors=vendor.anchors).versions


def test_every_step_is_taken() -> None:
    """All planned steps have passed when a full quote verifies."""
    steps = Steps(tpm.STEPS)
    tpm.verify(GOOD, anchors=VENDOR.anchors, now=VENDOR.now, steps=steps)
    assert {step.status for step in steps.taken} == {"passed"}


def test_sha1_is_a_weakness() -> None:
    """SHA-1 in the signature, or as the only bank, is weak; beside SHA-256 it does not count."""
    rsa_vendor = FakeTPM("RSASSA")
    by_hash = rsa_vendor.attest(bytes(32), hash_name="sha1")
    assert "sha1" in verify(by_hash, anchors=rsa_vendor.anchors).weaknesses
    assert "sha1" in verify(VENDOR.attest(bytes(32), banks=["sha1"])).weaknesses
    both = verify(VENDOR.attest(bytes(32), banks=["sha1", "sha256"]))
    assert "sha1" not in both.weaknesses
    assert len(both.measurements["pcr0"]) == 32


def test_without_certificates_the_key_is_named() -> None:
    """A key that nobody certified is weak, and known by the SHA-256 of its public key."""
    claims = verify(VENDOR.attest(bytes(32), certified=False))
    assert claims.weaknesses == {"memory-not-encrypted", "ak-not-certified"}
    assert claims.measurements["ak"] == verify(GOOD).measurements["ak"]
    assert claims.not_after is None


def test_a_bare_key_names_the_same_key() -> None:
    """SubjectPublicKeyInfo in PEM or DER does as well as the TPM's public area."""
    public = VENDOR.key.public_key()
    for encoding in (Encoding.PEM, Encoding.DER):
        data = public.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
        assert verify(attach(GOOD, ak_public=data)) == verify(GOOD)
    assert verify(detach(GOOD, "ak_public")) == verify(GOOD)
    with pytest.raises(EvidenceError, match="neither"):
        verify(detach(GOOD, "ak_public", "ak_certificates"))


@pytest.mark.parametrize("bit", [1, 4, 5, 16, 17, 18])
def test_keys_that_sign_anything_are_refused(bit: int) -> None:
    """A key has to be restricted to signing, and bound to its TPM."""
    with pytest.raises(SignatureError, match="restricted signing key"):
        verify(VENDOR.attest(bytes(32), attributes=RESTRICTED_SIGNING ^ 1 << bit))


def test_a_scheme_that_the_key_is_not_bound_to_is_refused() -> None:
    """RSASSA does not pass for RSAPSS under one key."""
    pss, plain = FakeTPM("RSAPSS"), FakeTPM("RSASSA")
    evidence = attach(plain.attest(bytes(32)), ak_public=pss.attest(b"").attachments["ak_public"])
    with pytest.raises(SignatureError, match="RSAPSS"):
        verify(evidence, anchors=plain.anchors)


def test_signatures_of_the_wrong_kind_are_refused() -> None:
    """An ECDSA key signs no RSASSA, and an RSA key no ECDSA."""
    other = FakeTPM("RSASSA")
    bare = detach(GOOD, "ak_public")
    with pytest.raises(SignatureError, match="does not fit"):
        verify(attach(bare, signature=other.sign(GOOD.body)))
    evidence = detach(other.attest(bytes(32)), "ak_public")
    with pytest.raises(SignatureError, match="does not fit"):
        verify(attach(evidence, signature=VENDOR.sign(evidence.body)), anchors=other.anchors)


def test_another_machines_key_is_refused() -> None:
    """Certificate and public key have to be of one key, and the quote signed by it."""
    other = FakeTPM().attest(bytes(32))
    with pytest.raises(SignatureError, match="not the key of"):
        verify(attach(GOOD, ak_public=other.attachments["ak_public"]))
    with pytest.raises(SignatureError, match="not signed"):
        verify(attach(GOOD, signature=other.attachments["signature"]))


def test_another_root_is_refused() -> None:
    """Certificates that lead elsewhere are refused, not taken for none."""
    with pytest.raises(SignatureError, match="no pinned root"):
        verify(GOOD, anchors=VENDOR_ROOTS[Platform.TPM])


def test_a_quote_signed_by_the_root_is_refused() -> None:
    """The root's own certificate is no attestation key's."""
    bundle = GOOD.attachments["ak_certificates"]
    root = b"-----BEGIN" + bundle.split(b"-----BEGIN")[-1]
    with pytest.raises(SignatureError):
        verify(attach(detach(GOOD, "ak_public"), ak_certificates=root))


@pytest.mark.parametrize("days", [-366, 1])
def test_certificates_out_of_their_time_are_refused(days: int) -> None:
    """A certificate that expired, or does not hold yet, is refused."""
    with pytest.raises(EndorsementError):
        verify(VENDOR.attest(bytes(32), issued_at=VENDOR.now + timedelta(days=days)))


def test_revoked_keys_are_refused() -> None:
    """A revoked certificate is refused; without a list, that is a weakness."""
    evidence = VENDOR.attest(bytes(32), revoked=True)
    with pytest.raises(EndorsementError, match="revoked"):
        verify(evidence)
    assert "no-revocation-list" in verify(detach(evidence, "crl")).weaknesses


def test_stale_revocation_lists_are_refused() -> None:
    """A list out of its time is refused."""
    with pytest.raises(EndorsementError, match="out of date"):
        verify(GOOD, now=VENDOR.now + timedelta(days=31))


def test_other_pcr_values_are_refused() -> None:
    """Values have to be complete, and those that the TPM signed; others are not looked at."""
    values = parse_registers(GOOD.attachments["pcrs"])
    changed = {"sha256": values["sha256"] | {4: bytes(32)}}
    with pytest.raises(SignatureError, match="PCR values"):
        verify(attach(GOOD, pcrs=dump_registers(changed)))
    missing = {"sha256": {i: v for i, v in values["sha256"].items() if i != 4}}
    with pytest.raises(EvidenceError, match="PCR 4"):
        verify(attach(GOOD, pcrs=dump_registers(missing)))
    with pytest.raises(EvidenceError):
        verify(detach(GOOD, "pcrs"))
    more = {"sha256": values["sha256"] | {23: b"\1" * 32}}
    assert verify(attach(GOOD, pcrs=dump_registers(more))) == verify(GOOD)


def test_a_quote_over_nothing_claims_no_pcrs() -> None:
    """Without selected PCRs there is nothing to compare, and nothing to claim."""
    evidence = detach(signed(make_quote(b"", {}, "sha256")), "pcrs", "event_log")
    assert set(verify(evidence).measurements) == {"ak"}


def test_a_log_of_another_boot_is_refused() -> None:
    """A log that explains no quoted PCR at all does not belong to the quote."""
    other = make_event_log([(0, 8, b"other firmware", b"other firmware")])
    with pytest.raises(EvidenceError, match="explains none"):
        verify(VENDOR.attest(bytes(32), event_log=other))


def test_a_log_that_leaves_something_out_is_weak() -> None:
    """PCRs 0 to 9 have to be explained; later ones belong to the running system."""
    short = make_event_log(boot_events()[:-1])
    claims = verify(VENDOR.attest(bytes(32), event_log=short))
    assert "event-log-mismatch" in claims.weaknesses
    assert "kernel" not in claims.measurements
    assert claims.measurements["secure_boot"] == b"\1"
    events = [*boot_events(), (10, 8, b"runtime", b"runtime")]
    later = VENDOR.attest(bytes(32), event_log=make_event_log(events), registers={10: b"\1" * 32})
    assert "event-log-mismatch" not in verify(later).weaknesses


def test_without_a_log_there_are_no_events() -> None:
    """PCRs are claimed without a log, events are not."""
    claims = verify(detach(GOOD, "event_log"))
    assert "kernel" not in claims.measurements
    assert claims.measurements["pcr9"] == verify(GOOD).measurements["pcr9"]


def test_a_log_of_another_bank_is_refused() -> None:
    """A log that has no digest of the quoted bank can explain nothing."""
    log = make_event_log(boot_events(), ["sha1"])
    with pytest.raises(EvidenceError, match="none of which"):
        verify(VENDOR.attest(bytes(32), event_log=log))


@pytest.mark.parametrize(
    ("offset", "content"),
    [
        (0, b"\xff\x54\x43\x48"),
        (4, b"\x80\x17"),
        (4, b"\x80\x14"),
        (6, b"\xff\xff"),
        (42, b"\xff\xff"),
        (92, b"\2"),
        (101, b"\xff\xff\xff\xff"),
        (105, b"\x00\x12"),
        (107, b"\5"),
    ],
)
def test_quotes_that_lie_are_refused(offset: int, content: bytes) -> None:
    """Even rightly signed: magic, type, sizes and the selection have to be those of a quote."""
    body = bytearray(GOOD.body)
    body[offset : offset + len(content)] = content
    with pytest.raises(EvidenceError):
        verify(signed(bytes(body)))


def test_files_are_known_by_their_content() -> None:
    """In any order, in hexadecimal, with a size in front, or as `tpm2_pcrread` prints."""
    values = parse_registers(GOOD.attachments["pcrs"])["sha256"]
    listing = "sha1:\nsha256:\n" + "".join(
        f"  {index:<2}: 0x{value.hex().upper()}\n" for index, value in values.items()
    )
    extras = [
        b"junk",
        GOOD.attachments["crl"],
        GOOD.attachments["event_log"],
        listing.encode(),
        GOOD.attachments["ak_certificates"],
        GOOD.attachments["signature"].hex().encode() + b"\n",
        GOOD.attachments["ak_public"],
    ]
    sized = len(GOOD.body).to_bytes(2) + GOOD.body
    for body in (GOOD.body, sized, b"0x" + GOOD.body.hex().encode()):
        evidence, ignored = tpm.assemble(body, extras)
        assert ignored == [0]
        assert verify(evidence) == verify(GOOD)
    with pytest.raises(EvidenceError):
        tpm.assemble(b"something else", [])


def test_a_bare_rsa_signature_is_taken_for_rsassa_with_sha256() -> None:
    """The number alone, as `tpm2_quote` writes it with `-f plain`, is enough."""
    vendor = FakeTPM("RSASSA")
    good = vendor.attest(bytes(32))
    extras = [data for name, data in good.attachments.items() if name != "signature"]
    evidence, ignored = tpm.assemble(good.body, [*extras, good.attachments["signature"][6:]])
    assert ignored == []
    assert verify(evidence, anchors=vendor.anchors) == verify(good, anchors=vendor.anchors)


def test_weak_and_odd_keys_are_refused() -> None:
    """RSA below 2048 bits, points off their curve and other curves are refused."""
    area = bytearray(make_public_area(VENDOR.key.public_key(), 0, "ECDSA", "sha256"))
    off = bytes([*area[:-1], area[-1] ^ 1])
    curve = bytes(area).replace(b"\x00\x03\x00\x10", b"\x00\x09\x00\x10")
    small = FakeTPM("RSASSA", bits=1024)
    weak = make_public_area(small.key.public_key(), 0, "RSASSA", "sha256")
    secp256k1 = ec.generate_private_key(ec.SECP256K1()).public_key()
    other = secp256k1.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for data in (off, curve, weak, other, b"", b"\x30\x00", bytes(5000), b"-----BEGIN X-----"):
        with pytest.raises(EvidenceError):
            parse_key(data)


def test_truncated_parts_are_refused() -> None:
    """Quote, signature, public area and PCR values that end early are malformed."""
    for size in range(len(GOOD.body)):
        with pytest.raises(EvidenceError):
            verify(replace(GOOD, body=GOOD.body[:size]))
    for name in ("signature", "ak_public", "pcrs"):
        data = GOOD.attachments[name]
        for size in range(0, len(data), 5):
            with pytest.raises(EvidenceError):
                verify(attach(GOOD, **{name: data[:size]}))


def test_flipped_bits_of_the_quote_are_refused() -> None:
    """Every sampled flip of the signed body is refused."""
    chosen = random.Random(8)
    for position in VENDOR.signed_bytes(GOOD)[0]:
        body = bytearray(GOOD.body)
        body[position] ^= 1 << chosen.randrange(8)
        with pytest.raises(AttestationError):
            verify(replace(GOOD, body=bytes(body)))


def test_random_mutants_raise_attestation_errors_only() -> None:
    """A changed attachment gives claims of the same PCRs, or one of our errors."""
    good = verify(GOOD)
    chosen = random.Random(9)
    names = list(GOOD.attachments)
    for _ in range(300):
        name = chosen.choice(names)
        data = bytearray(GOOD.attachments[name])
        start = chosen.randrange(len(data))
        data[start : start + chosen.randint(0, 3)] = chosen.randbytes(chosen.randint(0, 3))
        try:
            claims = verify(attach(GOOD, **{name: bytes(data)}))
        except AttestationError:
            continue
        for measurement in ("pcr0", "pcr4", "pcr9", "ak"):
            assert claims.measurements[measurement] == good.measurements[measurement]


@given(st.binary(max_size=200))
def test_garbage_is_malformed(data: bytes) -> None:
    """Any bytes give a value or `EvidenceError`, in every parser."""
    for parse in (parse_quote, parse_signature, parse_key, parse_registers):
        for prefix in (b"", GOOD.body[:20], b"\0\x18\0\x0b", b"\0\x23\0\x0b\0\5\0r\0\0"):
            try:
                parse(prefix + data)
            except EvidenceError:
                continue
