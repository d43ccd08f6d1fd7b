"""Azure confidential VMs: a vTPM that lives inside SEV-SNP or TDX, and a quote by it.

The vTPM is part of the paravisor (HCL), which runs inside the protected VM. The paravisor had
the hardware sign SHA-256 of its *runtime data*, a JSON text that names the vTPM's attestation
key; that key signs a TPM quote with the caller's data. So three proofs are verified as one:
hardware report → runtime data → attestation key → quote. The freshness is that of the quote;
the hardware report was made at boot.

Always true here: an SNP report counts only if the paravisor (VMPL 0) asked for it, whatever a
policy tolerates: less privileged code of the VM could name a key of its own in another. What
the vTPM measures lies in memory that is encrypted, so claims do not carry
"memory-not-encrypted". Claims are those of SEV-SNP or TDX and the PCRs and events of the TPM;
`report_data` is the quote's qualifying data. This is the one platform that is made of others.

The body is the TPMS_ATTEST of the quote. Attachments:

- "hcl_report": what NV index 0x01400001 of the vTPM holds; required.
- "signature", "pcrs", "event_log": as in `blindai.platforms.tpm`; the first two required.
- on SEV-SNP "certificates", "certificate_table", "crl": as in `blindai.platforms.sev_snp`.
- on TDX "td_quote", required, and "collateral": as in `blindai.platforms.dcap.tdx`.

Genuine hardware vouches for any paravisor, also for one that somebody else wrote to forge quotes:
a policy has to pin the paravisor (`measurement` or `id_key_digest` on SEV-SNP, `mrtd` on TDX)
beside the PCRs, and one that does not is refused at load.

Specification: Microsoft, Azure confidential VMs, "Guest attestation" (report format); RFC 7517
(JWK); and those of the platforms inside.
"""

from __future__ import annotations

import base64
import hashlib
import json
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric import rsa

