"""From when until when an endorsement holds, as it says itself.

Read, not verified: a lifetime decides only what is fetched and kept. Whether a signature or
a chain is genuine, and current, is judged again and alone by the platform's verifier.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from blindai.attestation import certs
from blindai.endorsements.request import Answer, Kind
from blindai.errors import EndorsementError, EvidenceError
from blindai.platforms.dcap.collateral import parse_json, parse_signed_json
from blindai.platforms.nvidia.ocsp import parse_responses
from blindai.platforms.nvidia.xmldsig import MAX_XML_BYTES, parse_signature, parse_xml
from blindai.platforms.sev_snp import kds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography import x509
    from cryptography.x509 import ocsp

_CHAIN_HEADER = "issuer-chain"
_MAX_HEADER = 32 << 10


@dataclass(frozen=True, slots=True)
class Lifetime:
    """From when until when something holds, both included.

    Attributes:
        begin: With a time zone.
        end: With a time zone. Before `begin` where the parts never hold together.
    """

    begin: datetime
    end: datetime

    def holds_at(self, now: datetime) -> bool:
        """Return whether it holds at `now`."""
        return self.begin <= now <= self.end


def overlap(lifetimes: Iterable[Lifetime]) -> Lifetime:
    """Return when all of one or more lifetimes hold.

    Raises:
        EvidenceError: If there is none.
    """
    found = list(lifetimes)
    if not found:
        msg = "expected something with a lifetime, found nothing"
        raise EvidenceError(msg)
    return Lifetime(max(one.begin for one in found), min(one.end for one in found))


def of_certificates(certificates: Iterable[x509.Certificate]) -> Lifetime:
    """Return when all of some certificates are valid."""
    return overlap(
        Lifetime(one.not_valid_before_utc, one.not_valid_after_utc) for one in certificates
    )


def of_crl(crl: x509.CertificateRevocationList) -> Lifetime:
    """Return when a revocation list is current.

    Raises:
        EndorsementError: If it does not say until when.
    """
    if crl.next_update_utc is None:
        msg = "revocation list: it does not say when the next one comes"
        raise EndorsementError(msg)
    return Lifetime(crl.last_update_utc, crl.next_update_utc)


def of_statement(text: str, name: str) -> Lifetime:
    """Return when Intel's TCB information or QE identity is current.

    Raises:
        EvidenceError: If it is malformed.
    """
    statement = parse_json(text, name)
    return Lifetime(
        *(_parse_time(statement.get(key), f"{name}: {key}") for key in ("issueDate", "nextUpdate"))
    )


def of_responses(responses: Iterable[ocsp.OCSPSingleResponse]) -> Lifetime:
    """Return when all of some OCSP responses are current.

    Raises:
        EndorsementError: If one does not say until when.
    """
    found = []
    for single in responses:
        if single.next_update_utc is None:
            msg = "OCSP: a response does not say until when it holds"
            raise EndorsementError(msg)
        found.append(Lifetime(single.this_update_utc, single.next_update_utc))
    return overlap(found)


def of_rim(tag: bytes) -> Lifetime:
    """Return when the signers of NVIDIA's reference measurements are valid."""
    return of_certificates(rim_signers(tag))


def rim_signers(tag: bytes) -> list[x509.Certificate]:
    """Return the certificates in a tag of reference measurements, as it orders them.

    Raises:
        EvidenceError: If it is malformed.
    """
    signature = parse_signature(parse_xml(tag))
    return [certs.parse_certificate(one, "RIM certificate") for one in signature.certificates]


def parse_rim_answer(body: bytes) -> bytes:
    """Read the tag in an answer of NVIDIA's service: JSON with the tag in base64.

    Raises:
        EvidenceError: If it is anything else.
    """
    encoded = parse_json(body, "reference measurements").get("rim")
    if not isinstance(encoded, str) or len(encoded) > 2 * MAX_XML_BYTES:
        msg = 'reference measurements: expected text in "rim", found something else'
        raise EvidenceError(msg)
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        msg = 'reference measurements: expected base64 in "rim"'
        raise EvidenceError(msg) from error


def read_lifetime(kind: Kind, answer: Answer) -> Lifetime:
    """Return the lifetime of an answer, if it is of its kind.

    Args:
        kind: What it has to be.
        answer: Untrusted.

    Raises:
        EvidenceError: If it is malformed.
        EndorsementError: If it does not say how long it holds.
    """
    body = answer.body
    match kind:
        case Kind.CERTIFICATES:
            return of_certificates(kds.parse_certificates(body, "certificates"))
        case Kind.CRL:
            found = of_crl(certs.parse_crl(_from_hex(body)))
        case Kind.TCB_INFO:
            found = of_statement(parse_signed_json(body, "tcbInfo")[0], "TCB info")
        case Kind.QE_IDENTITY:
            found = of_statement(parse_signed_json(body, "enclaveIdentity")[0], "QE identity")
        case Kind.OCSP:
            singles = [one for response in parse_responses(body) for one in response.responses]
            found = of_responses(singles)
        case Kind.RIM:
            return of_rim(parse_rim_answer(body))
    return overlap([found, *_issuer_chains(answer)])


def _issuer_chains(answer: Answer) -> list[Lifetime]:
    """Return the lifetimes of the chains that Intel's services put into headers."""
    return [
        of_certificates(
            certs.parse_certificates(unquote_to_bytes(value[:_MAX_HEADER]), "issuer chain")
        )
        for name, value in answer.headers.items()
        if name.lower().endswith(_CHAIN_HEADER)
    ]


def _from_hex(body: bytes) -> bytes:
    # Caching services of Intel's kind answer in hex.
    text = body.strip()
    try:
        return bytes.fromhex(text.decode("ascii"))
    except ValueError:
        return body


def _parse_time(value: object, name: str) -> datetime:
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError as error:
        msg = f"{name} is no time"
        raise EvidenceError(msg) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
