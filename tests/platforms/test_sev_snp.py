"""SEV-SNP: real reports, reports of a fake AMD, and everything that has to be refused."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from blindai.attestation import certs
from blindai.attestation.model import Claims, Evidence, Platform
from blindai.attestation.steps import Steps
from blindai.attestation.trust import VENDOR_ROOTS, Anchor
from blindai.attestation.vocabulary import VOCABULARY
from blindai.errors import AttestationError, EndorsementError, EvidenceError, SignatureError
from blindai.platforms.sev_snp import STEPS, assemble, kds, verify
from blindai.platforms.sev_snp.report import PRODUCTS, REPORT_SIZE, parse_report
from blindai.testing.fake_sev_snp import FakeAMD, pack_certificate_table
from tests.platforms.vectors import VECTORS, load_cases, read, requires_vectors

if TYPE_CHECKING:
    from collections.abc import Sequence

ANCHORS = VENDOR_ROOTS[Platform.SEV_SNP]
CASES = load_cases("sev-snp")
ROOTS = ("ark", "ask", "asvk")
GENOA = FakeAMD()
OTHER = FakeAMD()
BODY = GENOA.attest(bytes(32)).body
VENDORS = {
    "Milan": FakeAMD("Milan", version=2),
    "Genoa": GENOA,
    "Turin": FakeAMD("Turin", version=5),
}


def run(
    evidence: Evidence,
    vendor: FakeAMD = GENOA,
    *,
    now: datetime | None = None,
    anchors: Sequence[Anchor] | None = None,
) -> Claims:
    """Verify evidence of a fake AMD at its own time, unless told otherwise."""
    roots = vendor.anchors if anchors is None else anchors
    return verify(evidence, anchors=roots, now=now or vendor.now, steps=Steps(STEPS))


def pem_chain(*certificates: x509.Certificate) -> bytes:
    """Return a PEM bundle."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def chain_of(evidence: Evidence) -> list[x509.Certificate]:
    """Return the certificates that come with evidence."""
    return certs.parse_certificates(evidence.attachments["certificates"])


def without_list(evidence: Evidence) -> Evidence:
    """Return evidence without its revocation list."""
    return replace(evidence, attachments={"certificates": evidence.attachments["certificates"]})


def with_table(evidence: Evidence, *, vlek: bool = False) -> Evidence:
    """Return evidence whose certificates come as the host's table."""
    table = pack_certificate_table(chain_of(evidence), vlek=vlek)
    attachments = {"certificate_table": table, "crl": evidence.attachments["crl"]}
    return replace(evidence, attachments=attachments)


def real_evidence(case: dict[str, Any], *extras: bytes) -> Evidence:
    """Return the evidence of a case, with every AMD certificate there is."""
    roots = [read(f"roots/amd_{kind}_{p.lower()}.pem") for kind in ROOTS for p in PRODUCTS]
    evidence, _ = assemble(read(case["evidence"]), [read(case["leaf"]), *roots, *extras])
    return evidence


def real_case(name: str) -> dict[str, Any]:
    """Return the case whose name starts with `name`."""
    return next(case for case in CASES if case["name"].startswith(name))


@requires_vectors
@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_real_evidence_gives_what_the_manifest_expects(case: dict[str, Any]) -> None:
    """Real reports verify with the weakness named, or are refused, as the manifest says."""
    evidence = real_evidence(case)
    now = datetime.fromisoformat(case["at"])
    expected = case["expect"]
    if expected["outcome"] == "reject":
        with pytest.raises(AttestationError):
            run(evidence, now=now, anchors=ANCHORS)
        return
    claims = run(evidence, now=now, anchors=ANCHORS)
    assert claims.measurements["measurement"] == evidence.body[0x90:0xC0]
    assert claims.report_data == evidence.body[0x50:0x90]
    assert ("debug" in claims.weaknesses) == (expected.get("weakness") == "debug")
    vocabulary = VOCABULARY[Platform.SEV_SNP]
    assert set(claims.measurements) <= vocabulary.measurements
    assert set(claims.versions) <= vocabulary.versions
    assert claims.weaknesses <= vocabulary.weaknesses


