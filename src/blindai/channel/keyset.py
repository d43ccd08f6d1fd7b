"""The keys a server holds, and the statement that evidence is bound to.

The private halves are made inside the TEE at each start and exist in memory only; nothing
here can write one anywhere. The public statement is deterministic CBOR, so its digest names
it, and reading it back accepts that one encoding only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Self

import cbor2
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from blindai.attestation.wire import load_cbor
from blindai.errors import BindingError, EvidenceError

if TYPE_CHECKING:
    from datetime import timedelta

KEYSET_VERSION: Final = 1
TLS_ALGORITHM: Final = "ecdsa-p256"
RECEIPT_ALGORITHM: Final = "ed25519"
MESSAGE_ALGORITHM: Final = "hpke-mlkem768x25519-hkdfsha256-aes256gcm"
_ED25519_SIZE: Final = 32
# ML-KEM-768 encapsulation key, then X25519 public key (HPKE KEM 0x647A).
_MESSAGE_KEY_SIZE: Final = 1184 + 32
_MAX_BYTES: Final = 8192
_MAX_TIME: Final = 253_402_300_799  # 9999-12-31


@dataclass(frozen=True, slots=True)
class Keyset:
    """The public statement of a server's keys.

    Attributes:
        tls_public_key: DER SubjectPublicKeyInfo of the TLS key (ECDSA P-256).
        receipt_public_key: 32 raw bytes, Ed25519; signs receipts.
        message_public_key: 1,216 raw bytes, ML-KEM-768 then X25519; for sealed messages.
        not_after: From then on the keys are not to be used.
        configuration: SHA-256 of the server's security-relevant configuration.
    """

    tls_public_key: bytes
    receipt_public_key: bytes
    message_public_key: bytes
    not_after: datetime
    configuration: bytes

    def dump(self) -> bytes:
        """Return the statement as deterministic CBOR."""
        return cbor2.dumps(
            {
                "version": KEYSET_VERSION,
                "tls": {"algorithm": TLS_ALGORITHM, "key": self.tls_public_key},
                "receipt": {"algorithm": RECEIPT_ALGORITHM, "key": self.receipt_public_key},
                "message": {"algorithm": MESSAGE_ALGORITHM, "key": self.message_public_key},
                "not_after": int(self.not_after.timestamp()),
                "configuration": self.configuration,
            },
            canonical=True,
        )

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a statement.

        Raises:
            EvidenceError: If it is anything but the canonical encoding of a version 1 keyset.
        """
        document = load_cbor(data, "keyset", at_most=_MAX_BYTES)
        names = {"version", "tls", "receipt", "message", "not_after", "configuration"}
        if not isinstance(document, dict) or set(document) != names:
            msg = f"keyset: expected a map of exactly {', '.join(sorted(names))}"
            raise EvidenceError(msg)
        if document["version"] != KEYSET_VERSION:
            msg = f"keyset: expected version {KEYSET_VERSION}, found {document['version']!r}"
            raise EvidenceError(msg)
        not_after, configuration = document["not_after"], document["configuration"]
        if type(not_after) is not int or not 0 <= not_after <= _MAX_TIME:
            msg = "keyset: not_after has to be Unix seconds"
            raise EvidenceError(msg)
        if (
            not isinstance(configuration, bytes)
            or len(configuration) != hashlib.sha256().digest_size
        ):
            msg = "keyset: configuration has to be a SHA-256 digest"
            raise EvidenceError(msg)
        keyset = cls(
            tls_public_key=_key(document["tls"], "tls", TLS_ALGORITHM, None),
            receipt_public_key=_key(
                document["receipt"], "receipt", RECEIPT_ALGORITHM, _ED25519_SIZE
            ),
            message_public_key=_key(
                document["message"], "message", MESSAGE_ALGORITHM, _MESSAGE_KEY_SIZE
            ),
            not_after=datetime.fromtimestamp(not_after, UTC),
            configuration=configuration,
        )
        _check_tls_key(keyset.tls_public_key)
        if keyset.dump() != data:
            msg = "keyset: not in canonical form"
            raise EvidenceError(msg)
        return keyset

    def check_current(self, now: datetime) -> None:
        """Refuse keys past their time.

        Raises:
            BindingError: If `not_after` has come.
        """
        if now >= self.not_after:
            msg = (
                f"the server's keys expired at {self.not_after:%Y-%m-%d %H:%M:%S}Z, "
                f"now it is {now:%Y-%m-%d %H:%M:%S}Z"
            )
            raise BindingError(msg)


@dataclass(frozen=True, slots=True, repr=False)
class PrivateKeyset:
    """The private halves. Never written, never shown: it has no `repr` and no `dump`.

    Attributes:
        tls: ECDSA P-256.
        receipt: Ed25519.
        message: ML-KEM-768 with X25519.
        public: What clients may know.
    """

    tls: ec.EllipticCurvePrivateKey
    receipt: Ed25519PrivateKey
    message: MLKEM768X25519PrivateKey
    public: Keyset

    @classmethod
    def generate(cls, *, now: datetime, lifetime: timedelta, configuration: bytes) -> Self:
        """Make fresh keys that hold from `now` for `lifetime`."""
        tls = ec.generate_private_key(ec.SECP256R1())
        receipt = Ed25519PrivateKey.generate()
        post_quantum, classical = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
        public = Keyset(
            tls_public_key=tls.public_key().public_bytes(
                Encoding.DER, PublicFormat.SubjectPublicKeyInfo
            ),
            receipt_public_key=receipt.public_key().public_bytes_raw(),
            message_public_key=post_quantum.public_key().public_bytes_raw()
            + classical.public_key().public_bytes_raw(),
            not_after=(now + lifetime).replace(microsecond=0),
            configuration=configuration,
        )
        message = MLKEM768X25519PrivateKey(post_quantum, classical)
        return cls(tls=tls, receipt=receipt, message=message, public=public)


def _key(data: object, name: str, algorithm: str, size: int | None) -> bytes:
    if not isinstance(data, dict) or set(data) != {"algorithm", "key"}:
        msg = f"keyset: {name} has to be a map of algorithm and key"
        raise EvidenceError(msg)
    if data["algorithm"] != algorithm:
        msg = f"keyset: expected {name} algorithm {algorithm}"
        raise EvidenceError(msg)
    key = data["key"]
    if not isinstance(key, bytes) or (size is not None and len(key) != size):
        msg = f"keyset: the {name} key has the wrong type or size"
        raise EvidenceError(msg)
    return key


def _check_tls_key(spki: bytes) -> None:
    try:
        key = load_der_public_key(spki)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        msg = "keyset: the tls key is no SubjectPublicKeyInfo"
        raise EvidenceError(msg) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        msg = "keyset: the tls key is not on P-256"
        raise EvidenceError(msg)
    # One key, one encoding: it is compared with the peer's byte for byte.
    if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != spki:
        msg = "keyset: the tls key is not in its canonical encoding"
        raise EvidenceError(msg)
