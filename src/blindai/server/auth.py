"""Who may do what. Only the SHA-256 of a token is ever kept; a token is never logged.

Until accounts exist there is one token, made at start. Without it, anybody may look and run;
nobody may change what is served.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from enum import StrEnum
from typing import Final

from blindai.errors import AccessDenied, ConfigurationError

# Tokens are compared by digest, so only guessing is left: 128 bits are out of reach.
MIN_TOKEN_CHARACTERS: Final = 16


class Scope(StrEnum):
    """A kind of thing to do."""

    RUN = "run"
    MANAGE = "manage"


class Access:
    """Decides about requests.

    Args:
        token: Opens every scope.
        open_scopes: Need no token.

    Raises:
        ConfigurationError: A token that could be guessed.
    """

    __slots__ = ("_digest", "_open")

    def __init__(
        self, token: str, *, open_scopes: frozenset[Scope] = frozenset({Scope.RUN})
    ) -> None:
        if len(token) < MIN_TOKEN_CHARACTERS or not token.isascii() or " " in token:
            msg = f"expected a token of {MIN_TOKEN_CHARACTERS} or more ASCII characters, no spaces"
            raise ConfigurationError(msg)
        self._digest = hashlib.sha256(token.encode()).digest()
        self._open = open_scopes

    def check(self, scope: Scope, token: bytes | None) -> None:
        """Refuse who has no right.

        Args:
            scope: What is to be done.
            token: What the caller presents.

        Raises:
            AccessDenied: No token, or an unknown one.
        """
        if scope in self._open:
            return
        if token is None:
            msg = f"expected a token to {scope}: Authorization: Bearer TOKEN; came none"
            raise AccessDenied(msg)
        if not hmac.compare_digest(hashlib.sha256(token).digest(), self._digest):
            msg = f"the token that came does not open this: {scope}"
            raise AccessDenied(msg)


def generate_token() -> str:
    """Return a fresh token of 256 random bits."""
    return secrets.token_urlsafe(32)