@requires_vectors
def test_real_turin_claims_have_its_own_tcb_layout() -> None:
    """On Turin the TCB starts with the FMC, and the chip id has 8 bytes."""
    claims = run(
        real_evidence(real_case("Turin")), now=datetime(2026, 6, 1, tzinfo=UTC), anchors=ANCHORS
    )
    assert {"fmc": 1, "bootloader": 1, "tee": 1, "snp": 4, "microcode": 81}.items() <= (
        claims.versions.items()
    )
    assert claims.measurements["chip_id"] == bytes.fromhex("59790fb1c39f35c1").ljust(64, b"\0")
    assert claims.measurements["product"] == b"Turin"


@requires_vectors
def test_real_vlek_claims_name_the_provider_and_no_chip() -> None:
    """A VLEK is leased to a provider; the report that it signs masks the chip."""
    claims = run(
        real_evidence(real_case("Milan v3 VLEK")),
        now=datetime(2025, 6, 1, tzinfo=UTC),
        anchors=ANCHORS,
    )
    assert claims.measurements["csp_id"] == b"CN=cc-us-east-2.amazonaws.com"
    assert "chip_id" not in claims.measurements
    assert "vmpl-not-zero" in claims.weaknesses
    assert claims.versions["microcode"] == 217


@requires_vectors
def test_real_revocation_list_is_used_and_ends_the_claims() -> None:
    """AMD's own list is verified with the ARK; the claims do not outlive it."""
    crl = read("roots/amd_crl_milan_2025-05-06_2026-05-12.pem")
    evidence = real_evidence(real_case("Milan v2 VCEK"), crl)
    claims = run(evidence, now=datetime(2025, 6, 1, tzinfo=UTC), anchors=ANCHORS)
    assert "no-revocation-list" not in claims.weaknesses
    assert claims.not_after == datetime(2026, 5, 12, tzinfo=UTC)
    with pytest.raises(EndorsementError, match="out of date"):
        run(evidence, now=datetime(2026, 6, 1, tzinfo=UTC), anchors=ANCHORS)
    with pytest.raises(EndorsementError, match="not valid before"):
        run(evidence, now=datetime(2025, 5, 1, tzinfo=UTC), anchors=ANCHORS)


@requires_vectors
def test_revocation_list_of_another_product_is_not_taken_up_and_is_refused_when_attached() -> None:
    """Genoa's list says nothing about Milan: as a file it is ignored, attached it is an error."""
    case, crl = real_case("Milan v2 VCEK"), read("roots/amd_crl_genoa_2024-10-23_2025-11-03.pem")
    evidence = real_evidence(case, crl)
    assert "crl" not in evidence.attachments
    forced = replace(evidence, attachments={**evidence.attachments, "crl": crl})
    with pytest.raises(EndorsementError, match="expected one of"):
        run(forced, now=datetime(2025, 6, 1, tzinfo=UTC), anchors=ANCHORS)


@requires_vectors
def test_assemble_names_the_files_that_are_not_needed() -> None:
    """Of all AMD certificates only those above the leaf are taken."""
    case = real_case("Milan v2 VCEK")
    extras = [
        read("roots/amd_ark_genoa.pem"),
        read("roots/amd_ark_milan.pem"),
        b'{"tcb_info": "of another vendor"}',
        read(case["leaf"]).hex().encode(),
        read("roots/amd_ask_milan.pem"),
    ]
    evidence, ignored = assemble(read(case["evidence"]), extras)
    assert ignored == [0, 2]
    run(evidence, now=datetime(2024, 1, 1, tzinfo=UTC), anchors=ANCHORS)


@requires_vectors
def test_real_certificates_fit_no_other_chip() -> None:
    """A genuine VCEK of one chip does not verify a genuine report of another."""
    first = real_case("Milan v2 VCEK (DEBUG")
    second = next(c for c in CASES if c["name"] == "Milan v2 VCEK")
    evidence = real_evidence(second | {"leaf": first["leaf"]})
    with pytest.raises(SignatureError):
        run(evidence, now=datetime(2024, 1, 1, tzinfo=UTC), anchors=ANCHORS)


