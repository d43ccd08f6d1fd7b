"""TPM 2.0: a quote over platform configuration registers, and how its key is known.

The body is the TPMS_ATTEST of a quote. Attachments:

- "signature": TPMT_SIGNATURE (RSASSA, RSAPSS or ECDSA); required.
- "pcrs": deterministic CBOR of {bank: {index: value}}, bank "sha256" and so on; required if
  the quote covers a PCR.
- "ak_certificates": PEM of the AK's certificate and its chain, or
- "ak_public": TPM2B_PUBLIC, TPMT_PUBLIC or SubjectPublicKeyInfo; either, or both.
- "crl": PEM of revocation lists for the chain, or one in DER; optional.
- "event_log": the firmware's TCG log; optional. Without one there are no named events, and a
  policy that pins one is not met.

The AK is trusted through its certificate chain, where there is one. Else it has the weakness
"ak-not-certified", and its SHA-256 is the measurement "ak": a policy may pin it and tolerate
that, where credential activation (TPM 2.0 Part 1 §24) bound this AK to a known TPM at
enrolment. To tolerate it without pinning "ak" is to trust any key in any software. Credential
activation is a dialogue with the TPM and cannot be part of a pure verification. A restricted
key's attributes are checked where its public area is given.

A TPM measures but encrypts no memory, and the bus to it can be tapped: every claim carries
"memory-not-encrypted".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from cryptography import x509

from blindai.attestation import certs
from blindai.attestation.model import Claims, Evidence, Platform
from blindai.attestation.steps import StepName, Steps
from blindai.errors import EvidenceError, SignatureError
from blindai.platforms.tpm.keys import (
    SCHEMES,
    AttestationKey,
    Signature,
    check_attributes,
    check_strength,
    parse_key,
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
    from collections.abc import Sequence
    from datetime import datetime

    from blindai.attestation.trust import Anchor

_PART2: Final = "TPM 2.0 Library, Part 2"

STEPS: Final = (
    StepName("quote", "The body is a quote that a TPM made itself", f"{_PART2} §10.12.8"),
    StepName("signature-format", "The signature names its scheme and hash", f"{_PART2} §11.3.4"),
    StepName("key", "The attestation key is strong enough to be one", f"{_PART2} §12.2.4"),
    StepName(
        "key-attributes",
        "The attestation key signs only what its TPM says, and cannot leave it",
        f"{_PART2} §8.3.3",
    ),
    StepName(
        "key-scheme", "The signature is of the scheme the key is bound to", f"{_PART2} §12.2.3.5"
    ),
    StepName(
        "chain",
        "Certificates lead from the attestation key to a pinned root",
        "TCG EK Credential Profile §3; RFC 5280 §6",
    ),
    StepName("revocation", "No certificate of the chain is revoked", "RFC 5280 §6.3"),
    StepName(
        "signature", "The quote is signed by the attestation key", "TPM 2.0 Library, Part 3 §18.4"
    ),
    StepName("pcrs", "The PCR values are those the TPM signed", f"{_PART2} §10.12.1"),
    StepName("event-log", "The event log replays to the PCRs", "TCG PFP §10.2, TPM 2.0 Part 1 §17"),
)

_EK_CERTIFICATE: Final = x509.ObjectIdentifier("2.23.133.8.1")
_CRL_PEM: Final = re.compile(rb"-----BEGIN X509 CRL-----[^-]{1,2000000}-----END X509 CRL-----")
_MAX_CRLS: Final = 8
_MAX_CRL_BYTES: Final = 1 << 20


def verify(evidence: Evidence, *, anchors: Sequence[Anchor], now: datetime, steps: Steps) -> Claims:
    """Return the claims of a TPM quote; see `blindai.platforms.base.Verifier`."""
    attached = evidence.attachments
    with steps.take("quote") as step:
        quote = parse_quote(evidence.body)
        step.note(f"clock {quote.clock} ms, {quote.reset_count} resets")
    with steps.take("signature-format") as step:
        signature = parse_signature(_required(evidence, "signature"))
        step.note(f"{SCHEMES[signature.scheme]} with {signature.hash_name}")
    with steps.take("key"):
        key, certificates = _find_key(evidence)
    _check_key(key, signature, steps)
    lists = attached.get("crl", b"")
    not_after, weaknesses = _certify(certificates, lists, anchors, now, steps)
    with steps.take("signature"):
        verify_signature(key, signature, evidence.body)
    weaknesses |= {"memory-not-encrypted"}
    weaknesses |= {"sha1"} if signature.hash_name == "sha1" else set()
    with steps.take("pcrs") as step:
        values = parse_registers(attached["pcrs"]) if "pcrs" in attached else {}
        selected = verify_registers(quote, values, signature.hash_name, step)
    measurements, found = claim_registers(selected)
    weaknesses |= found
    if "event_log" in attached:
        with steps.take("event-log") as step:
            events, found = claim_events(selected, attached["event_log"], step)
            measurements |= events
            weaknesses |= found
    else:
        steps.skip("event-log", "there is no event log: no named events are claimed")
    return Claims(
        platform=Platform.TPM,
        measurements=measurements | {"ak": key.digest},
        versions={"firmware": quote.firmware_version},
        weaknesses=weaknesses,
        report_data=quote.extra_data,
        not_after=not_after,
    )


def parse_crls(data: bytes) -> list[x509.CertificateRevocationList]:
    """Read revocation lists: several in PEM, or one in DER.

    Raises:
        EvidenceError: If one is malformed, or they are too many or too large.
    """
    if not data:
        return []
    if len(data) > _MAX_CRL_BYTES:
        msg = f"revocation lists: {len(data)} bytes, at most {_MAX_CRL_BYTES} are accepted"
        raise EvidenceError(msg)
    blocks = _CRL_PEM.findall(data) or [data]
    if len(blocks) > _MAX_CRLS:
        msg = f"revocation lists: {len(blocks)}, at most {_MAX_CRLS} are accepted"
        raise EvidenceError(msg)
    return [certs.parse_crl(block) for block in blocks]


def _required(evidence: Evidence, name: str) -> bytes:
    if name not in evidence.attachments:
        msg = f"TPM quote: the attachment {name!r} is missing"
        raise EvidenceError(msg)
    return evidence.attachments[name]


def _find_key(evidence: Evidence) -> tuple[AttestationKey, list[x509.Certificate]]:
    """Return the AK and its certificates, its own first; none if it has none."""
    public = evidence.attachments.get("ak_public")
    bundle = evidence.attachments.get("ak_certificates")
    key = None if public is None else parse_key(public)
    if bundle is None:
        if key is None:
            msg = "TPM quote: neither ak_public nor ak_certificates is attached"
            raise EvidenceError(msg)
        return key, []
    leaf, *others = certs.parse_certificates(bundle, "ak_certificates")
    certified = AttestationKey(check_strength(leaf.public_key()))
    if key is not None and key.digest != certified.digest:
        msg = f"attestation key: ak_public is not the key of {certs.name_of(leaf)}"
        raise SignatureError(msg)
    return key or certified, [leaf, *others]


def _check_key(key: AttestationKey, signature: Signature, steps: Steps) -> None:
    if key.attributes is None:
        steps.skip("key-attributes", "no public area is attached, only the key")
    else:
        with steps.take("key-attributes"):
            check_attributes(key.attributes)
    if key.scheme is None:
        steps.skip("key-scheme", "no public area is attached, or it leaves the scheme open")
        return
    with steps.take("key-scheme") as step:
        expected, found = (
            f"{SCHEMES[scheme]} with {name}"
            for scheme, name in (key.scheme, (signature.scheme, signature.hash_name))
        )
        if not step.compare("scheme", expected=expected, found=found):
            msg = f"TPM quote: its key signs {expected} only, this signature is {found}"
            raise SignatureError(msg)


def _certify(
    certificates: Sequence[x509.Certificate],
    crls: bytes,
    anchors: Sequence[Anchor],
    now: datetime,
    steps: Steps,
) -> tuple[datetime | None, frozenset[str]]:
    if not certificates:
        reason = "there is no certificate: the key is known by its digest only"
        steps.skip("chain", reason)
        steps.skip("revocation", reason)
        return None, frozenset({"ak-not-certified"})
    leaf, *others = certificates
    with steps.take("chain") as step:
        path = certs.verify_chain(leaf, others, anchors=anchors, now=now)
        if len(path) == 1 or _is_endorsement(leaf):
            msg = f"{certs.name_of(leaf)}: not the certificate of an attestation key"
            raise SignatureError(msg)
        step.note(" ← ".join(certs.name_of(certificate) for certificate in path))
    with steps.take("revocation") as step:
        lists = parse_crls(crls)
        unspoken = certs.verify_revocation(path, lists, now=now)
        if unspoken:
            step.note(f"no list for {', '.join(certs.name_of(c) for c in unspoken)}")
    ends = [certificate.not_valid_after_utc for certificate in path]
    used = {certificate.issuer for certificate in path}
    ends += [crl.next_update_utc for crl in lists if crl.next_update_utc and crl.issuer in used]
    return min(ends), frozenset({"no-revocation-list"} if unspoken else ())


def _is_endorsement(certificate: x509.Certificate) -> bool:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return _EK_CERTIFICATE in usage
