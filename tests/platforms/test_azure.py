"""Azure confidential VMs: real evidence, and that of fake VMs with one thing wrong each."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.attestation.model import Claims, Evidence, Platform
from blindai.attestation.steps import Steps
from blindai.attestation.trust import VENDOR_ROOTS
from blindai.attestation.vocabulary import VOCABULARY
from blindai.errors import AttestationError, EndorsementError, EvidenceError, SignatureError
from blindai.platforms import azure
from blindai.testing.fake_azure import FakeAzure
from tests.platforms.vectors import load_cases, read, requires_vectors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blindai.attestation.trust import Anchor

VM = FakeAzure()
TDX_VM = FakeAzure("tdx")
GOOD = VM.attest(b"\x07" * 32)
CASES = load_cases("azure-vtpm")
# The manifest names no time: one at which AMD's certificates hold, and one of the collateral.
AT = {"snp": datetime(2026, 6, 1, tzinfo=UTC), "tdx": datetime(2025, 10, 31, tzinfo=UTC)}


def verify(
    evidence: Evidence, *, vm: FakeAzure = VM, anchors: Sequence[Anchor] | None = None
) -> Claims:
    return azure.verify(
        evidence,
        anchors=vm.anchors if anchors is None else anchors,
        now=vm.now,
        steps=Steps(azure.STEPS),
    )


def attach(evidence: Evidence, **attachments: bytes) -> Evidence:
    return replace(evidence, attachments={**evidence.attachments, **attachments})


def detach(evidence: Evidence, name: str) -> Evidence:
    rest = {key: value for key, value in evidence.attachments.items() if key != name}
    return replace(evidence, attachments=rest)


def decode(text: str) -> bytes:
    return base64.b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4))


def from_other_projects(document: dict[str, Any]) -> tuple[bytes, list[bytes], str]:
    """Read the JSON of two other projects: quote, files beside it, kind of hardware."""
    parts = {**document.get("evidence", {}), **document}
    quote = parts["tpm_quote"]
    values = {"sha256": {str(index): value for index, value in enumerate(quote["pcrs"])}}
    extras = [
        json.dumps(values).encode(),
        bytes.fromhex(quote["signature"]),
        decode(parts["hcl_report"]),
    ]
    if "vcek" in parts:
        extras += [decode(parts["vcek"]), b"unused"]
        extras += [read(f"roots/amd_{name}_milan.pem") for name in ("ark", "ask")]
        return bytes.fromhex(quote["message"]), extras, "snp"
    extras += [decode(parts["td_quote"]), read("tdx/collateral_tdx_00806f050000.json")]
    return bytes.fromhex(quote["message"]), extras, "tdx"


@requires_vectors
@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_real_evidence_gives_what_the_manifest_expects(case: dict[str, Any]) -> None:
    """Each real VM verifies under AMD's root; the one without SEPT_VE_DISABLE does not."""
    body, extras, kind = from_other_projects(json.loads(read(case["evidence"])))
    evidence, ignored = azure.assemble(body, extras)
    anchors = VENDOR_ROOTS[Platform.AZURE_VTPM]
    steps = Steps(azure.STEPS)
    if case["expect"]["outcome"] == "weak-or-reject":
        with pytest.raises(EvidenceError, match="SEPT_VE_DISABLE"):
            azure.verify(evidence, anchors=anchors, now=AT[kind], steps=steps)
        return
    claims = azure.verify(evidence, anchors=anchors, now=AT[kind], steps=steps)
    assert ignored == [4]
    assert {f"pcr{index}" for index in range(24)} < set(claims.measurements)
    assert len(claims.measurements["measurement"]) == 48
    assert "memory-not-encrypted" not in claims.weaknesses
    if case["nonce"] == "challenge":
        assert claims.report_data == b"challenge"
    else:
        assert len(claims.report_data) == 48


@requires_vectors
@pytest.mark.parametrize("position", [0, 40, 1300, 1500])
def test_real_evidence_with_another_byte_is_refused(position: int) -> None:
    """Neither SNP report nor runtime data of a real VM can be changed."""
    body, extras, _ = from_other_projects(json.loads(read(CASES[0]["evidence"])))
    evidence, _ = azure.assemble(body, extras)
    report = bytearray(evidence.attachments["hcl_report"])
    report[position] ^= 1
    with pytest.raises(AttestationError):
        azure.verify(
            attach(evidence, hcl_report=bytes(report)),
            anchors=VENDOR_ROOTS[Platform.AZURE_VTPM],
            now=AT["snp"],
            steps=Steps(azure.STEPS),
        )