@requires_vectors
def test_there_are_cases() -> None:
    """The folder holds evidence of every product."""
    assert len(CASES) >= 8, VECTORS


@pytest.mark.parametrize("product", VENDORS)
@pytest.mark.parametrize("vlek", [False, True])
@pytest.mark.parametrize("table", [False, True])
def test_fake_evidence_passes(product: str, *, vlek: bool, table: bool) -> None:
    """Every product verifies with a VCEK and a VLEK, from a bundle or the host's table."""
    vendor = VENDORS[product]
    steps = Steps(STEPS)
    evidence = vendor.attest(b"\x07" * 32, vlek=vlek)
    if table:
        evidence = with_table(evidence, vlek=vlek)
    claims = verify(evidence, anchors=vendor.anchors, now=vendor.now, steps=steps)
    assert [step.status for step in steps.taken] == ["passed"] * len(STEPS)
    assert claims.report_data == b"\x07" * 32 + bytes(32)
    assert claims.measurements["measurement"] == b"\x5a" * 48
    expected = {"milan-vcek-extractable"} if product == "Milan" else set()
    assert claims.weaknesses == expected
    assert claims.not_after == vendor.now + timedelta(days=364)
    assert claims.issued_at is None
    assert ("csp_id" in claims.measurements) == vlek
    assert claims.measurements.get("chip_id") == (None if vlek else vendor.chip_id)


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_every_known_version_passes(version: int) -> None:
    """Versions 2 to 5 are read; the product of version 2 comes from the chain alone."""
    vendor = FakeAMD(version=version)
    assert run(vendor.attest(bytes(32)), vendor).measurements["product"] == b"Genoa"


@pytest.mark.parametrize(
    ("offset", "content", "weakness"),
    [
        (0x0A, b"\x03", "smt"),
        (0x0A, b"\x06", "migration-agent"),
        (0x0A, b"\x0a", "debug"),
        (0x160, b"\x01", "migration-agent"),
        (0x40, b"\x21", "smt"),
        (0x40, b"\x00", "alias-check-incomplete"),
        (0x30, b"\x01", "vmpl-not-zero"),
        (0x1E0, b"\x09", "tcb-not-committed"),
        (0x1F0, b"\x09", "launched-on-older-tcb"),
    ],
)
def test_signed_facts_become_weaknesses(offset: int, content: bytes, weakness: str) -> None:
    """Each fact that weakens a guest shows under its own name, and alone."""
    evidence = GENOA.attest(bytes(32), fields={offset: content})
    assert run(evidence).weaknesses == {weakness}


def test_debug_is_a_weakness() -> None:
    """A guest that its host may debug is authentic, and says so."""
    assert run(GENOA.attest(bytes(32), debug=True)).weaknesses == {"debug"}


def test_missing_revocation_list_is_a_weakness_and_a_skipped_step() -> None:
    """Without a list the claims say that nobody looked."""
    steps = Steps(STEPS)
    evidence = without_list(GENOA.attest(bytes(32)))
    claims = verify(evidence, anchors=GENOA.anchors, now=GENOA.now, steps=steps)
    assert claims.weaknesses == {"no-revocation-list"}
    assert [step.name for step in steps.taken if step.status == "skipped"] == ["revocation"]


def test_key_digests_are_claims_only_where_keys_were_used() -> None:
    """An absent key has no digest: zeros would pin nothing."""
    assert not {"id_key_digest", "author_key_digest"} & set(
        run(GENOA.attest(bytes(32))).measurements
    )
    digests = {0x48: b"\x01", 0xE0: b"\x11" * 48, 0x110: b"\x22" * 48}
    claims = run(GENOA.attest(bytes(32), fields=digests))
    assert claims.measurements["id_key_digest"] == b"\x11" * 48
    assert claims.measurements["author_key_digest"] == b"\x22" * 48
    del digests[0x48]
    assert "author_key_digest" not in run(GENOA.attest(bytes(32), fields=digests)).measurements


