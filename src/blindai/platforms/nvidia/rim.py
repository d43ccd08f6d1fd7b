"""NVIDIA's reference measurements: a signed SWID tag per driver and per VBIOS version.

The tag follows ISO/IEC 19770-2 and the TCG Reference Integrity Manifest information model;
its signature is of the form in `xmldsig`, by a chain of its own that ends at NVIDIA's CoRIM
signing root. Nothing is read from a tag whose signature was not verified, save its version,
by which the command line tells tags apart.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from blindai.attestation import certs
from blindai.errors import EvidenceError, SignatureError
from blindai.platforms.nvidia.xmldsig import Element, parse_signature, parse_xml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from cryptography import x509

    from blindai.attestation.trust import Anchor

SWID: Final = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
SHA384_HASHES: Final = "http://www.w3.org/2001/04/xmlenc#sha384"
_SMALL_NUMBER: Final = re.compile(r"[0-9]{1,3}")
_HEX: Final = re.compile(r"([0-9a-fA-F]{2})+")
_FIELD_SIZE: Final = 48


@dataclass(frozen=True, slots=True)
class ReferenceMeasurements:
    """What NVIDIA says a version of driver or VBIOS measures as.

    Attributes:
        version: Of the driver or VBIOS, as the tag writes it.
        values: Index (from 0) → the values that are right, for measurements that count.
    """

    version: str
    values: Mapping[int, frozenset[bytes]]


def verify_rim(
    data: bytes, *, anchors: Sequence[Anchor], now: datetime
) -> tuple[ReferenceMeasurements, list[x509.Certificate]]:
    """Return the reference measurements of a tag, and the path of its signer.

    Args:
        data: The tag, from an untrusted source.
        anchors: The roots that count for reference measurements.
        now: The moment at which the signer's certificates have to be valid.

    Raises:
        EvidenceError: If it is malformed.
        SignatureError: If NVIDIA did not sign it.
        EndorsementError: If a certificate of the signer is not valid at `now`.
    """
    reference, chain = _open_tag(data)
    return reference, certs.verify_chain(chain[0], chain[1:], anchors=anchors, now=now)


@lru_cache(maxsize=8)
def _open_tag(data: bytes) -> tuple[ReferenceMeasurements, tuple[x509.Certificate, ...]]:
    """Return what a tag says and who says so; whether that is NVIDIA is not decided here.

    That its first certificate's key signed it is a fact about bytes, so it may be kept: a tag
    takes some milliseconds, and is the same each time.
    """
    root = parse_xml(data)
    signature = parse_signature(root)
    chain = tuple(certs.parse_certificate(der, "RIM certificate") for der in signature.certificates)
    if hashlib.sha384(signature.content).digest() != signature.digest:
        msg = "RIM: the document is not what its signature covers"
        raise SignatureError(msg)
    verify_ecdsa_p384(chain[0], signature.value, signature.signed_info, "RIM")
    return _parse_tag(root), chain


def verify_ecdsa_p384(
    certificate: x509.Certificate, signature: bytes, signed: bytes, name: str
) -> None:
    """Refuse a signature (r and s, 48 bytes each) that the certificate's key did not make.

    Raises:
        SignatureError: If the key is not on P-384, or the signature is wrong.
    """
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        msg = f"{name}: the key of {certs.name_of(certificate)} is not on P-384"
        raise SignatureError(msg)
    if len(signature) != 2 * _FIELD_SIZE:
        msg = f"{name}: signature of {len(signature)} bytes, expected {2 * _FIELD_SIZE}"
        raise SignatureError(msg)
    r, s = (int.from_bytes(half, "big") for half in (signature[:48], signature[48:]))
    try:
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        msg = f"{name}: not signed by {certs.name_of(certificate)}"
        raise SignatureError(msg) from error


def parse_version(data: bytes) -> str:
    """Return which version a tag says it is for, whoever wrote it.

    Raises:
        EvidenceError: If it is malformed.
    """
    return _version(parse_xml(data))


def _parse_tag(root: Element) -> ReferenceMeasurements:
    values: dict[int, frozenset[bytes]] = {}
    seen: set[int] = set()
    for resource in _child(root, "Payload").elements:
        index = _number(resource, "index")
        if index in seen:
            msg = f"RIM: measurement {index} appears twice"
            raise EvidenceError(msg)
        seen.add(index)
        if _is_active(resource):
            values[index] = _alternatives(resource)
    if not values:
        msg = "RIM: no active measurement"
        raise EvidenceError(msg)
    return ReferenceMeasurements(version=_version(root), values=values)


def _version(root: Element) -> str:
    if root.namespace != SWID or root.local_name != "SoftwareIdentity":
        msg = f"RIM: expected a SWID SoftwareIdentity, found {root.local_name[:64]}"
        raise EvidenceError(msg)
    version = _child(root, "Meta").attribute("colloquialVersion")
    if not version:
        msg = "RIM: no colloquialVersion"
        raise EvidenceError(msg)
    return version


def _alternatives(resource: Element) -> frozenset[bytes]:
    size = _number(resource, "size")
    values = []
    for number in range(_number(resource, "alternatives")):
        text = resource.attribute(f"Hash{number}", SHA384_HASHES) or ""
        if len(text) != 2 * size or not _HEX.fullmatch(text):
            msg = f"RIM: Hash{number} of measurement is not {size} bytes in hexadecimal"
            raise EvidenceError(msg)
        values.append(bytes.fromhex(text))
    if not values:
        msg = "RIM: a measurement without values"
        raise EvidenceError(msg)
    return frozenset(values)


def _is_active(resource: Element) -> bool:
    active = resource.attribute("active")
    if active not in {"True", "False"}:
        msg = "RIM: active has to be True or False"
        raise EvidenceError(msg)
    return active == "True"


def _number(resource: Element, name: str) -> int:
    text = resource.attribute(name) or ""
    if not _SMALL_NUMBER.fullmatch(text):
        msg = f"RIM: {name} of a measurement is no number below 1000"
        raise EvidenceError(msg)
    return int(text)


def _child(root: Element, local_name: str) -> Element:
    found = [e for e in root.elements if e.namespace == SWID and e.local_name == local_name]
    if len(found) != 1:
        msg = f"RIM: expected one {local_name}, found {len(found)}"
        raise EvidenceError(msg)
    return found[0]
