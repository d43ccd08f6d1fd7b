"""Evidence from files as they lie on an auditor's disk, in any order and encoding.

What a file is follows from its content, never from its name. Choosing decides nothing about
trust: a file that should not have been taken makes `verify` refuse, never accept.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.serialization import Encoding

from blindai.attestation import certs
from blindai.attestation.model import Evidence, Platform
from blindai.errors import EvidenceError
from blindai.platforms.sev_snp import kds
from blindai.platforms.sev_snp.report import REPORT_SIZE, Report, parse_report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography import x509

MAX_FILE_BYTES: Final = 4 << 20
_HEX: Final = re.compile(rb"(0[xX])?[0-9a-fA-F\s]+")
_CERTIFICATE_MARK: Final = b"-----BEGIN CERTIFICATE-----"
_CRL_MARK: Final = b"-----BEGIN X509 CRL-----"
_CRL_END: Final = b"-----END X509 CRL-----"
_DER_MARK: Final = b"\x30\x82"


def assemble(body: bytes, extras: Sequence[bytes]) -> tuple[Evidence, list[int]]:
    """Build evidence from a report and the files beside it.

    Args:
        body: The report, raw or as hex text; an extended report has its certificate table
            right behind it.
        extras: Certificates (DER, PEM, hex text; several in one file), a certificate table,
            revocation lists, in any order.

    Returns:
        The evidence, and the indexes of those extras that are not needed for it.

    Raises:
        EvidenceError: If the report, or an extra that is of a kind named above, is malformed.
    """
    data = _decode(body, "report")
    report = parse_report(data[:REPORT_SIZE])
    attachments = {}
    if len(data) > REPORT_SIZE:
        kds.parse_certificate_table(data[REPORT_SIZE:])
        attachments["certificate_table"] = data[REPORT_SIZE:]
    certificates: list[tuple[int, x509.Certificate]] = []
    lists: list[tuple[int, x509.CertificateRevocationList]] = []
    used: set[int] = set()
    for index, extra in enumerate(extras):
        content = _decode(extra, f"file {index + 1}")
        if _is_table(content):
            if "certificate_table" not in attachments:
                attachments["certificate_table"] = content
                used.add(index)
            continue
        found, crls = _read(content, f"file {index + 1}")
        certificates += [(index, certificate) for certificate in found]
        lists += [(index, crl) for crl in crls]
    chosen = _choose(report, certificates)
    if chosen:
        attachments["certificates"] = b"".join(certs.der(c) for _, c in chosen)
        used |= {index for index, _ in chosen}
    subjects = {c.subject for _, c in chosen}
    if fitting := [(index, crl) for index, crl in lists if not subjects or crl.issuer in subjects]:
        index, newest = max(fitting, key=lambda pair: pair[1].last_update_utc)
        attachments["crl"] = newest.public_bytes(Encoding.DER)
        used.add(index)
    evidence = Evidence(Platform.SEV_SNP, data[:REPORT_SIZE], attachments)
    return evidence, [index for index in range(len(extras)) if index not in used]


def _decode(data: bytes, name: str) -> bytes:
    if len(data) > MAX_FILE_BYTES:
        msg = f"{name}: {len(data)} bytes, at most {MAX_FILE_BYTES} are accepted"
        raise EvidenceError(msg)
    if not _HEX.fullmatch(data.strip()):
        return data
    digits = b"".join(data.split())
    digits = digits[2:] if digits[:2] in {b"0x", b"0X"} else digits
    try:
        return bytes.fromhex(digits.decode("ascii"))
    except ValueError as error:
        msg = f"{name}: an odd number of hex digits"
        raise EvidenceError(msg) from error


def _is_table(data: bytes) -> bool:
    return data[:16] in kds.GUIDS


def _read(
    data: bytes, name: str
) -> tuple[list[x509.Certificate], list[x509.CertificateRevocationList]]:
    """Return the certificates and revocation lists of a file; none if it is something else."""
    found = certs.parse_certificates(data, name) if _CERTIFICATE_MARK in data else []
    pieces = data.split(_CRL_MARK)[1 : certs.MAX_CHAIN + 1]
    crls = [kds.parse_crl(_CRL_MARK + p.split(_CRL_END)[0] + _CRL_END + b"\n") for p in pieces]
    if not found and not crls and data.startswith(_DER_MARK):
        try:
            found = kds.parse_certificates(data, name)
        except EvidenceError:
            crls = [kds.parse_crl(data)]
    return found, crls


def _choose(
    report: Report, certificates: Sequence[tuple[int, x509.Certificate]]
) -> list[tuple[int, x509.Certificate]]:
    """Return the leaf that the report names, if there is one, and everything above it."""
    leaves = [pair for pair in certificates if kds.leaf_kind(pair[1]) == report.signing_key]
    if not leaves:
        # They may be for the leaf of the table.
        return [pair for pair in certificates if kds.leaf_kind(pair[1]) is None][: certs.MAX_CHAIN]
    fitting = (pair for pair in leaves if kds.parse_leaf(pair[1]).fits(report))
    chosen = [next(fitting, leaves[0])]
    for pair in chosen:  # grows on the way up; AMD has issued several ASKs of one name
        taken = [certificate for _, certificate in chosen]
        for candidate in certificates:
            above = candidate[1].subject == pair[1].issuer and candidate[1] not in taken
            if above and len(chosen) < certs.MAX_CHAIN:
                chosen.append(candidate)
                taken.append(candidate[1])
    return chosen
