"""Certificate chains and revocation lists (RFC 5280 §6), on `cryptography`.

One strict path for every vendor, since no library path takes them all: AMD signs with
RSA-PSS and serial number 0, AWS leaves live for three hours. Every certificate is checked
for issuer, signature, validity at `now`, CA and path length, key usage, algorithm, and for
critical extensions that nobody here understands. A root counts only by its fingerprint.
"""

from __future__ import annotations

import hashlib
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning

from blindai.errors import EndorsementError, EvidenceError, SignatureError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from blindai.attestation.trust import Anchor

# AMD's VCEK and VLEK have serial number 0, which RFC 5280 forbids and `cryptography` announces
# to refuse one day. It is no weakness: nothing here identifies a certificate by its serial.
warnings.filterwarnings(
    "ignore",
    message="Parsed a serial number which wasn.t positive",
    category=CryptographyDeprecationWarning,
)

E = TypeVar("E", bound=x509.ExtensionType)

MAX_CERTIFICATE_BYTES: Final = 16 << 10
MAX_CHAIN: Final = 8
MAX_CRL_BYTES: Final = 4 << 20
_MAX_NAME: Final = 200
_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_MIN_RSA_BITS: Final = 2048
_PEM_MARK: Final = b"-----BEGIN CERTIFICATE-----"
_UNDERSTOOD: Final = frozenset(
    {x509.BasicConstraints.oid, x509.KeyUsage.oid, x509.ExtendedKeyUsage.oid}
)
# What `cryptography` raises on malformed DER, beyond ValueError; warnings where they are errors.
_MALFORMED: Final = (
    ValueError,
    TypeError,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    UnsupportedAlgorithm,
    UserWarning,
)


def parse_certificate(data: bytes, name: str = "certificate") -> x509.Certificate:
    """Read one certificate in DER.

    Raises:
        EvidenceError: If it is too large or malformed.
    """
    if len(data) > MAX_CERTIFICATE_BYTES:
        msg = f"{name}: {len(data)} bytes, at most {MAX_CERTIFICATE_BYTES} are accepted"
        raise EvidenceError(msg)
    try:
        certificate = x509.load_der_x509_certificate(data)
        # Parsed lazily: make sure that later reads cannot raise anything else.
        _ = certificate.extensions, certificate.signature_hash_algorithm, certificate.public_key()
        _ = certificate.subject, certificate.issuer
        _check_whole_octets(der(certificate), certificate.signature)
    except _MALFORMED as error:
        msg = f"{name}: malformed certificate ({type(error).__name__})"
        raise EvidenceError(msg) from error
    return certificate


def _check_whole_octets(encoded: bytes, signature: bytes) -> None:
    """Refuse a signature that claims unused bits: one certificate would have two encodings."""
    if not encoded.endswith(b"\0" + signature):
        msg = "the signature is not a whole number of octets"
        raise ValueError(msg)


def parse_certificates(data: bytes, name: str = "chain") -> list[x509.Certificate]:
    """Read certificates: a PEM bundle, or one in DER; at most `MAX_CHAIN` of them.

    Raises:
        EvidenceError: If there is none, too many, or a malformed one.
    """
    if _PEM_MARK not in data:
        return [parse_certificate(data, name)]
    if len(data) > MAX_CHAIN * 2 * MAX_CERTIFICATE_BYTES:
        msg = f"{name}: {len(data)} bytes are too many for {MAX_CHAIN} certificates"
        raise EvidenceError(msg)
    try:
        loaded = x509.load_pem_x509_certificates(data)
    except _MALFORMED as error:
        msg = f"{name}: malformed PEM certificates ({type(error).__name__})"
        raise EvidenceError(msg) from error
    if len(loaded) > MAX_CHAIN:
        msg = f"{name}: {len(loaded)} certificates, at most {MAX_CHAIN} are accepted"
        raise EvidenceError(msg)
    return [parse_certificate(der(certificate), name) for certificate in loaded]


def der(certificate: x509.Certificate) -> bytes:
    """Return the DER of a certificate."""
    return certificate.public_bytes(Encoding.DER)


def fingerprint(certificate: x509.Certificate) -> bytes:
    """Return SHA-256 of the certificate's DER, by which roots are pinned."""
    return hashlib.sha256(der(certificate)).digest()


def find_anchor(certificate: x509.Certificate, anchors: Sequence[Anchor]) -> Anchor | None:
    """Return the anchor that `certificate` is, if it is one."""
    found = fingerprint(certificate)
    return next((anchor for anchor in anchors if anchor.sha256 == found), None)