def test_masked_chip_is_named_by_its_certificate() -> None:
    """Where the operator masks CHIP_ID, the claim is what the VCEK certifies."""
    claims = run(GENOA.attest(bytes(32), fields={0x1A0: bytes(64)}))
    assert claims.measurements["chip_id"] == GENOA.chip_id


def test_wrong_root_is_refused() -> None:
    """A chain of the same names under another root is not AMD's."""
    evidence = OTHER.attest(bytes(32))
    with pytest.raises(SignatureError):
        run(evidence)
    with pytest.raises(SignatureError):
        run(evidence, anchors=())
    # The pinned root beside it does not help.
    mixed = pem_chain(*chain_of(evidence), GENOA.root)
    with pytest.raises(SignatureError):
        run(replace(evidence, attachments={"certificates": mixed}))


def test_root_of_another_kind_is_no_amd_root() -> None:
    """An anchor that is not named after a product cannot end an AMD chain."""
    anchors = [replace(anchor, name="Intel SGX Root CA") for anchor in GENOA.anchors]
    with pytest.raises(SignatureError):
        run(GENOA.attest(bytes(32)), anchors=anchors)


@pytest.mark.parametrize("days", [-30, 400, 8 * 365, 30 * 365])
def test_expired_and_not_yet_valid_are_refused(days: int) -> None:
    """A certificate or list that is not valid at the moment of verification does not count."""
    with pytest.raises(EndorsementError):
        run(GENOA.attest(bytes(32)), now=GENOA.now + timedelta(days=days))


def test_leaf_issued_later_is_refused() -> None:
    """A leaf from the future does not count even where no list is attached."""
    evidence = without_list(GENOA.attest(bytes(32), issued_at=GENOA.now + timedelta(seconds=1)))
    with pytest.raises(EndorsementError, match="not valid before"):
        run(evidence)


@pytest.mark.parametrize("vlek", [False, True])
def test_revoked_issuer_is_refused(*, vlek: bool) -> None:
    """AMD can revoke an ASK and an ASVK."""
    with pytest.raises(EndorsementError, match="revoked"):
        run(GENOA.attest(bytes(32), vlek=vlek, revoked=True))


def test_revocation_list_of_another_key_is_refused() -> None:
    """A list in AMD's name that AMD did not sign is an attack, not a missing list."""
    evidence = GENOA.attest(bytes(32))
    forged = {**evidence.attachments, "crl": OTHER.revocation_list()}
    with pytest.raises(SignatureError, match="not signed by"):
        run(replace(evidence, attachments=forged))


def test_missing_leaf_is_refused() -> None:
    """Neither no certificates, nor those of issuers alone, nor a leaf of the other kind do."""
    evidence = GENOA.attest(bytes(32))
    for attachments in (
        {},
        {"certificates": pem_chain(*chain_of(evidence)[1:])},
        GENOA.attest(bytes(32), vlek=True).attachments,
    ):
        with pytest.raises(EndorsementError, match="VCEK"):
            run(replace(evidence, attachments=attachments))


def test_leaf_of_another_issuer_is_refused() -> None:
    """A VCEK whose ASK is missing does not lead to the root, whatever else is there."""
    evidence = GENOA.attest(bytes(32))
    leaf, _, root = chain_of(evidence)
    asvk = chain_of(GENOA.attest(bytes(32), vlek=True))[1]
    broken = replace(evidence, attachments={"certificates": pem_chain(leaf, asvk, root)})
    with pytest.raises(SignatureError, match="no certificate of its issuer"):
        run(broken)


@pytest.mark.parametrize("product", VENDORS)
def test_leaf_of_another_chip_is_refused(product: str) -> None:
    """The certificate has to name the chip that the report names."""
    vendor = VENDORS[product]
    chip = vendor.chip_id[: PRODUCTS[product].chip_id_size]
    leaf = vendor.certify(chip_id=chip[:-1] + b"\xee")
    with pytest.raises(SignatureError, match="certificate is for chip"):
        run(vendor.attest(bytes(32), leaf=leaf), vendor)


