"""Certificates and revocation lists for fake vendors: the parts of X.509 that verifiers look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class FakeCA:
    """A certificate that issues others, with its key.

    Attributes:
        certificate: The CA's own.
        key: Its private key.
    """

    certificate: x509.Certificate
    key: PrivateKey

    @classmethod
    def root(cls, name: str, key: PrivateKey, begin: datetime, end: datetime) -> FakeCA:
        """Return a self-signed CA."""
        return cls(_build(name, key.public_key(), (begin, end), None, key, ca=True), key)

    def issue_ca(self, name: str, key: PrivateKey, begin: datetime, end: datetime) -> FakeCA:
        """Return a CA below this one."""
        return FakeCA(_build(name, key.public_key(), (begin, end), self, self.key, ca=True), key)

    def issue(
        self, name: str, public: PublicKey, begin: datetime, end: datetime
    ) -> x509.Certificate:
        """Return a certificate of a key that signs messages, no certificates."""
        return _build(name, public, (begin, end), self, self.key, ca=False)

    def revocation_list(
        self, revoked: Sequence[x509.Certificate], begin: datetime, end: datetime
    ) -> x509.CertificateRevocationList:
        """Return this CA's list, with the serial numbers of `revoked`."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(begin)
            .next_update(end)
            .add_extension(x509.CRLNumber(1), critical=False)
        )
        for certificate in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
            builder = builder.add_revoked_certificate(entry.revocation_date(begin).build())
        return builder.sign(self.key, hashes.SHA384())


def _build(
    name: str,
    public: PublicKey,
    validity: tuple[datetime, datetime],
    issuer: FakeCA | None,
    key: PrivateKey,
    *,
    ca: bool,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity[0].replace(microsecond=0))
        .not_valid_after(validity[1].replace(microsecond=0))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
    )
    return builder.sign(key, hashes.SHA384())
