"""TLS that ends at an attested key, on both sides. TLS 1.3 only (RFC 8446).

A private key reaches OpenSSL through a memory file that no path leads to and that is emptied
at once: Python's `ssl` takes keys from files only, and none may touch a disk. A client
trusts exactly one certificate, the one whose key was attested; names and public authorities
play no part.
"""

from __future__ import annotations

import ipaddress
import mmap
import os
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from blindai.attestation.certs import parse_certificate
from blindai.errors import BindingError, ConfigurationError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

# The original's name: what its clients expected of every server.
SERVER_NAME: Final = "blindai-srv"
_F_SEAL_FUTURE_WRITE: Final = 0x0010
ALPN_PROTOCOLS: Final = ("http/1.1",)


def create_certificate(
    key: EllipticCurvePrivateKey,
    *,
    names: Sequence[str],
    not_before: datetime,
    not_after: datetime,
) -> bytes:
    """Return a self-signed certificate as DER.

    Args:
        key: The attested TLS key.
        names: Host names and IP addresses for the subjectAltName, beside `SERVER_NAME`:
            clients pin the key and need none, but libraries that insist on a name find one.
        not_before: Start of validity.
        not_after: End of validity, that of the keyset.

    Raises:
        ConfigurationError: If a name can stand in no certificate.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(
            x509.SubjectAlternativeName(
                [_general_name(name) for name in dict.fromkeys([SERVER_NAME, *names])]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def server_context(
    key: EllipticCurvePrivateKey,
    certificate: bytes,
    *,
    protocols: Sequence[str] = ALPN_PROTOCOLS,
    client_ca: bytes | None = None,
    client_crl: bytes | None = None,
) -> ssl.SSLContext:
    """Return a context that serves TLS 1.3 with the attested key.

    Args:
        key: Never written to a disk.
        certificate: DER.
        protocols: That are spoken inside, by their names in ALPN (RFC 7301).
        client_ca: Clients are asked for a certificate; one that is shown has to lead to these,
            as PEM, and be for client authentication. `None`: nobody is asked.
        client_crl: Revocation lists of those authorities, as PEM; then there has to be a valid
            one for each client certificate.

    Raises:
        ConfigurationError: `client_ca` or `client_crl` is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(list(protocols))
    # A resumed session skips the certificate: a client could no longer see which key it has.
    context.num_tickets = 0
    pem = ssl.DER_cert_to_PEM_cert(certificate).encode()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with _memory_file(private + pem) as path:
        context.load_cert_chain(path)
    if client_ca is not None:
        _ask_for_certificate(context, client_ca, client_crl)
    return context


def check_authorities(ca: bytes, crl: bytes | None = None) -> None:
    """Refuse what client certificates could not be verified with; see `server_context`.

    Raises:
        ConfigurationError: It is not what it should be.
    """
    _ask_for_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ca, crl)


def _ask_for_certificate(context: ssl.SSLContext, ca: bytes, crl: bytes | None) -> None:
    try:
        context.load_verify_locations(cadata=ca.decode("ascii"))
        if crl is not None:
            # OpenSSL reads revocation lists from files only.
            with _memory_file(crl) as path:
                context.load_verify_locations(path)
    except (OSError, ValueError) as error:
        msg = "client_ca, client_crl: expected certificates and revocation lists as PEM"
        raise ConfigurationError(msg) from error
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if crl is not None:
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def peer_certificate(transport: asyncio.BaseTransport) -> bytes | None:
    """Return the client's certificate as DER, whose chain TLS has verified; `None`: it has none.

    Args:
        transport: Of a server's connection.
    """
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    return None if tls is None else tls.getpeercert(binary_form=True)


def pinned_context(certificate: bytes) -> ssl.SSLContext:
    """Return a context that talks to the holder of one certificate's key, and nobody else.

    Args:
        certificate: DER, of an `AttestationResult`.
    """
    context = _client_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=certificate)
    return context


def unverified_context() -> ssl.SSLContext:
    """Return a context for asking who is there: whatever it receives is untrusted.

    Only for fetching evidence; the peer's key is compared with the attested one afterwards.
    """
    context = _client_context()
    context.verify_mode = ssl.CERT_NONE
    return context


def public_key_of(certificate: bytes) -> bytes:
    """Return the DER SubjectPublicKeyInfo in a DER certificate.

    Raises:
        EvidenceError: If the certificate is malformed.
    """
    key = parse_certificate(certificate, "TLS certificate").public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def check_peer(certificate: bytes, tls_public_key: bytes) -> None:
    """Refuse a TLS peer that does not hold the attested key.

    Raises:
        BindingError: If the certificate carries another key.
    """
    if public_key_of(certificate) != tls_public_key:
        msg = (
            "the TLS connection ends at another key than the attested one: "
            "somebody stands between you and the enclave"
        )
        raise BindingError(msg)


def _client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(list(ALPN_PROTOCOLS))
    # Never the environment's: SSLKEYLOGFILE would write the session keys to a disk.
    context.keylog_filename = None  # type: ignore[assignment]
    return context


@contextmanager
def _memory_file(content: bytes) -> Iterator[str]:
    if not hasattr(os, "memfd_create"):  # pragma: no cover - servers run on Linux
        msg = "the server needs Linux: its key is passed to OpenSSL in a memory file (memfd)"
        raise ConfigurationError(msg)
    import fcntl  # noqa: PLC0415 - clients run where there is none

    # memfd_create(2); F_SEAL_FUTURE_WRITE (Linux 5.1) is in `fcntl` from Python 3.13 on only.
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _F_SEAL_FUTURE_WRITE
    descriptor = os.memfd_create("blindai", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, len(content))
        with mmap.mmap(descriptor, len(content)) as memory:
            memory[:] = content
            # Nobody changes what OpenSSL is about to read; our own mapping stays writable.
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            try:
                yield f"/proc/self/fd/{descriptor}"
            finally:
                # Freed pages keep what they held until somebody else gets them.
                memory[:] = bytes(len(content))
    finally:
        os.close(descriptor)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as error:
        msg = f"expected a host name in ASCII (punycode) or an IP address, found {name!r}"
        raise ConfigurationError(msg) from error