def test_chip_id_of_another_products_size_is_refused() -> None:
    """A Genoa certificate that names 8 bytes would speak for many chips."""
    leaf = GENOA.certify(chip_id=GENOA.chip_id[:8])
    with pytest.raises(SignatureError, match="64 bytes"):
        run(GENOA.attest(bytes(32), leaf=leaf))


def test_wrapped_chip_id_is_read() -> None:
    """Some certificates hold HWID in an OCTET STRING."""
    leaf = GENOA.certify(chip_id=b"\x04\x40" + GENOA.chip_id)
    assert run(GENOA.attest(bytes(32), leaf=leaf)).measurements["chip_id"] == GENOA.chip_id


@pytest.mark.parametrize("product", VENDORS)
@pytest.mark.parametrize("offset", range(8))
def test_every_part_of_the_tcb_is_compared(product: str, offset: int) -> None:
    """A certificate for a TCB that differs in one part is refused, newer or not."""
    vendor = VENDORS[product]
    tcb = bytearray(vendor.tcb)
    tcb[offset] ^= 1
    leaf = vendor.certify(tcb=bytes(tcb))
    with pytest.raises(SignatureError, match="the certificate is for"):
        run(vendor.attest(bytes(32), leaf=leaf), vendor)


def test_the_certificate_that_fits_is_taken() -> None:
    """A host may hand out certificates of older firmware, too, in any order."""
    older = GENOA.certify(tcb=bytes([9, *GENOA.tcb[1:]]))
    evidence = GENOA.attest(bytes(32))
    bundle = pem_chain(older, *reversed(chain_of(evidence)))
    assert not run(
        replace(evidence, attachments={**evidence.attachments, "certificates": bundle})
    ).weaknesses


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP521R1()])
def test_wrong_curve_is_refused(curve: ec.EllipticCurve) -> None:
    """Only P-384 keys sign reports."""
    with pytest.raises(SignatureError, match="P-384"):
        run(GENOA.attest(bytes(32), curve=curve))


@pytest.mark.parametrize("name", ["Milan", "Milan-B0", "Genoax", ""])
def test_product_name_of_another_product_is_refused(name: str) -> None:
    """The product name in the leaf has to be that of the root."""
    with pytest.raises(SignatureError, match="the certificate for"):
        run(GENOA.attest(bytes(32), leaf=GENOA.certify(product_name=name)))


@pytest.mark.parametrize(
    ("cpuid", "error"),
    [
        (b"\x19\x01", SignatureError),
        (b"\x1a\x02", SignatureError),
        (b"\x17\x31", EvidenceError),
        (b"\0\0", EvidenceError),
    ],
)
def test_cpuid_of_another_product_is_refused(cpuid: bytes, error: type[AttestationError]) -> None:
    """From version 3 on the report names its product, and that has to be the root's."""
    with pytest.raises(error):
        run(GENOA.attest(bytes(32), fields={0x188: cpuid}))


def test_bergamo_is_endorsed_by_genoas_root() -> None:
    """Models A0h to AFh of family 19h have Genoa's chain."""
    assert not run(GENOA.attest(bytes(32), fields={0x188: b"\x19\xa0"})).weaknesses


@pytest.mark.parametrize(
    ("offset", "content", "error"),
    [
        (0x00, b"\x01", EvidenceError),  # version
        (0x00, b"\x06", EvidenceError),
        (0x0A, b"\x00", EvidenceError),  # policy bit 17
        (0x0F, b"\x80", EvidenceError),  # policy bit 63
        (0x30, b"\x04", EvidenceError),  # VMPL
        (0x30, b"\xff" * 4, EvidenceError),  # asked for by the host
        (0x34, b"\x02", EvidenceError),  # signature algorithm
        (0x48, b"\x1c", EvidenceError),  # signing key: none
        (0x48, b"\x08", EvidenceError),  # signing key: reserved
        (0x48, b"\x20", EvidenceError),  # reserved flag
        (0x4C, b"\x01", EvidenceError),
        (0x19F, b"\x01", EvidenceError),
        (0x1F8, b"\x01", EvidenceError),  # mitigations before version 4
        (0x29F, b"\x01", EvidenceError),
        (0x330, b"\x01", EvidenceError),  # behind the signature
    ],
)
def test_signed_but_malformed_is_refused(
    offset: int, content: bytes, error: type[AttestationError]
) -> None:
    """A signature does not make up for a field that says what it cannot say."""
    with pytest.raises(error):
        run(GENOA.attest(bytes(32), fields={offset: content}))


