"""Certificates, revocation lists and SGX extensions in Intel's form, of a fake Intel.

The part of `blindai.testing.fake_dcap` that knows X.509 and DER.

Reference: Intel SGX PCK Certificate and CRL Profile Specification.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

SGX_EXTENSIONS: Final = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
SVNS: Final = bytes([3, 3, 2, 2, 4, 1, 0, 5, *bytes(8)])
PCESVN: Final = 13
FMSPC: Final = bytes.fromhex("00906ed50000")
_OID: Final = bytes.fromhex("2a864886f84d010d01")  # SGX_EXTENSIONS in DER
_FLAGS: Final = ("dynamic-platform", "cached-keys", "smt")
_BORN: Final = datetime(2025, 1, 1, tzinfo=UTC)
_DIES: Final = datetime(2035, 1, 1, tzinfo=UTC)


def certify(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
    *,
    ca: int | None = None,
    extension: x509.UnrecognizedExtension | None = None,
) -> x509.Certificate:
    """Return a certificate of `key`.

    Args:
        name: Common name of its subject.
        key: Certified; signs the certificate itself where there is no issuer.
        issuer: Certificate and key of the issuer; `None` makes a root.
        ca: Path length of a CA; `None`: it is none.
        extension: One more extension.
    """
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "BlindAI fake Intel"),
        ]
    )
    signing_key = key if issuer is None else issuer[1]
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key())
    is_ca = ca is not None
    usage = x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=not is_ca,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BORN)
        .not_valid_after(_DIES)
        .add_extension(authority, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(usage, critical=True)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=ca), critical=True)
    )
    if extension is not None:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(signing_key, hashes.SHA256())


def revoke(
    issuer: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    issued: datetime,
    serials: list[int],
) -> bytes:
    """Return a revocation list in DER, current for 30 days from `issued`."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(issued)
        .next_update(issued + timedelta(days=30))
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
    )
    for serial in serials:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(issued).build()
        )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:  # noqa: PLR2004 - DER's short form
        return bytes([tag, size]) + content
    return bytes([tag, 0x82]) + size.to_bytes(2) + content


def _member(path: tuple[int, ...], value: bytes) -> bytes:
    return _tlv(0x30, _tlv(0x06, _OID + bytes(path)) + value)


def sgx_extensions(ppid: bytes, piid: bytes, flags: frozenset[str]) -> x509.UnrecognizedExtension:
    """Return the SGX extensions of a PCK certificate; `flags` are those that hold."""
    svns = [_member((2, n + 1), _tlv(0x02, bytes([svn]))) for n, svn in enumerate(SVNS)]
    svns.append(_member((2, 17), _tlv(0x02, bytes([PCESVN]))))
    svns.append(_member((2, 18), _tlv(0x04, SVNS)))
    configuration = [
        _member((7, n + 1), _tlv(0x01, b"\xff" if flag in flags else b"\0"))
        for n, flag in enumerate(_FLAGS)
    ]
    members = [
        _member((1,), _tlv(0x04, ppid)),
        _member((2,), _tlv(0x30, b"".join(svns))),
        _member((3,), _tlv(0x04, bytes(2))),
        _member((4,), _tlv(0x04, FMSPC)),
        _member((5,), _tlv(0x0A, b"\1")),
        _member((6,), _tlv(0x04, piid)),
        _member((7,), _tlv(0x30, b"".join(configuration))),
    ]
    return x509.UnrecognizedExtension(SGX_EXTENSIONS, _tlv(0x30, b"".join(members)))
