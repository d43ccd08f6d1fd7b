"""JWTs of issuers that the operator trusts.

Always true: the algorithm is the key's, ES256 or EdDSA, and a token that names another is
refused; "none" is no algorithm. The signature is verified before any other claim counts;
what the header says of keys (jwk, jku, x5u, x5c) is never looked at, and a kid is compared
only. A token has an end, an audience and an issuer, and is bounded in size.

Specification: RFC 7519 §4.1 (claims), RFC 7515 §4.1 (headers), RFC 8725 (best practices),
RFC 9068 §2.2.3 (scope).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import jwt
import msgspec

from blindai.errors import AccessDenied
from blindai.server.access.principal import Scope

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from blindai.server.access.jwks import KeySet
    from blindai.server.access.rules import Issuer

MAX_TOKEN: Final = 8192
_ALGORITHMS: Final = frozenset({"ES256", "EdDSA"})
_SEGMENTS: Final = 3
_MAX_SUBJECT: Final = 256
# A signature is verified once in so many seconds; keys that were withdrawn last as long.
_REMEMBER_SECONDS: Final = 15.0
_MAX_REMEMBERED: Final = 1024
# RFC 9068 §2.1: what an access token may say it is.
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})
# Beyond what a date can be.
_NEVER: Final = 1e12
_REFUSED: Final = "the token that came does not open this"


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verified token says.

    Attributes:
        issuer: Whose it is.
        subject: Whom it is of; empty: it does not say.
        tenant: Whose models it uses.
        scopes: What it gives, within what its issuer may give.
        expires: Seconds since 1970, with the leeway.
    """

    issuer: str
    subject: str
    tenant: str
    scopes: frozenset[Scope]
    expires: float


def is_jwt(token: bytes) -> bool:
    """Return whether a token looks like a JWT."""
    return token.count(b".") == _SEGMENTS - 1


class Tokens:
    """Verifies JWTs. For one event loop.

    Args:
        issuers: Whose tokens are accepted, each with its keys.
    """

    __slots__ = ("_issuers", "_remembered")

    def __init__(self, issuers: Sequence[tuple[Issuer, KeySet]]) -> None:
        self._issuers = {issuer.name: (issuer, keys) for issuer, keys in issuers}
        # SHA-256 of a token → what it says, and until when that is not looked at again.
        self._remembered: OrderedDict[bytes, tuple[Verified, float]] = OrderedDict()

    def verify(self, token: bytes, *, now: float) -> Verified:
        """Return what a token says.

        Args:
            token: As it was presented.
            now: Seconds since 1970.

        Raises:
            AccessDenied: It is not genuine, not for this server, or not valid now.
        """
        if len(token) > MAX_TOKEN:
            raise AccessDenied(_REFUSED)
        digest = hashlib.sha256(token).digest()
        remembered = self._remembered.get(digest)
        if remembered is not None and now < remembered[1]:
            return remembered[0]
        found = self._verify(token, now)
        until = min(now + _REMEMBER_SECONDS, found.expires)
        self._remembered[digest] = found, until
        self._remembered.move_to_end(digest)
        if len(self._remembered) > _MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return found

    def forget(self) -> None:
        """Verify anew what was verified lately: there are other keys."""
        self._remembered.clear()

    def _verify(self, token: bytes, now: float) -> Verified:
        issuer, keys = self._issuer_of(token)
        header = _read_header(token)
        claims = _check_signature(token, header, issuer, keys)
        expires = _check_times(claims, issuer, now)
        subject = claims.get("sub")
        return Verified(
            issuer.name,
            subject[:_MAX_SUBJECT] if isinstance(subject, str) else "",
            _tenant_of(claims, issuer),
            _scopes_of(claims) & issuer.scopes,
            expires,
        )

    def _issuer_of(self, token: bytes) -> tuple[Issuer, KeySet]:
        """Return whose keys have to have signed a token; nothing that it says is true yet."""
        try:
            claims = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise AccessDenied(_REFUSED) from None
        name = claims.get("iss")
        found = self._issuers.get(name) if isinstance(name, str) else None
        if found is None:
            raise AccessDenied(_REFUSED)
        return found


def _read_header(token: bytes) -> Mapping[str, Any]:
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise AccessDenied(_REFUSED) from None
    kind = header.get("typ", "JWT")
    if (
        header.get("alg") not in _ALGORITHMS
        or "crit" in header
        or not isinstance(kind, str)
        or kind.lower() not in _TYPES
    ):
        raise AccessDenied(_REFUSED)
    return header


def _check_signature(
    token: bytes, header: Mapping[str, Any], issuer: Issuer, keys: KeySet
) -> Mapping[str, Any]:
    for candidate in keys.candidates(header["alg"], header.get("kid")):
        try:
            claims: Mapping[str, Any] = jwt.decode(
                token,
                candidate.key,
                algorithms=[candidate.algorithm],
                audience=issuer.audience,
                issuer=issuer.name,
                # Times are checked here, with a clock that is passed in.
                options={
                    "require": ["exp", "iss", "aud"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_sub": False,
                    "verify_jti": False,
                },
            )
        except jwt.InvalidSignatureError:
            continue
        except (jwt.InvalidAudienceError, jwt.MissingRequiredClaimError):
            msg = f"the JWT that came is not for this server: expected aud {issuer.audience!r}"
            raise AccessDenied(msg) from None
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise AccessDenied(_REFUSED) from None
        return claims
    raise AccessDenied(_REFUSED)


def _check_times(claims: Mapping[str, Any], issuer: Issuer, now: float) -> float:
    """Return when a token ends, with the leeway; refuse one that is not valid now."""
    expires = _number(claims, "exp")
    if now >= expires + issuer.leeway:
        msg = "the JWT that came has expired"
        raise AccessDenied(msg)
    if expires - now > issuer.max_lifetime + issuer.leeway:
        msg = f"the JWT that came is valid for more than {issuer.max_lifetime:g} seconds"
        raise AccessDenied(msg)
    for name in ("nbf", "iat"):
        if name in claims and _number(claims, name) > now + issuer.leeway:
            msg = "the JWT that came is not valid yet: compare the clocks"
            raise AccessDenied(msg)
    return expires + issuer.leeway


def _number(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    # A bool is an int, and NaN is in no range.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _NEVER:
        msg = f"the JWT that came has no number as {name}"
        raise AccessDenied(msg)
    return float(value)


def _tenant_of(claims: Mapping[str, Any], issuer: Issuer) -> str:
    if issuer.tenant is not None:
        return issuer.tenant
    tenant = claims.get(issuer.tenant_claim)
    if not isinstance(tenant, str) or not tenant:
        msg = f"the JWT that came names no tenant in {issuer.tenant_claim!r}"
        raise AccessDenied(msg)
    return tenant


def _scopes_of(claims: Mapping[str, Any]) -> frozenset[Scope]:
    """Return what a token asks for; running alone, where it does not say."""
    said = claims.get("scope", claims.get("scp"))
    if said is None:
        return frozenset({Scope.RUN})
    try:
        names = said.split(" ") if isinstance(said, str) else msgspec.convert(said, list[str])
    except msgspec.MsgspecError:
        return frozenset()
    # Scopes of other services may be among them.
    return frozenset(scope for scope in Scope if scope in names or f"blindai:{scope}" in names)
