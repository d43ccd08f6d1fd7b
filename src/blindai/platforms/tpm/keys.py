"""Attestation keys and signatures as a TPM writes them.

Always true here: a key is RSA of 2048 to 4096 bits or on a NIST P curve, and a signature is
verified with the scheme and the hash that it names itself; where the key's public area fixes
a scheme, the two have to agree.

Specification: TCG TPM 2.0 Library, Part 2: §12.2.4 (TPMT_PUBLIC), §8.3 (TPMA_OBJECT), §11.3.4
(TPMT_SIGNATURE); key sizes and curves: TCG Algorithm Registry.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from blindai.attestation.reader import Reader
from blindai.errors import EvidenceError, SignatureError
from blindai.platforms.tpm.eventlog import BANKS

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

RSASSA: Final = 0x0014
RSAPSS: Final = 0x0016
ECDSA: Final = 0x0018
SCHEMES: Final = {RSASSA: "RSASSA", RSAPSS: "RSAPSS", ECDSA: "ECDSA"}
HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "sha1": hashes.SHA1(),  # noqa: S303 - old TPMs sign with it; it becomes a weakness
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}

# TPMA_OBJECT (Part 2 §8.3.2): set, and clear, in a key that signs only what the TPM itself says.
_REQUIRED: Final = {
    "fixedTPM": 1 << 1,
    "fixedParent": 1 << 4,
    "sensitiveDataOrigin": 1 << 5,
    "restricted": 1 << 16,
    "sign": 1 << 18,
}
_FORBIDDEN: Final = {"decrypt": 1 << 17}

_TYPE_RSA: Final = 0x0001
_TYPE_ECC: Final = 0x0023
_NULL: Final = 0x0010
_CURVES: Final[dict[int, ec.EllipticCurve]] = {
    0x0003: ec.SECP256R1(),
    0x0004: ec.SECP384R1(),
    0x0005: ec.SECP521R1(),
}
_CURVE_NAMES: Final = frozenset(curve.name for curve in _CURVES.values())
_DEFAULT_EXPONENT: Final = 65537
_MIN_RSA_BITS: Final = 2048
_MAX_RSA_BITS: Final = 4096
_MAX_RSA_BYTES: Final = _MAX_RSA_BITS // 8
_MAX_COORDINATE: Final = 66
_MAX_KEY_BYTES: Final = 4096
_MALFORMED: Final = (ValueError, TypeError, UnsupportedAlgorithm)


@dataclass(frozen=True, slots=True)
class Signature:
    """A TPMT_SIGNATURE.

    Attributes:
        scheme: `RSASSA`, `RSAPSS` or `ECDSA`.
        hash_name: "sha1", "sha256", "sha384" or "sha512".
        value: As `cryptography` takes it: the RSA number, or r and s in DER.
    """

    scheme: int
    hash_name: str
    value: bytes


@dataclass(frozen=True, slots=True)
class AttestationKey:
    """The public key of an attestation key (AK).

    Attributes:
        public: The key.
        attributes: TPMA_OBJECT; `None` where only the bare key is known.
        scheme: Scheme and hash that the key is bound to; `None` where it is not, or unknown.
    """

    public: PublicKey
    attributes: int | None = None
    scheme: tuple[int, str] | None = None

    @property
    def spki(self) -> bytes:
        """The key as DER SubjectPublicKeyInfo."""
        return self.public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def digest(self) -> bytes:
        """SHA-256 of `spki`: by which a policy names the key."""
        return hashlib.sha256(self.spki).digest()


def parse_signature(data: bytes) -> Signature:
    """Read a TPMT_SIGNATURE.

    Raises:
        EvidenceError: If it is malformed, or of a scheme or hash that no quote uses.
    """
    reader = Reader(data, "TPM signature", byteorder="big")
    scheme = reader.u16("sigAlg")
    if scheme not in SCHEMES:
        msg = f"TPM signature: expected RSASSA, RSAPSS or ECDSA, found {scheme:#06x}"
        raise EvidenceError(msg)
    hash_name = _hash_name(reader.u16("hash"), "TPM signature")
    if scheme == ECDSA:
        r = reader.sized(2, "signatureR", at_most=_MAX_COORDINATE)
        s = reader.sized(2, "signatureS", at_most=_MAX_COORDINATE)
        value = encode_dss_signature(int.from_bytes(r), int.from_bytes(s))
    else:
        value = reader.sized(2, "sig", at_most=_MAX_RSA_BYTES)
    reader.end()
    return Signature(scheme, hash_name, value)


def parse_key(data: bytes) -> AttestationKey:
    """Read an AK: TPM2B_PUBLIC, TPMT_PUBLIC, or SubjectPublicKeyInfo in PEM or DER.

    Raises:
        EvidenceError: If it is none of these, or a key that is too weak.
    """
    if len(data) > _MAX_KEY_BYTES:
        msg = f"attestation key: {len(data)} bytes, at most {_MAX_KEY_BYTES} are accepted"
        raise EvidenceError(msg)
    if data.lstrip().startswith(b"-----BEGIN"):
        return AttestationKey(_load_spki(data, pem=True))
    if data[:1] == b"\x30":
        return AttestationKey(_load_spki(data, pem=False))
    if int.from_bytes(data[:2]) == len(data) - 2:
        data = data[2:]
    return _parse_public_area(data)


def check_strength(key: object) -> PublicKey:
    """Return `key` if an AK may be of this kind.

    Raises:
        EvidenceError: If it is neither RSA of 2048 to 4096 bits nor on a NIST P curve.
    """
    if isinstance(key, rsa.RSAPublicKey) and _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS:
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVE_NAMES:
        return key
    msg = f"attestation key: no RSA of {_MIN_RSA_BITS} to {_MAX_RSA_BITS} bits and no NIST P curve"
    raise EvidenceError(msg)


def check_attributes(attributes: int) -> None:
    """Refuse a key that could sign what its TPM did not say (Part 2 §8.3.3).

    Raises:
        SignatureError: With the attributes that are wrong.
    """
    wrong = [f"{name} is not set" for name, bit in _REQUIRED.items() if not attributes & bit]
    wrong += [f"{name} is set" for name, bit in _FORBIDDEN.items() if attributes & bit]
    if wrong:
        msg = f"attestation key: no restricted signing key of a TPM: {', '.join(wrong)}"
        raise SignatureError(msg)


def verify_signature(key: AttestationKey, signature: Signature, message: bytes) -> None:
    """Refuse a message that `key` did not sign.

    Raises:
        SignatureError: If the signature is wrong, or of another kind than the key.
    """
    algorithm = HASHES[signature.hash_name]
    public = key.public
    try:
        if isinstance(public, ec.EllipticCurvePublicKey) and signature.scheme == ECDSA:
            public.verify(signature.value, message, ec.ECDSA(algorithm))
        elif isinstance(public, rsa.RSAPublicKey) and signature.scheme == RSASSA:
            public.verify(signature.value, message, padding.PKCS1v15(), algorithm)
        elif isinstance(public, rsa.RSAPublicKey) and signature.scheme == RSAPSS:
            # The TPM chooses the salt's length (Part 1 §B.7), so it is read off the signature.
            pss = padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
            public.verify(signature.value, message, pss, algorithm)
        else:
            msg = f"TPM quote: a {SCHEMES[signature.scheme]} signature does not fit its key"
            raise SignatureError(msg)
    except (InvalidSignature, *_MALFORMED) as error:
        msg = "TPM quote: not signed by the attestation key"
        raise SignatureError(msg) from error


def _load_spki(data: bytes, *, pem: bool) -> PublicKey:
    try:
        return check_strength(load_pem_public_key(data) if pem else load_der_public_key(data))
    except _MALFORMED as error:
        msg = f"attestation key: malformed public key ({type(error).__name__})"
        raise EvidenceError(msg) from error


def _parse_public_area(data: bytes) -> AttestationKey:
    reader = Reader(data, "TPM public area", byteorder="big")
    kind = reader.u16("type")
    if kind not in (_TYPE_RSA, _TYPE_ECC):
        msg = f"TPM public area: expected an RSA or ECC key, found type {kind:#06x}"
        raise EvidenceError(msg)
    reader.skip(2, "nameAlg")
    attributes = reader.u32("objectAttributes")
    reader.sized(2, "authPolicy", at_most=64)
    if reader.u16("symmetric") != _NULL:
        reader.skip(4, "symmetric keyBits and mode")
    scheme = _parse_scheme(reader)
    public = _parse_rsa(reader) if kind == _TYPE_RSA else _parse_ecc(reader)
    reader.end()
    return AttestationKey(check_strength(public), attributes, scheme)


def _parse_scheme(reader: Reader) -> tuple[int, str] | None:
    scheme = reader.u16("scheme")
    if scheme == _NULL:
        return None
    if scheme not in SCHEMES:
        msg = f"TPM public area: expected RSASSA, RSAPSS or ECDSA, found {scheme:#06x}"
        raise EvidenceError(msg)
    return scheme, _hash_name(reader.u16("scheme hash"), "TPM public area")


def _parse_rsa(reader: Reader) -> rsa.RSAPublicKey:
    reader.skip(2, "keyBits")
    exponent = reader.u32("exponent") or _DEFAULT_EXPONENT
    modulus = reader.sized(2, "unique", at_most=_MAX_RSA_BYTES)
    try:
        return rsa.RSAPublicNumbers(exponent, int.from_bytes(modulus)).public_key()
    except _MALFORMED as error:
        msg = "TPM public area: no RSA key has these numbers"
        raise EvidenceError(msg) from error


def _parse_ecc(reader: Reader) -> ec.EllipticCurvePublicKey:
    curve = _CURVES.get(reader.u16("curveID"))
    if curve is None:
        msg = "TPM public area: expected a NIST P curve"
        raise EvidenceError(msg)
    if reader.u16("kdf") != _NULL:
        reader.skip(2, "kdf hash")
    x = reader.sized(2, "unique.x", at_most=_MAX_COORDINATE)
    y = reader.sized(2, "unique.y", at_most=_MAX_COORDINATE)
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), curve)
    try:
        return numbers.public_key()
    except _MALFORMED as error:
        msg = f"TPM public area: the point is not on {curve.name}"
        raise EvidenceError(msg) from error


def _hash_name(algorithm: int, where: str) -> str:
    name = BANKS.get(algorithm)
    if name is None:
        msg = f"{where}: unsupported hash algorithm {algorithm:#06x}"
        raise EvidenceError(msg)
    return name