from blindai.attestation.model import Claims, Evidence, Platform
from blindai.attestation.reader import Reader
from blindai.attestation.steps import Step, StepName, Steps
from blindai.errors import AttestationError, EvidenceError, SignatureError
from blindai.platforms import sev_snp
from blindai.platforms.dcap import tdx
from blindai.platforms.dcap.collateral import parse_collateral
from blindai.platforms.dcap.quote import parse_quote as parse_td_quote
from blindai.platforms.tpm import files
from blindai.platforms.tpm.keys import (
    SCHEMES,
    AttestationKey,
    check_strength,
    parse_signature,
    verify_signature,
)
from blindai.platforms.tpm.quote import (
    claim_events,
    claim_registers,
    parse_quote,
    parse_registers,
    verify_registers,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from blindai.attestation.trust import Anchor

SNP_PREFIX: Final = "snp-"
TDX_PREFIX: Final = "tdx-"
_HCL: Final = "Azure confidential VMs, Guest attestation, Attestation report format"
_PART2: Final = "TPM 2.0 Library, Part 2"


def _within(prefix: str, names: Sequence[StepName]) -> tuple[StepName, ...]:
    return tuple(replace(name, name=prefix + name.name) for name in names)


STEPS: Final = (
    StepName("hcl-report", "The paravisor's report has its form and a known version", _HCL),
    *_within(SNP_PREFIX, sev_snp.STEPS),
    StepName("paravisor", "The paravisor, and no guest, asked for the hardware's report", _HCL),
    *_within(TDX_PREFIX, tdx.STEPS),
    StepName("runtime-data", "The hardware signed the digest of the runtime data", _HCL),
    StepName("key", "The runtime data names the vTPM's attestation key", f"{_HCL}; RFC 7517"),
    StepName("quote", "The body is a quote that a TPM made itself", f"{_PART2} §10.12.8"),
    StepName("signature-format", "The signature names its scheme and hash", f"{_PART2} §11.3.4"),
    StepName("signature", "The quote is signed by the attestation key", f"{_PART2} §11.3.4"),
    StepName("pcrs", "The PCR values are those the vTPM signed", f"{_PART2} §10.12.1"),
    StepName("event-log", "The event log replays to the PCRs", "TCG PFP §10.2"),
)

SNP_REPORT: Final = 2
TDX_REPORT: Final = 4
HARDWARE_REPORT_SIZE: Final = 1184
MAX_HCL_REPORT: Final = 16 << 10

_MAGIC: Final = b"HCLA"
_VERSIONS: Final = (1, 2)
_HEADER_SIZE: Final = 32
_RUNTIME_HEADER_SIZE: Final = 20
_RUNTIME_VERSION: Final = 1
_SHA256: Final = 1
_KEY_ID: Final = "HCLAkPub"
_DIGEST_SIZE: Final = 32
_MAX_NUMBER: Final = 1024


@dataclass(frozen=True, slots=True)
class HclReport:
    """What the paravisor keeps in NV index 0x01400001.

    Attributes:
        kind: `SNP_REPORT` or `TDX_REPORT`.
        hardware_report: SNP attestation report, or TDREPORT, in 1184 bytes.
        runtime_data: JSON text; its SHA-256 is in the hardware's report data.
    """

    kind: int
    hardware_report: bytes
    runtime_data: bytes


def verify(evidence: Evidence, *, anchors: Sequence[Anchor], now: datetime, steps: Steps) -> Claims:
    """Return the claims of an Azure confidential VM; see `blindai.platforms.base.Verifier`."""
    with steps.take("hcl-report") as step:
        hcl = parse_hcl_report(_required(evidence, "hcl_report"))
        step.note("SEV-SNP" if hcl.kind == SNP_REPORT else "TDX")
    inner = _verify_hardware(evidence, hcl, anchors, now, steps)
    with steps.take("runtime-data") as step:
        _check_runtime_data(hcl, inner, step)
    with steps.take("key") as step:
        key = parse_attestation_key(hcl.runtime_data)
        step.note(f"RSA {key.public.key_size}, SHA-256 {key.digest.hex()}")
    with steps.take("quote") as step:
        quote = parse_quote(evidence.body)
        step.note(f"clock {quote.clock} ms, {quote.reset_count} resets")
    with steps.take("signature-format") as step:
        signature = parse_signature(_required(evidence, "signature"))
        step.note(f"{SCHEMES[signature.scheme]} with {signature.hash_name}")
    with steps.take("signature"):
        verify_signature(key, signature, evidence.body)
    with steps.take("pcrs") as step:
        values = parse_registers(_required(evidence, "pcrs"))
        selected = verify_registers(quote, values, signature.hash_name, step)
    measurements, weaknesses = claim_registers(selected)
    if signature.hash_name == "sha1":
        weaknesses |= {"sha1"}
    log = evidence.attachments.get("event_log")
    if log is None:
        steps.skip("event-log", "there is no event log: no named events are claimed")
    else:
        with steps.take("event-log") as step:
            events, found = claim_events(selected, log, step)
            measurements |= events
            weaknesses |= found
    return Claims(
        platform=Platform.AZURE_VTPM,
        measurements={**inner.measurements, **measurements, "ak": key.digest},
        versions={**inner.versions, "firmware": quote.firmware_version},
        weaknesses=inner.weaknesses | weaknesses,
        report_data=quote.extra_data,
        not_after=inner.not_after,
    )


def assemble(body: bytes, extras: Sequence[bytes]) -> tuple[Evidence, list[int]]:
    """Make evidence of a quote and the files beside it.

    Args:
        body: TPMS_ATTEST or TPM2B_ATTEST, in bytes or as hexadecimal text.
        extras: In any order: the HCL report, and what `blindai.platforms.tpm`, `sev_snp` and
            `dcap.tdx` take.

    Returns:
        The evidence, and the indexes of the extras that are none of these.

    Raises:
        EvidenceError: If the body is no TPMS_ATTEST.
    """
    quote, _ = files.assemble(body, ())
    own: dict[str, bytes] = {}
    others: dict[int, bytes] = {}
    for index, extra in enumerate(extras):
        content = files.from_hex(extra)
        if content.startswith(_MAGIC):
            own.setdefault("hcl_report", content)
        elif _is_collateral(extra):
            own.setdefault("collateral", extra)
        elif _is_td_quote(content):
            own.setdefault("td_quote", content)
        else:
            others[index] = extra
    attached, unknown = files.attach(list(others.values()))
    attached.pop("ak_public", None)  # the runtime data names it
    endorsements = [attached.pop(name, b"") for name in ("ak_certificates", "crl")]
    if "hcl_report" in own:
        hcl = parse_hcl_report(own["hcl_report"])
        if hcl.kind == SNP_REPORT:
            report, _ = sev_snp.assemble(hcl.hardware_report, endorsements)
            attached |= report.attachments
    indexes = list(others)
    evidence = Evidence(Platform.AZURE_VTPM, quote.body, attached | own)
    return evidence, [indexes[position] for position in unknown]


def parse_hcl_report(data: bytes) -> HclReport:
    """Read an HCL report.

    Raises:
        EvidenceError: If it is malformed, of an unknown version, or of no confidential VM.
    """
    if len(data) > MAX_HCL_REPORT:
        msg = f"HCL report: {len(data)} bytes, at most {MAX_HCL_REPORT} are accepted"
        raise EvidenceError(msg)
    reader = Reader(data, "HCL report")
    if reader.take(4, "signature") != _MAGIC:
        msg = "HCL report: it does not begin with HCLA"
        raise EvidenceError(msg)
    version, size = reader.u32("version"), reader.u32("report size")
    if version not in _VERSIONS:
        msg = f"HCL report: expected version 1 or 2, found {version}"
        raise EvidenceError(msg)
    reader.skip(_HEADER_SIZE - reader.position, "request type, status and reserved bytes")
    hardware_report = reader.take(HARDWARE_REPORT_SIZE, "hardware report")
    kind, runtime_data = _parse_runtime_data(reader)
    if size != reader.position:
        msg = f"HCL report: it says {size} bytes, its parts have {reader.position}"
        raise EvidenceError(msg)
    # NV indexes have a fixed size.
    reader.zeros(reader.remaining, "the rest of the NV index")
    return HclReport(kind, hardware_report, runtime_data)


def parse_attestation_key(runtime_data: bytes) -> AttestationKey:
    """Return the vTPM's attestation key, which runtime data names as a JWK (RFC 7517).

    Raises:
        EvidenceError: If there is none, or more than one, or no RSA key that is strong enough.
    """
    try:
        document = json.loads(runtime_data)
        keys = [key for key in document["keys"] if key["kid"] == _KEY_ID]
        numbers = [(_number(key["e"]), _number(key["n"])) for key in keys if key["kty"] == "RSA"]
        public = [rsa.RSAPublicNumbers(e, n).public_key() for e, n in numbers]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        msg = f"runtime data: no JSON with a set of keys ({type(error).__name__})"
        raise EvidenceError(msg) from error
    if len(public) != 1:
        msg = f"runtime data: expected one RSA key {_KEY_ID}, found {len(public)}"
        raise EvidenceError(msg)
    return AttestationKey(check_strength(public[0]))


class _Within(Steps):
    """The steps of a platform inside this one, among our own."""

    def __init__(self, outer: Steps, prefix: str) -> None:
        super().__init__(())
        self._outer = outer
        self._prefix = prefix

    @property
    def taken(self) -> tuple[Step, ...]:
        return self._outer.taken

    @contextmanager
    def take(self, name: str) -> Iterator[Step]:
        with self._outer.take(self._prefix + name) as step:
            yield step

    def skip(self, name: str, reason: str) -> None:
        self._outer.skip(self._prefix + name, reason)


def _verify_hardware(
    evidence: Evidence, hcl: HclReport, anchors: Sequence[Anchor], now: datetime, steps: Steps
) -> Claims:
    if hcl.kind == SNP_REPORT:
        for name in tdx.STEPS:
            steps.skip(TDX_PREFIX + name.name, "the VM is protected by SEV-SNP")
        report = Evidence(Platform.SEV_SNP, hcl.hardware_report, evidence.attachments)
        inner = sev_snp.verify(report, anchors=anchors, now=now, steps=_Within(steps, SNP_PREFIX))
        with steps.take("paravisor"):
            if "vmpl-not-zero" in inner.weaknesses:
                msg = "the guest asked for the SNP report itself: its runtime data proves nothing"
                raise SignatureError(msg)
        return inner
    for name in sev_snp.STEPS:
        steps.skip(SNP_PREFIX + name.name, "the VM is protected by TDX")
    steps.skip("paravisor", "in TDX the paravisor alone can ask for a report")
    # A TDREPORT is authentic on its own machine only; the quote over it is what we verify.
    # The event log is the vTPM's, so it explains PCRs and no runtime register.
    attached = {name: data for name, data in evidence.attachments.items() if name != "event_log"}
    quote = Evidence(Platform.TDX, _required(evidence, "td_quote"), attached)
    return tdx.verify(quote, anchors=anchors, now=now, steps=_Within(steps, TDX_PREFIX))


def _check_runtime_data(hcl: HclReport, inner: Claims, step: Step) -> None:
    digest = hashlib.sha256(hcl.runtime_data).digest()
    signed, rest = inner.report_data[:_DIGEST_SIZE], inner.report_data[_DIGEST_SIZE:]
    if not step.compare("report data", expected=signed, found=digest):
        msg = f"runtime data: its digest is {digest.hex()}, the hardware signed {signed.hex()}"
        raise SignatureError(msg)
    if any(rest):
        msg = "runtime data: the hardware signed something else beside its digest"
        raise SignatureError(msg)


def _parse_runtime_data(reader: Reader) -> tuple[int, bytes]:
    size, version = reader.u32("runtime data size"), reader.u32("runtime data version")
    kind, hash_type = reader.u32("report type"), reader.u32("hash type")
    content = reader.sized(4, "runtime data", at_most=MAX_HCL_REPORT)
    if version != _RUNTIME_VERSION or size != _RUNTIME_HEADER_SIZE + len(content):
        msg = f"HCL report: runtime data of version {version} with {size} bytes is not understood"
        raise EvidenceError(msg)
    if kind not in (SNP_REPORT, TDX_REPORT):
        msg = f"HCL report: expected one of SNP ({SNP_REPORT}) or TDX ({TDX_REPORT}), found {kind}"
        raise EvidenceError(msg)
    if hash_type != _SHA256:
        msg = f"HCL report: expected the hash type SHA-256 ({_SHA256}), found {hash_type}"
        raise EvidenceError(msg)
    return kind, content


def _number(text: str) -> int:
    if len(text) > _MAX_NUMBER:
        msg = "a number of a key is too long"
        raise ValueError(msg)
    padded = text + "=" * (-len(text) % 4)
    return int.from_bytes(base64.b64decode(padded, altchars=b"-_", validate=True))


def _required(evidence: Evidence, name: str) -> bytes:
    if name not in evidence.attachments:
        msg = f"Azure evidence: the attachment {name!r} is missing"
        raise EvidenceError(msg)
    return evidence.attachments[name]


def _is_collateral(data: bytes) -> bool:
    try:
        parse_collateral(data)
    except AttestationError:
        return False
    return True


def _is_td_quote(data: bytes) -> bool:
    try:
        parse_td_quote(data)
    except AttestationError:
        return False
    return True