def test_claims_are_those_of_hardware_and_tpm() -> None:
    """SNP's measurement, the TPM's PCRs, its events and its key are claimed together."""
    claims = verify(GOOD)
    assert claims.report_data == b"\x07" * 32
    assert claims.weaknesses == frozenset()
    assert {"measurement", "chip_id", "pcr9", "kernel", "ak"} <= set(claims.measurements)
    vocabulary = VOCABULARY[Platform.AZURE_VTPM]
    assert set(claims.measurements) <= vocabulary.measurements
    assert set(claims.versions) <= vocabulary.versions
    assert claims.not_after is not None


def test_claims_on_tdx() -> None:
    """On TDX the measurements are those of the trust domain."""
    claims = verify(TDX_VM.attest(b"\x07" * 32), vm=TDX_VM)
    assert {"mrtd", "rtmr2", "pcr9"} <= set(claims.measurements)
    vocabulary = VOCABULARY[Platform.AZURE_VTPM]
    assert set(claims.measurements) <= vocabulary.measurements
    assert claims.weaknesses <= vocabulary.weaknesses


@pytest.mark.parametrize("vm", [VM, TDX_VM])
def test_steps_of_the_other_hardware_say_why_they_are_skipped(vm: FakeAzure) -> None:
    """A step is passed, or skipped with a reason."""
    steps = Steps(azure.STEPS)
    azure.verify(vm.attest(bytes(32)), anchors=vm.anchors, now=vm.now, steps=steps)
    assert all(step.status == "passed" or step.detail for step in steps.taken)
    assert "not reached" not in {step.detail for step in steps.taken}


def test_a_failed_step_of_the_hardware_is_shown_among_ours() -> None:
    """The error of a verifier inside carries all steps, with its prefix."""
    with pytest.raises(SignatureError) as caught:
        verify(GOOD, anchors=())
    failed = [step.name for step in caught.value.steps if step.status == "failed"]
    assert failed == ["snp-chain"]


def test_another_root_is_refused() -> None:
    """Neither another vendor's root nor the vTPM's own makes evidence genuine."""
    for anchors in (TDX_VM.anchors, VM.tpm.anchors):
        with pytest.raises(SignatureError):
            verify(GOOD, anchors=anchors)


def test_another_vms_runtime_data_is_refused() -> None:
    """The hardware has to have signed the digest of this runtime data."""
    with pytest.raises(SignatureError, match="runtime data"):
        verify(VM.attest(bytes(32), signed_digest=bytes(32)))
    digest = hashlib.sha256(VM.runtime_data()).digest()
    longer = VM.attest(bytes(32), signed_digest=digest + b"\1")
    with pytest.raises(SignatureError, match="beside its digest"):
        verify(longer)


def test_a_guests_own_report_is_refused() -> None:
    """A report from VMPL 2 with the right digest does not stand for the paravisor."""
    evidence = VM.attest(bytes(32), fields={0x30: (2).to_bytes(4, "little")})
    with pytest.raises(SignatureError, match="guest"):
        verify(evidence)


def test_a_policy_for_azure_pins_paravisor_and_system() -> None:
    """Neither PCRs nor the hardware's measurement alone are an identity of an Azure VM."""
    for names in VOCABULARY[Platform.AZURE_VTPM].identity:
        registers = {name for name in names if name.startswith("pcr")}
        assert len(registers) == len(names - registers) == 1


def test_debug_is_weak_or_refused() -> None:
    """Debug of the VM shows as it does on the hardware alone."""
    assert "debug" in verify(VM.attest(bytes(32), debug=True)).weaknesses
    with pytest.raises(AttestationError):
        verify(TDX_VM.attest(bytes(32), debug=True), vm=TDX_VM)


@pytest.mark.parametrize("vm", [VM, TDX_VM])
def test_revoked_hardware_is_refused(vm: FakeAzure) -> None:
    """Revocation of the hardware's endorsements reaches the vTPM."""
    with pytest.raises(EndorsementError):
        verify(vm.attest(bytes(32), revoked=True), vm=vm)


@pytest.mark.parametrize("years", [-20, 1])
def test_endorsements_out_of_their_time_are_refused(years: int) -> None:
    """Expired and not yet valid certificates are refused."""
    with pytest.raises(EndorsementError):
        verify(VM.attest(bytes(32), issued_at=VM.now + timedelta(days=365 * years)))


@pytest.mark.parametrize("name", ["hcl_report", "signature", "pcrs"])
def test_what_is_required_has_to_be_there(name: str) -> None:
    """Missing attachments are named."""
    with pytest.raises(EvidenceError, match=name):
        verify(detach(GOOD, name))