def verify_chain(
    leaf: x509.Certificate,
    others: Sequence[x509.Certificate],
    *,
    anchors: Sequence[Anchor],
    now: datetime,
    understood: frozenset[x509.ObjectIdentifier] = frozenset(),
) -> list[x509.Certificate]:
    """Return the path from `leaf` to a pinned root, every certificate of it verified.

    Args:
        leaf: The certificate whose key signed something.
        others: Intermediates and roots in any order; those that are not needed are ignored.
        anchors: The roots that count.
        now: The moment at which all have to be valid.
        understood: Critical extensions of the leaf that the caller checks by itself.

    Raises:
        SignatureError: If no path leads to a pinned root, or one of its certificates is not
            what its issuer signed, or not fit for its place.
        EndorsementError: If a certificate is not valid at `now`.
    """
    path = [leaf]
    while find_anchor(path[-1], anchors) is None:
        candidates = [c for c in others if c not in path]
        # One issuer may have several certificates for one key: rather a pinned root, rather
        # one that is valid now.
        candidates.sort(key=lambda c: (find_anchor(c, anchors) is None, not _is_valid(c, now)))
        issuer = _find_issuer(path[-1], candidates)
        if len(path) >= MAX_CHAIN:
            msg = f"certificate chain longer than {MAX_CHAIN}"
            raise SignatureError(msg)
        path.append(issuer)
    for depth, certificate in enumerate(path):
        _check_validity(certificate, now)
        _check_algorithms(certificate)
        _check_extensions(certificate, depth, understood if depth == 0 else frozenset())
    # The anchor is trusted by its fingerprint; its self-signature says nothing more.
    return path


def verify_revocation(
    path: Sequence[x509.Certificate],
    lists: Sequence[x509.CertificateRevocationList],
    *,
    now: datetime,
) -> list[x509.Certificate]:
    """Refuse a path with a revoked certificate; return those that no list speaks about.

    Args:
        path: As returned by `verify_chain`, leaf first.
        lists: Revocation lists; a list counts only for certificates of its own issuer, and
            only when that issuer signed it.
        now: The moment at which the lists have to be current.

    Raises:
        EndorsementError: If a certificate is revoked, or a list for it is out of date.
        SignatureError: If a list for it is not signed by its issuer.
    """
    unspoken = []
    for certificate, issuer in zip(path, [*path[1:], path[-1]], strict=True):
        if certificate is issuer:
            continue
        matching = [crl for crl in lists if crl.issuer == issuer.subject]
        for crl in matching:
            check_crl(crl, issuer, now=now)
            if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
                msg = f"revoked by its issuer: {name_of(certificate)}"
                raise EndorsementError(msg)
        if not matching:
            unspoken.append(certificate)
    return unspoken


def parse_crl(data: bytes, name: str = "revocation list") -> x509.CertificateRevocationList:
    """Read one revocation list in DER or PEM.

    Raises:
        EvidenceError: If it is too large or malformed.
    """
    if len(data) > MAX_CRL_BYTES:
        msg = f"{name}: {len(data)} bytes, at most {MAX_CRL_BYTES} are accepted"
        raise EvidenceError(msg)
    try:
        pem = data.lstrip().startswith(b"-----BEGIN")
        crl = x509.load_pem_x509_crl(data) if pem else x509.load_der_x509_crl(data)
        # Parsed lazily, as those of a certificate.
        _ = crl.issuer, crl.extensions, crl.signature_hash_algorithm
        _check_whole_octets(crl.public_bytes(Encoding.DER), crl.signature)
    except _MALFORMED as error:
        msg = f"{name}: malformed ({type(error).__name__})"
        raise EvidenceError(msg) from error
    return crl


