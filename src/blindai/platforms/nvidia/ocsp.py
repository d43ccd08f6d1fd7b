"""Revocation of device and signer certificates by OCSP (RFC 6960).

A response counts for a certificate only if its issuer, or a responder that the issuer or a CA
above it delegated (RFC 6960 §4.2.2.2), signed it, and only between thisUpdate and nextUpdate.
"Revoked" includes "on hold". That a certificate is not spoken about is returned, not hidden.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from blindai.attestation import certs
from blindai.attestation.reader import Reader
from blindai.errors import EndorsementError, EvidenceError, SignatureError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

MAX_OCSP_BYTES: Final = 64 << 10
MAX_RESPONSES: Final = 16
_MAX_RESPONDERS: Final = 4
_SEQUENCE: Final = 0x30
_LONG_LENGTHS: Final = {0x81: 1, 0x82: 2}
_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_MALFORMED: Final = (ValueError, TypeError, x509.DuplicateExtension, UnsupportedAlgorithm)


@dataclass(frozen=True, slots=True)
class Revocation:
    """What the responses say of a path, none of which is revoked.

    Attributes:
        unspoken: Certificates that no response speaks about.
        not_after: The earliest nextUpdate of the responses that counted.
    """

    unspoken: tuple[x509.Certificate, ...]
    not_after: datetime | None


def parse_responses(data: bytes) -> list[ocsp.OCSPResponse]:
    """Read DER OCSP responses, one after another.

    Raises:
        EvidenceError: If they are too large, too many, malformed or not successful.
    """
    if len(data) > MAX_OCSP_BYTES:
        msg = f"OCSP: {len(data)} bytes, at most {MAX_OCSP_BYTES} are accepted"
        raise EvidenceError(msg)
    reader = Reader(data, "OCSP responses", byteorder="big")
    responses: list[ocsp.OCSPResponse] = []
    while reader.remaining:
        if len(responses) == MAX_RESPONSES:
            msg = f"OCSP: more than {MAX_RESPONSES} responses"
            raise EvidenceError(msg)
        responses.append(_parse_response(_next_element(reader, data)))
    return responses


def check_revocation(
    path: Sequence[x509.Certificate], responses: Sequence[ocsp.OCSPResponse], *, now: datetime
) -> Revocation:
    """Refuse a path with a revoked certificate; return what no response speaks about.

    Args:
        path: As returned by `certs.verify_chain`, leaf first.
        responses: Those about other certificates are ignored; of several about one
            certificate the first counts.
        now: The moment at which responses have to be current.

    Raises:
        EndorsementError: If a certificate is revoked, on hold or unknown to its issuer, or a
            response about it is out of date.
        SignatureError: If a response about it is not signed by its issuer.
    """
    unspoken: list[x509.Certificate] = []
    ends: list[datetime] = []
    for depth, certificate in enumerate(path[:-1]):
        found = _find(responses, certificate, path[depth + 1])
        if found is None:
            unspoken.append(certificate)
            continue
        response, single = found
        _check_signature(response, path[depth + 1 :], now)
        ends.append(_check_single(single, certificate, now))
    return Revocation(tuple(unspoken), min(ends, default=None))


def _find(
    responses: Sequence[ocsp.OCSPResponse], certificate: x509.Certificate, issuer: x509.Certificate
) -> tuple[ocsp.OCSPResponse, ocsp.OCSPSingleResponse] | None:
    """Return the first that speaks of a certificate: who sends two could leave one out."""
    for response in responses:
        for single in response.responses:
            if _speaks_of(single, certificate, issuer):
                return response, single
    return None


def _next_element(reader: Reader, data: bytes) -> bytes:
    start = reader.position
    tag, size = reader.u8("tag"), reader.u8("length")
    if size in _LONG_LENGTHS:
        size = int.from_bytes(reader.take(_LONG_LENGTHS[size], "length"), "big")
    elif size & 0x80:
        size = MAX_OCSP_BYTES
    reader.skip(size, "OCSP response")
    if tag != _SEQUENCE:
        msg = "OCSP: expected DER responses, one after another"
        raise EvidenceError(msg)
    return data[start : reader.position]


def _parse_response(data: bytes) -> ocsp.OCSPResponse:
    try:
        response = ocsp.load_der_ocsp_response(data)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            msg = f"OCSP: the responder answered {response.response_status.name}"
            raise EvidenceError(msg)
        # Parsed lazily: make sure that later reads cannot raise anything else.
        _ = response.signature_hash_algorithm, response.tbs_response_bytes, response.signature
        if len(response.certificates) > _MAX_RESPONDERS:
            msg = f"OCSP: more than {_MAX_RESPONDERS} certificates in a response"
            raise EvidenceError(msg)
        for certificate in response.certificates:
            _ = certificate.extensions, certificate.public_key()
        for single in response.responses:
            _ = single.hash_algorithm, single.certificate_status, single.serial_number
            _ = single.this_update_utc, single.next_update_utc
            _ = single.issuer_name_hash, single.issuer_key_hash
    except _MALFORMED as error:
        msg = f"OCSP: malformed response ({type(error).__name__})"
        raise EvidenceError(msg) from error
    return response


def _speaks_of(
    single: ocsp.OCSPSingleResponse, certificate: x509.Certificate, issuer: x509.Certificate
) -> bool:
    if single.serial_number != certificate.serial_number:
        return False
    key = issuer.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    # The hash only names the issuer (RFC 6960 §4.1.1); SHA-1 is usual and harmless here.
    name = hashlib.new(single.hash_algorithm.name, issuer.subject.public_bytes())
    return (
        single.issuer_name_hash == name.digest()
        and single.issuer_key_hash == hashlib.new(single.hash_algorithm.name, point).digest()
    )


def _check_single(
    single: ocsp.OCSPSingleResponse, certificate: x509.Certificate, now: datetime
) -> datetime:
    name = certs.name_of(certificate)
    start, end = single.this_update_utc, single.next_update_utc
    if end is None:
        msg = f"OCSP: the response about {name} does not say until when it holds"
        raise EndorsementError(msg)
    if not start <= now <= end:
        msg = f"OCSP: the response about {name} holds from {start} to {end}, not at {now}"
        raise EndorsementError(msg)
    status = single.certificate_status
    if status is ocsp.OCSPCertStatus.REVOKED:
        reason = single.revocation_reason
        msg = f"revoked by its issuer: {name} ({reason.value if reason else 'no reason given'})"
        raise EndorsementError(msg)
    if status is not ocsp.OCSPCertStatus.GOOD:
        msg = f"unknown to its issuer: {name}"
        raise EndorsementError(msg)
    return end


def _check_signature(
    response: ocsp.OCSPResponse, authorities: Sequence[x509.Certificate], now: datetime
) -> None:
    """Refuse a response that no authority signed, itself or by a responder of its own."""
    responders = [c for c in response.certificates if _is_delegated(c, authorities, now)]
    signed = response.signature, response.tbs_response_bytes
    algorithm = response.signature_hash_algorithm
    name = algorithm.name if algorithm else ""
    if any(_is_signed(signer, *signed, name) for signer in (authorities[0], *responders)):
        return
    msg = f"OCSP: not signed by {certs.name_of(authorities[0])} or a responder of it"
    raise SignatureError(msg)


@lru_cache(maxsize=64)
def _is_signed(signer: x509.Certificate, signature: bytes, content: bytes, algorithm: str) -> bool:
    """Return whether `signer` signed it: a fact about bytes, so it may be kept."""
    key = signer.public_key()
    known = next((each for each in _HASHES if each.name == algorithm), None)
    if known is None or not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    try:
        key.verify(signature, content, ec.ECDSA(known()))
    except InvalidSignature:
        return False
    return True


def _is_delegated(
    responder: x509.Certificate, authorities: Sequence[x509.Certificate], now: datetime
) -> bool:
    try:
        usage = responder.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    if ExtendedKeyUsageOID.OCSP_SIGNING not in usage:
        return False
    if not responder.not_valid_before_utc <= now <= responder.not_valid_after_utc:
        return False
    for authority in authorities:
        try:
            responder.verify_directly_issued_by(authority)
        except (InvalidSignature, *_MALFORMED):
            continue
        return True
    return False
