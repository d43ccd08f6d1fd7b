"""Certificates and revocation lists for tests, good ones and bad ones."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from blindai.attestation.certs import fingerprint
from blindai.attestation.trust import Anchor

NOW = datetime(2026, 6, 1, tzinfo=UTC)
YEAR = timedelta(days=365)


@functools.cache
def p256(index=0):
    """Return the same P-256 key for the same index: making keys takes time."""
    return ec.generate_private_key(ec.SECP256R1())


@functools.cache
def rsa_key(bits):
    """Return one RSA key of a size."""
    return rsa.generate_private_key(65537, bits)


@dataclass(frozen=True)
class Authority:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: object

    @property
    def anchor(self):
        """The certificate as a pinned root."""
        return Anchor("test root", fingerprint(self.certificate), "tests")


def name(text):
    """Return a distinguished name of one common name, or of several where one is too long."""
    parts = [text[start : start + 64] for start in range(0, len(text), 64)]
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, part) for part in parts])


def usage(*, sign=False, certs=False, crls=False):
    """Return a key usage extension."""
    return x509.KeyUsage(sign, False, False, False, False, certs, crls, False, False)  # noqa: FBT003


def issue(
    subject,
    issuer=None,
    *,
    key=None,
    ca=True,
    path_length=None,
    key_usage="default",
    not_before=NOW - YEAR,
    not_after=NOW + YEAR,
    algorithm=None,
    extensions=(),
    serial=None,
    issuer_name=None,
    rsa_padding=None,
    constraints=True,
):
    """Return a certificate of `subject`, signed by `issuer` or by itself."""
    key = key or p256(subject)
    signer = issuer.key if issuer else key
    if issuer_name is None:
        issuer_name = issuer.certificate.subject if issuer else name(subject)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )
    if constraints:
        builder = builder.add_extension(x509.BasicConstraints(ca, path_length), critical=True)
    if key_usage == "default":
        key_usage = usage(certs=True, crls=True) if ca else usage(sign=True)
    if key_usage is not None:
        builder = builder.add_extension(key_usage, critical=True)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    if isinstance(signer, ed25519.Ed25519PrivateKey):
        return Authority(builder.sign(signer, None), key)
    certificate = builder.sign(signer, algorithm or hashes.SHA256(), rsa_padding=rsa_padding)
    return Authority(certificate, key)


def revocation_list(
    issuer,
    revoked=(),
    *,
    key=None,
    issuer_name=None,
    last_update=NOW - timedelta(days=1),
    next_update=NOW + timedelta(days=30),
    extensions=(),
    algorithm=None,
):
    """Return a revocation list of `issuer` with `revoked` certificates on it."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer_name or issuer.certificate.subject)
        .last_update(last_update)
        .next_update(next_update)
    )
    for each in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(each.certificate.serial_number)
            .revocation_date(last_update)
            .build()
        )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key or issuer.key, algorithm or hashes.SHA256())


def pss():
    """Return the padding that AMD signs with."""
    return padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)


def pem(*authorities):
    """Return certificates as one PEM bundle."""
    return b"".join(a.certificate.public_bytes(Encoding.PEM) for a in authorities)


def der(authority):
    """Return one certificate as DER."""
    return authority.certificate.public_bytes(Encoding.DER)
