"""Public keys that sign JWTs: parsed from a JWKS or PEM, and fetched again in the background.

Always true: a key is for one algorithm, which is its own and never the token's wish; only
ES256 (P-256) and EdDSA (Ed25519) are taken. A set is bounded in bytes and keys. A set that
cannot be fetched any more is used for a day, then it opens nothing.

Specification: RFC 7517 (JWK), RFC 7518 §6.2, RFC 8037 (OKP).
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import ECAlgorithm, OKPAlgorithm

from blindai.errors import BlindAIError, ConfigurationError
from blindai.server.events import log_event

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

MAX_SET_BYTES: Final = 64 << 10
MAX_KEYS: Final = 32
MAX_KID: Final = 256
_BEGIN: Final = b"-----BEGIN "
_CURVES: Final[Mapping[tuple[str, str], str]] = {
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}
_REFRESH_SECONDS: Final = 600.0
_RETRY_SECONDS: Final = 30.0
_KEEP_SECONDS: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key for one algorithm.

    Attributes:
        kid: That tokens name it by; `None`: it has no name.
        algorithm: "ES256" or "EdDSA".
        key: Of that algorithm.
    """

    kid: str | None
    algorithm: str
    key: EllipticCurvePublicKey | Ed25519PublicKey


def parse_key_set(content: bytes) -> tuple[VerificationKey, ...]:
    """Read public keys: a JWKS, or one or more in PEM.

    Keys of a JWKS that are for something else (encryption, RSA) are left out.

    Raises:
        ConfigurationError: Malformed, too large, without any key that can be used, or with a
            key that is private.
    """
    if len(content) > MAX_SET_BYTES:
        msg = f"expected at most {MAX_SET_BYTES} bytes of public keys, came more"
        raise ConfigurationError(msg)
    keys = _parse_pem(content) if content.lstrip().startswith(_BEGIN) else _parse_jwks(content)
    kids = [key.kid for key in keys if key.kid is not None]
    if not keys or len(keys) > MAX_KEYS or len(set(kids)) < len(kids):
        msg = f"expected 1 to {MAX_KEYS} public keys for ES256 or EdDSA, each kid once"
        raise ConfigurationError(msg)
    return keys


def _parse_jwks(content: bytes) -> tuple[VerificationKey, ...]:
    try:
        found = msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        msg = "expected public keys as a JWKS or as PEM"
        raise ConfigurationError(msg) from error
    listed = found.get("keys")
    if not isinstance(listed, list) or len(listed) > 4 * MAX_KEYS:
        msg = "expected a JWKS, an object with a list of 'keys'"
        raise ConfigurationError(msg)
    parsed = [_parse_jwk(each) for each in listed if isinstance(each, dict)]
    return tuple(key for key in parsed if key is not None)


def _parse_jwk(jwk: Mapping[str, Any]) -> VerificationKey | None:
    if "d" in jwk or "k" in jwk:
        msg = "expected public keys, came one that is private: it is not a secret any more"
        raise ConfigurationError(msg)
    algorithm = _CURVES.get((str(jwk.get("kty")), str(jwk.get("crv"))))
    if algorithm is None or jwk.get("alg", algorithm) not in {algorithm, "Ed25519"}:
        return None
    if jwk.get("use", "sig") != "sig" or "verify" not in jwk.get("key_ops", ["verify"]):
        return None
    kid = jwk.get("kid")
    if kid is not None and (not isinstance(kid, str) or len(kid) > MAX_KID):
        msg = f"expected kids of at most {MAX_KID} characters, came another"
        raise ConfigurationError(msg)
    reader = ECAlgorithm if algorithm == "ES256" else OKPAlgorithm
    try:
        key = reader.from_jwk(dict(jwk))
    except (jwt.InvalidKeyError, ValueError, TypeError, AttributeError) as error:
        msg = f"expected a public key for {algorithm}, came one that is malformed"
        raise ConfigurationError(msg) from error
    if not isinstance(key, EllipticCurvePublicKey | Ed25519PublicKey):
        msg = "expected public keys, came another"
        raise ConfigurationError(msg)
    return VerificationKey(kid, algorithm, key)


def _parse_pem(content: bytes) -> tuple[VerificationKey, ...]:
    if b"PRIVATE" in content:
        msg = "expected public keys in PEM, came one that is private"
        raise ConfigurationError(msg)
    keys = []
    for part in content.split(_BEGIN)[1 : MAX_KEYS + 2]:
        try:
            key = load_pem_public_key(_BEGIN + part)
        except (ValueError, UnsupportedAlgorithm) as error:
            msg = "expected public keys in PEM (BEGIN PUBLIC KEY)"
            raise ConfigurationError(msg) from error
        if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
            keys.append(VerificationKey(None, "ES256", key))
        elif isinstance(key, Ed25519PublicKey):
            keys.append(VerificationKey(None, "EdDSA", key))
        else:
            msg = "expected public keys of P-256 or Ed25519, came another kind"
            raise ConfigurationError(msg)
    return tuple(keys)


class KeySet:
    """The public keys of one issuer, and how they are kept up to date.

    Args:
        keys: Known from the start.
        fetch: Returns a set anew, as bytes; `None`: it never changes.
        clock: Returns seconds that never go back.
    """

    def __init__(
        self,
        keys: tuple[VerificationKey, ...] = (),
        *,
        fetch: Callable[[], bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = keys
        self._fetch = fetch
        self._clock = clock
        self._fetched_at = clock() - 2 * _KEEP_SECONDS
        self._ended = threading.Event()
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None

    def candidates(self, algorithm: str, kid: str | None) -> list[VerificationKey]:
        """Return the keys that may have signed a token; asks for new ones if there is none.

        Args:
            algorithm: That the token names.
            kid: That the token names. It is compared, and nothing else is done with it.
        """
        if self._fetch is not None and self._clock() - self._fetched_at > _KEEP_SECONDS:
            self._wanted.set()
            return []
        found = [
            key
            for key in self._keys
            if key.algorithm == algorithm and (key.kid is None or kid is None or key.kid == kid)
        ]
        if not found:
            self._wanted.set()
        return found

    def replace(self, keys: tuple[VerificationKey, ...]) -> None:
        """Take these keys instead of the ones before."""
        self._keys = keys

    def refresh(self) -> bool:
        """Fetch the keys once; return whether that worked. Slow: for a thread of its own."""
        if self._fetch is None:
            return True
        try:
            self._keys = parse_key_set(self._fetch())
        except BlindAIError as error:
            log_event("jwks_not_fetched", level="warning", error=type(error).__name__)
            return False
        self._fetched_at = self._clock()
        return True

    def __enter__(self) -> Self:
        if self._fetch is not None:
            self._thread = threading.Thread(target=self._serve, name="blindai-jwks", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()

    def _serve(self) -> None:
        while not self._ended.is_set():
            wait = _REFRESH_SECONDS if self.refresh() else _RETRY_SECONDS
            # Tokens with invented kids must not make us ask again and again.
            if self._ended.wait(_RETRY_SECONDS):
                return
            self._wanted.clear()
            # Looked at after that, so that whoever ends this is not waited out.
            if not self._ended.is_set():
                self._wanted.wait(wait - _RETRY_SECONDS)