def test_mitigation_vectors_of_version_5_are_read_over() -> None:
    """Version 5 has two vectors where version 3 has zeros."""
    vendor = VENDORS["Turin"]
    assert not run(vendor.attest(bytes(32), fields={0x1F8: b"\x3f" * 16}), vendor).weaknesses


def test_unsigned_report_is_refused_with_the_reason() -> None:
    """With MASK_CHIP_KEY the firmware writes zeros where the signature would be."""
    evidence = GENOA.attest(bytes(32), fields={0x48: b"\x02"})
    unsigned = replace(evidence, body=evidence.body[:0x2A0] + bytes(0x200))
    with pytest.raises(SignatureError, match="masked"):
        run(unsigned)
    assert not run(evidence).weaknesses


def test_every_truncation_is_refused() -> None:
    """No shorter body is a report, nor a longer one."""
    evidence = GENOA.attest(bytes(32))
    for size in [*range(REPORT_SIZE), REPORT_SIZE + 1]:
        body = (evidence.body + b"\0")[:size]
        with pytest.raises(EvidenceError, match=f"expected {REPORT_SIZE} bytes"):
            run(replace(evidence, body=body))


@pytest.mark.parametrize("vlek", [False, True])
def test_every_flipped_byte_is_refused(*, vlek: bool) -> None:
    """A flipped bit anywhere in the body, signed or not, is refused."""
    evidence = without_list(GENOA.attest(b"\x07" * 64, vlek=vlek))
    chosen = random.Random(5)
    for signed in GENOA.signed_bytes(evidence):
        for position in signed:
            body = bytearray(evidence.body)
            body[position] ^= 1 << chosen.randrange(8)
            with pytest.raises(AttestationError):
                run(replace(evidence, body=bytes(body)))


@pytest.mark.parametrize("name", ["certificates", "certificate_table", "crl"])
def test_mutants_of_attachments_raise_nothing_else(name: str) -> None:
    """Damaged attachments are refused with an attestation error, or change no claim."""
    evidence = GENOA.attest(bytes(32))
    if name == "certificate_table":
        evidence = with_table(evidence)
    if name == "certificates":
        chain = b"".join(map(certs.der, chain_of(evidence)))
        evidence = replace(evidence, attachments={**evidence.attachments, name: chain})
    claims, chosen = run(evidence), random.Random(6)
    for _ in range(1500):
        data = bytearray(evidence.attachments[name])
        for _ in range(chosen.randrange(1, 4)):
            data[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
        if chosen.random() < 0.1:
            del data[chosen.randrange(len(data)) :]
        mutant = replace(evidence, attachments={**evidence.attachments, name: bytes(data)})
        try:
            found = run(mutant)
        except AttestationError:
            continue
        # The list may be gone (an emptied entry); nothing else may be different.
        assert replace(found, weaknesses=frozenset(), not_after=None) == replace(
            claims, weaknesses=frozenset(), not_after=None
        )


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=2 * REPORT_SIZE), st.binary(max_size=600), st.binary(max_size=600))
def test_any_bytes_are_refused(body: bytes, certificates: bytes, table: bytes) -> None:
    """Random bytes give an attestation error, whatever they are put up as."""
    attachments = {"certificates": certificates, "certificate_table": table, "crl": table}
    with pytest.raises(AttestationError):
        run(Evidence(Platform.SEV_SNP, body, attachments))
    with pytest.raises(AttestationError):
        run(Evidence(Platform.SEV_SNP, BODY, attachments))


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=48, max_size=48), st.binary(min_size=64, max_size=64), st.data())
def test_parse_report_gives_what_the_bytes_say_or_refuses(
    measurement: bytes, chip_id: bytes, data: st.DataObject
) -> None:
    """Fields come from their offsets, and any byte of the report may have any value."""
    body = bytearray(BODY)
    body[0x90:0xC0], body[0x1A0:0x1E0] = measurement, chip_id
    report = parse_report(bytes(body))
    assert (report.measurement, report.chip_id) == (measurement, chip_id)
    assert report.signed == bytes(body[:0x2A0])
    body[data.draw(st.integers(0, REPORT_SIZE - 1))] = data.draw(st.integers(0, 255))
    try:
        report = parse_report(bytes(body))
    except EvidenceError:
        return
    assert report.reported_tcb == body[0x180:0x188]
    assert report.policy_bytes == body[0x08:0x10]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.lists(st.binary(max_size=400), max_size=4))