def test_without_a_log_there_are_no_events() -> None:
    """An event log adds claims, its absence takes none of the PCRs."""
    claims = verify(detach(GOOD, "event_log"))
    assert "kernel" not in claims.measurements
    assert "pcr9" in claims.measurements


@pytest.mark.parametrize(
    "runtime_data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"keys":[]}',
        b'{"keys":[1]}',
        b'{"keys":[{"kid":"HCLAkPub"}]}',
        b'{"keys":[{"kid":"HCLAkPub","kty":"EC","e":"AQAB","n":"AQAB"}]}',
        b'{"keys":[{"kid":"HCLAkPub","kty":"RSA","e":"AQAB","n":"AQAB"}]}',
        b'{"keys":[{"kid":"HCLAkPub","kty":"RSA","e":"AQAB","n":1}]}',
        b'{"keys":[{"kid":"HCLAkPub","kty":"RSA","e":"*","n":"!"}]}',
        b"[" * 1000,
        b"\xff\xfe",
    ],
)
def test_runtime_data_without_a_key_is_refused(runtime_data: bytes) -> None:
    """Even signed runtime data has to name one RSA key that is strong enough."""
    with pytest.raises(EvidenceError):
        verify(VM.attest(bytes(32), runtime_data=runtime_data))


def test_two_keys_of_the_name_are_refused() -> None:
    """There is no choice between two attestation keys."""
    document = json.loads(VM.runtime_data())
    document["keys"] *= 2
    with pytest.raises(EvidenceError, match="found 2"):
        verify(VM.attest(bytes(32), runtime_data=json.dumps(document).encode()))


@pytest.mark.parametrize(
    ("offset", "content"),
    [(0, b"X"), (4, b"\3"), (8, b"\0"), (1216, b"\0"), (1220, b"\2"), (1224, b"\3"), (1228, b"\2")],
)
def test_headers_that_lie_are_refused(offset: int, content: bytes) -> None:
    """Magic, versions, sizes, kind and hash type of the HCL report are checked."""
    report = bytearray(GOOD.attachments["hcl_report"])
    report[offset : offset + 1] = content
    with pytest.raises(EvidenceError):
        verify(attach(GOOD, hcl_report=bytes(report)))


@pytest.mark.parametrize("size", [0, 3, 31, 32, 1215, 1216, 1235, 1236, 1300, 1700])
def test_truncated_hcl_reports_are_refused(size: int) -> None:
    """An HCL report that ends early is malformed."""
    with pytest.raises(EvidenceError):
        verify(attach(GOOD, hcl_report=GOOD.attachments["hcl_report"][:size]))


def test_files_are_known_by_their_content() -> None:
    """In any order and as hexadecimal text, files make the evidence that they came from."""
    for vm in (VM, TDX_VM):
        good = vm.attest(bytes(32))
        extras = [data for name, data in good.attachments.items() if name != "pcrs"]
        extras = [extra.hex().encode() if extra[:4] == b"HCLA" else extra for extra in extras]
        evidence, ignored = azure.assemble(
            good.body, [*extras[::-1], good.attachments["pcrs"], b"nothing"]
        )
        assert ignored == [len(extras) + 1]
        assert verify(evidence, vm=vm) == verify(good, vm=vm)


def test_flipped_bits_of_the_quote_are_refused() -> None:
    """Every sampled flip of the signed body is refused."""
    chosen = random.Random(5)
    for position in chosen.sample(VM.signed_bytes(GOOD)[0], 30):
        body = bytearray(GOOD.body)
        body[position] ^= 1 << chosen.randrange(8)
        with pytest.raises(AttestationError):
            verify(replace(GOOD, body=bytes(body)))


def test_random_mutants_raise_attestation_errors_only() -> None:
    """A changed attachment gives the same signed claims, or one of our errors."""
    good = verify(GOOD)
    chosen = random.Random(6)
    names = [name for name in GOOD.attachments if name != "event_log"]
    for _ in range(150):
        name = chosen.choice(names)
        data = bytearray(GOOD.attachments[name])
        start = chosen.randrange(len(data))
        data[start : start + chosen.randint(0, 3)] = chosen.randbytes(chosen.randint(0, 3))
        try:
            claims = verify(attach(GOOD, **{name: bytes(data)}))
        except AttestationError:
            continue
        assert claims.measurements == good.measurements
        assert claims.report_data == good.report_data


@given(st.binary(max_size=1500))
def test_garbage_is_malformed(data: bytes) -> None:
    """Any bytes give a report, a key, or `EvidenceError`."""
    for parse in (azure.parse_hcl_report, azure.parse_attestation_key):
        for content in (data, b"HCLA" + data):
            try:
                parse(content)
            except EvidenceError:
                continue
