"""Make evidence of an NVIDIA device from files as they lie on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from blindai.attestation import certs
from blindai.attestation.model import Evidence, Platform
from blindai.errors import AttestationError, EvidenceError, SignatureError
from blindai.platforms.nvidia.ocsp import parse_responses
from blindai.platforms.nvidia.report import Report, parse_report
from blindai.platforms.nvidia.rim import parse_version, verify_ecdsa_p384

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography import x509

_PEM_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"
_DER_SEQUENCE: Final = 0x30
_BOM: Final = b"\xef\xbb\xbf"
_NOT_A_DIGIT: Final = frozenset(range(256)) - frozenset(b"0123456789abcdefABCDEF")


def assemble(body: bytes, extras: Sequence[bytes]) -> tuple[Evidence, list[int]]:
    """Make evidence from a report and the files beside it.

    Args:
        body: The report, as bytes or as hexadecimal text.
        extras: Certificates (PEM or DER), OCSP responses (DER) and reference measurements
            (SWID tags), in any order.

    Returns:
        The evidence, and the indexes of the extras that it does not need.

    Raises:
        EvidenceError: If the report or an extra is malformed.
    """
    report_bytes = _decode(body)
    report = parse_report(report_bytes)
    certificates: list[tuple[int, x509.Certificate]] = []
    attachments: dict[str, bytes] = {}
    ignored: list[int] = []
    for index, extra in enumerate(extras):
        data = _decode(extra)
        if _PEM_CERTIFICATE in data:
            found = certs.parse_certificates(data)
            certificates += [(index, certificate) for certificate in found]
        elif data[:1] == bytes([_DER_SEQUENCE]):
            if (certificate := _parse_der(data)) is not None:
                certificates.append((index, certificate))
            elif _is_ocsp(data):
                attachments["ocsp"] = attachments.get("ocsp", b"") + data
            else:
                ignored.append(index)
        elif (name := _rim_name(data, report)) is not None and name not in attachments:
            attachments[name] = data
        else:
            ignored.append(index)
    if certificates:
        attachments["chain"], used = _order_chain(report, certificates)
        ignored += sorted({index for index, _ in certificates} - used)
    return Evidence(Platform.NVIDIA_GPU, report_bytes, attachments), sorted(ignored)


def _decode(data: bytes) -> bytes:
    """Return the bytes that hexadecimal text stands for, or `data` if it is no such text."""
    text = b"".join(data.split())
    if text[:2] in {b"0x", b"0X"}:
        text = text[2:]
    if not text or len(text) % 2 or _NOT_A_DIGIT.intersection(text):
        return data
    return bytes.fromhex(text.decode("ascii"))


def _order_chain(
    report: Report, certificates: Sequence[tuple[int, x509.Certificate]]
) -> tuple[bytes, set[int]]:
    """Return the device's certificate and what leads from it upwards, as PEM; leaf first."""
    remaining = list(certificates)
    index, leaf = next(
        (pair for pair in remaining if _signed(pair[1], report)),
        # Not signed by any: let the verifier say so of one that issued no other.
        next((pair for pair in remaining if _issues_none(pair[1], remaining)), remaining[0]),
    )
    chain, used = [leaf], {index}
    while len(chain) < certs.MAX_CHAIN:
        above = [
            pair
            for pair in remaining
            if pair[1].subject == chain[-1].issuer and pair[1] not in chain
        ]
        if not above:
            break
        # Two CAs of one name: the one that issued, if it is there.
        index, issuer = next((p for p in above if _issued(p[1], chain[-1])), above[0])
        chain.append(issuer)
        used.add(index)
    return b"".join(c.public_bytes(Encoding.PEM) for c in chain), used


def _issues_none(
    certificate: x509.Certificate, others: Sequence[tuple[int, x509.Certificate]]
) -> bool:
    return all(o.issuer != certificate.subject for _, o in others if o != certificate)


def _signed(certificate: x509.Certificate, report: Report) -> bool:
    try:
        verify_ecdsa_p384(certificate, report.signature, report.signed, "NVIDIA report")
    except SignatureError:
        return False
    return True


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


def _parse_der(data: bytes) -> x509.Certificate | None:
    try:
        return certs.parse_certificate(data)
    except EvidenceError:
        return None


def _is_ocsp(data: bytes) -> bool:
    try:
        return bool(parse_responses(data))
    except AttestationError:
        return False


def _rim_name(data: bytes, report: Report) -> str | None:
    text = data.removeprefix(_BOM).lstrip()
    if not text.startswith(b"<"):
        return None
    version = parse_version(data).lower()
    for name, stated in (
        ("rim_driver", report.driver_version),
        ("rim_vbios", report.vbios_version),
    ):
        if stated is not None and stated.lower() == version:
            return name
    return None