def test_assemble_raises_nothing_else(body: bytes, extras: list[bytes]) -> None:
    """Any files give evidence or `EvidenceError`."""
    with pytest.raises(EvidenceError):
        assemble(body, extras)
    try:
        evidence, ignored = assemble(BODY, extras)
    except EvidenceError:
        return
    assert evidence.body == BODY
    assert set(ignored) <= set(range(len(extras)))


@pytest.mark.parametrize("form", ["raw", "hex", "0x", "lines"])
def test_assemble_reads_reports_in_every_form(form: str) -> None:
    """A report may lie on disk as bytes or as hex text."""
    evidence = GENOA.attest(bytes(32))
    text = evidence.body.hex()
    forms = {
        "raw": evidence.body,
        "hex": text.encode() + b"\n",
        "0x": b"0x" + text.upper().encode(),
        "lines": "\r\n".join(text[i : i + 64] for i in range(0, len(text), 64)).encode(),
    }
    extras = [evidence.attachments["crl"], pem_chain(*reversed(chain_of(evidence)))]
    built, ignored = assemble(forms[form], extras)
    assert ignored == []
    assert not run(built).weaknesses


def test_assemble_reads_an_extended_report_and_a_separate_table() -> None:
    """The certificate table may follow the report, or lie beside it."""
    evidence = with_table(GENOA.attest(bytes(32)))
    table = evidence.attachments["certificate_table"]
    crl = evidence.attachments["crl"]
    for built, ignored in (
        assemble(evidence.body + table, [crl]),
        assemble(evidence.body, [crl, table]),
    ):
        assert ignored == []
        assert not run(built).weaknesses


def test_assemble_takes_the_newest_list_and_ignores_the_rest() -> None:
    """Of several lists the newest counts; a certificate given twice is needed once."""
    evidence = GENOA.attest(bytes(32))
    old = GENOA.revocation_list(issued_at=GENOA.now - timedelta(days=500))
    pem = evidence.attachments["certificates"]
    built, ignored = assemble(evidence.body, [old, pem, evidence.attachments["crl"], pem])
    assert ignored == [0, 3]
    assert not run(built).weaknesses


def test_assemble_refuses_malformed_files() -> None:
    """A file that sets out as a certificate or table has to be one."""
    for extra in (
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
        b"\x30\x82\x00\x04abcd",
        b"0x123",
    ):
        with pytest.raises(EvidenceError):
            assemble(BODY, [extra])
    with pytest.raises(EvidenceError):
        assemble(BODY + b"trailing", [])


def test_certificate_table_bounds_are_checked() -> None:
    """Lengths that lie, too many entries and too many bytes are refused."""
    table = with_table(GENOA.attest(bytes(32))).attachments["certificate_table"]
    lying = bytearray(table)
    lying[20:24] = b"\xff\xff\xff\x7f"
    entry = b"\x01" * 16 + bytes(8)
    for data in (
        bytes(lying),
        b"",
        table[:70],
        entry * 17 + bytes(24),
        table + bytes(kds.MAX_TABLE_BYTES),
    ):
        with pytest.raises(EvidenceError):
            kds.parse_certificate_table(data)
    assert len(kds.parse_certificate_table(table).certificates) == 3
    assert kds.parse_certificate_table(entry + bytes(24)).certificates == ()