def check_crl(
    crl: x509.CertificateRevocationList, issuer: x509.Certificate, *, now: datetime
) -> None:
    """Refuse a list that is not current at `now`, or no full list that `issuer` signed.

    Raises:
        EndorsementError: If it is out of date, or speaks of some certificates only.
        SignatureError: If `issuer` did not sign it, or may not sign lists.
    """
    key = issuer.public_key()
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        msg = f"revocation list: unsupported key of {name_of(issuer)}"
        raise SignatureError(msg)
    try:
        genuine = crl.is_signature_valid(key)
    except _MALFORMED:
        genuine = False
    if not genuine or not isinstance(crl.signature_hash_algorithm, _HASHES):
        msg = f"revocation list: not signed by {name_of(issuer)}, or too weakly"
        raise SignatureError(msg)
    usage = _extension(issuer, x509.KeyUsage)
    if usage is not None and not usage.crl_sign:
        msg = f"{name_of(issuer)}: its key usage does not allow revocation lists"
        raise SignatureError(msg)
    # Critical are those by which a list covers a part of the certificates, or only what is
    # new: with such a list, the host could hide the one where its certificate stands.
    for extension in crl.extensions:
        if extension.critical:
            oid = extension.oid.dotted_string
            msg = f"revocation list: critical extension {oid} is not understood"
            raise EndorsementError(msg)
    if now < crl.last_update_utc:
        msg = f"revocation list of {name_of(issuer)}: not valid before {crl.last_update_utc}"
        raise EndorsementError(msg)
    if crl.next_update_utc is None or now > crl.next_update_utc:
        msg = f"revocation list of {name_of(issuer)}: out of date since {crl.next_update_utc}"
        raise EndorsementError(msg)


def name_of(certificate: x509.Certificate) -> str:
    """Return the subject, for messages: short, and with nothing that a terminal obeys."""
    return _printable(certificate.subject) or "(no subject)"


def _printable(name: x509.Name) -> str:
    # Whoever made the certificate chose the name: line breaks would forge steps in a report.
    text = "".join(
        c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name.rfc4514_string()
    )
    return text if len(text) <= _MAX_NAME else f"{text[:_MAX_NAME]}…"


def _find_issuer(
    certificate: x509.Certificate, candidates: Sequence[x509.Certificate]
) -> x509.Certificate:
    named = [c for c in candidates if c.subject == certificate.issuer]
    for candidate in named:
        if _is_issued_by(certificate, candidate):
            return candidate
    if named:
        msg = f"{name_of(certificate)}: not signed by {name_of(named[0])}"
    else:
        issuer = _printable(certificate.issuer)
        msg = f"{name_of(certificate)}: no certificate of its issuer {issuer} and no pinned root"
    raise SignatureError(msg)


@lru_cache(maxsize=256)
def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Return whether `issuer` signed `certificate`: a fact about bytes, so it may be kept.

    A P-384 signature takes a millisecond, and a vendor's intermediates are the same each time.
    """
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *_MALFORMED):
        return False
    return True


def _is_valid(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _check_validity(certificate: x509.Certificate, now: datetime) -> None:
    if now < certificate.not_valid_before_utc:
        msg = f"{name_of(certificate)}: not valid before {certificate.not_valid_before_utc}"
        raise EndorsementError(msg)
    if now > certificate.not_valid_after_utc:
        msg = f"{name_of(certificate)}: expired at {certificate.not_valid_after_utc}"
        raise EndorsementError(msg)


def _check_algorithms(certificate: x509.Certificate) -> None:
    if not isinstance(certificate.signature_hash_algorithm, _HASHES):
        msg = f"{name_of(certificate)}: signed with an algorithm that is too weak or unknown"
        raise SignatureError(msg)
    key = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES):
        return
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _MIN_RSA_BITS:
        return
    curves = f"RSA of {_MIN_RSA_BITS} bits nor on a NIST P curve"
    msg = f"{name_of(certificate)}: its key is neither {curves}"
    raise SignatureError(msg)


def _check_extensions(
    certificate: x509.Certificate, depth: int, understood: frozenset[x509.ObjectIdentifier]
) -> None:
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD | understood:
            what = f"critical extension {extension.oid.dotted_string}"
            msg = f"{name_of(certificate)}: {what} is not understood"
            raise SignatureError(msg)
    constraints = _extension(certificate, x509.BasicConstraints)
    usage = _extension(certificate, x509.KeyUsage)
    if depth == 0:
        if usage is not None and not usage.digital_signature:
            msg = f"{name_of(certificate)}: its key usage does not allow signatures"
            raise SignatureError(msg)
        return
    if constraints is None or not constraints.ca:
        msg = f"{name_of(certificate)}: issues certificates, but is no CA"
        raise SignatureError(msg)
    if constraints.path_length is not None and constraints.path_length < depth - 1:
        found = f"its path length is {constraints.path_length}, found {depth - 1}"
        msg = f"{name_of(certificate)}: {found}"
        raise SignatureError(msg)
    if usage is not None and not usage.key_cert_sign:
        msg = f"{name_of(certificate)}: its key usage does not allow issuing certificates"
        raise SignatureError(msg)


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