def test_revocation_list_of_the_table_is_used() -> None:
    """A list in the host's table counts like an attached one."""
    evidence = without_list(GENOA.attest(bytes(32)))
    revoked = GENOA.revocation_list([chain_of(evidence)[1].serial_number])
    header = bytes.fromhex("92f81bc358114d3d97ffd19f88dc67ea") + (48).to_bytes(4, "little")
    table = header + len(revoked).to_bytes(4, "little") + bytes(24) + revoked
    attached = {**evidence.attachments, "certificate_table": table}
    with pytest.raises(EndorsementError, match="revoked"):
        run(replace(evidence, attachments=attached))


def test_urls_of_version_3_name_one_product() -> None:
    """The address of a VCEK has the chip and every named part of the TCB."""
    (found,) = kds.urls(parse_report(GENOA.attest(bytes(32)).body))
    chip = GENOA.chip_id.hex()
    assert found == kds.EndorsementUrls(
        product="Genoa",
        leaf=f"https://kdsintf.amd.com/vcek/v1/Genoa/{chip}?blSPL=10&teeSPL=00&snpSPL=23&ucodeSPL=84",
        chain="https://kdsintf.amd.com/vcek/v1/Genoa/cert_chain",
        crl="https://kdsintf.amd.com/vcek/v1/Genoa/crl",
    )


def test_urls_of_turin_have_its_fmc_and_short_chip() -> None:
    """Turin's chip has 8 bytes, and its TCB a part more."""
    vendor = VENDORS["Turin"]
    (found,) = kds.urls(parse_report(vendor.attest(bytes(32)).body), "https://cache.test")
    query = "fmcSPL=01&blSPL=01&teeSPL=01&snpSPL=04&ucodeSPL=81"
    assert found.leaf == f"https://cache.test/vcek/v1/Turin/0102030405060708?{query}"


def test_urls_of_version_2_list_the_candidates() -> None:
    """Before version 3 a report does not say its product; a masked chip has no address."""
    report = parse_report(VENDORS["Milan"].attest(bytes(32)).body)
    assert [found.product for found in kds.urls(report)] == ["Milan", "Genoa"]
    masked = kds.urls(replace(report, chip_id=bytes(64)))
    assert [found.product for found in masked] == ["Milan", "Genoa", "Turin"]
    assert [found.leaf for found in masked] == [None] * 3


def test_urls_of_a_vlek_have_no_leaf() -> None:
    """AMD gives a VLEK to nobody but the provider."""
    (found,) = kds.urls(parse_report(GENOA.attest(bytes(32), vlek=True).body))
    assert found.leaf is None
    assert found.chain == "https://kdsintf.amd.com/vlek/v1/Genoa/cert_chain"


def test_what_kds_returns_becomes_attachments() -> None:
    """The answers of the three addresses are all that verification needs."""
    evidence = GENOA.attest(bytes(32))
    leaf, *issuers = chain_of(evidence)
    made = kds.attachments(
        leaf=certs.der(leaf), chain=pem_chain(*issuers), crl=evidence.attachments["crl"]
    )
    assert not run(replace(evidence, attachments=made)).weaknesses
    with pytest.raises(EvidenceError):
        kds.attachments(leaf=b"<html>429</html>", chain=pem_chain(*issuers))


def test_failure_shows_what_passed_before() -> None:
    """The error carries every step, and the last one taken has failed."""
    with pytest.raises(SignatureError) as caught:
        run(GENOA.attest(bytes(32), leaf=GENOA.certify(tcb=bytes(8))))
    statuses = {step.name: step.status for step in caught.value.steps}
    assert statuses["signature"] == "passed"
    assert statuses["tcb"] == "failed"
    assert statuses["chip"] == "skipped"


def test_names_that_a_terminal_would_obey_are_refused() -> None:
    """A certificate's text is shown to people: line breaks would forge steps."""
    leaf = GENOA.certify(product_name="Genoa\n  passed  root")
    with pytest.raises(EvidenceError, match="printable"):
        run(GENOA.attest(bytes(32), leaf=leaf))


def test_packed_table_is_read_back() -> None:
    """The fake host's table is what the parser understands."""
    chain = chain_of(GENOA.attest(bytes(32)))
    assert list(kds.parse_certificate_table(pack_certificate_table(chain)).certificates) == chain
