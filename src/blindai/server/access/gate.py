"""Decides about a request: who sent it, and whether they may.

Always true: what is not granted is refused, but for running (and, where the operator says
so, listing) public models. A proof that is presented has to hold, also where none is needed.
Every refusal of a proof reads the same to whoever could not have made it, and takes the same
way through here. No proof is logged.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Self

from blindai.channel.tls import check_authorities
from blindai.errors import AccessDenied, ConfigurationError
from blindai.server.access.accounts import Account
from blindai.server.access.certificates import Certificates
from blindai.server.access.jwks import KeySet, parse_key_set
from blindai.server.access.keys import PREFIX, ApiKeys
from blindai.server.access.lockout import Lockout
from blindai.server.access.principal import ALL_SCOPES, OPERATOR, Presented, Principal, Scope
from blindai.server.access.rules import AccessRules
from blindai.server.access.tokens import Tokens, is_jwt

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from blindai.server.access.rules import Issuer

# Tokens are compared by digest, so only guessing is left: 128 bits are out of reach.
MIN_TOKEN_CHARACTERS: Final = 16
_CHANGES: Final = frozenset({Scope.UPLOAD, Scope.DELETE, Scope.ADMIN})
_LOOK_SECONDS: Final = 1.0
_REFUSED: Final = "the token that came does not open this"


class Access:
    """Decides about requests. For one event loop; enter it to keep keys up to date.

    Args:
        token: The operator's: it opens everything, in the operator's namespace.
        rules: What else opens what.
        fetch: Returns what is at an https address, bounded; for key sets.
        reread: Returns the rules as their files are now; `None`: they never change.
        now: Returns seconds since 1970.
        clock: Returns seconds that never go back.

    Raises:
        ConfigurationError: A token that could be guessed, or a file that cannot be used.
    """

    __slots__ = (
        "_accounts",
        "_anonymous",
        "_certificates",
        "_digest",
        "_ended",
        "_key_sets",
        "_keys",
        "_lockout",
        "_now",
        "_open",
        "_operator",
        "_reread",
        "_rules",
        "_stack",
        "_tokens",
    )

    def __init__(
        self,
        token: str,
        rules: AccessRules | None = None,
        *,
        fetch: Callable[[str], bytes] | None = None,
        reread: Callable[[], AccessRules] | None = None,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if len(token) < MIN_TOKEN_CHARACTERS or not token.isascii() or " " in token:
            msg = f"expected a token of {MIN_TOKEN_CHARACTERS} or more ASCII characters, no spaces"
            raise ConfigurationError(msg)
        self._digest = hashlib.sha256(token.encode()).digest()
        self._rules = rules = rules or AccessRules()
        self._reread = reread
        self._now = now
        self._open = rules.open_scopes
        self._anonymous = Principal("anonymous", "", self._open)
        self._operator = Principal("token", "operator", self._allowed(ALL_SCOPES))
        self._accounts = {
            name: Account(quota, clock=clock) for name, quota in rules.tenants.items()
        }
        self._keys = None if rules.api_keys is None else ApiKeys(rules.api_keys)
        self._certificates = Certificates(rules.holders) if rules.holders else None
        issuers = [(issuer, _key_set(issuer, fetch, clock)) for issuer in rules.issuers]
        self._key_sets = {issuer.name: keys for issuer, keys in issuers}
        self._tokens = Tokens(issuers) if issuers else None
        self._lockout = Lockout(clock=clock)
        self._ended = threading.Event()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        for keys in self._key_sets.values():
            self._stack.enter_context(keys)
        if self._keys is not None:
            watch = threading.Thread(target=self._watch, args=(self._keys,), name="blindai-keys")
            watch.start()
            self._stack.callback(watch.join)
            self._stack.callback(self._ended.set)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def tell_changes(self, tell: Callable[[int, str], None]) -> None:
        """Have somebody told which API keys hold; see `ApiKeys.tell_changes`.

        Raises:
            BlindAIError: From `tell`.
        """
        if self._keys is not None:
            self._keys.tell_changes(tell)

    def _watch(self, keys: ApiKeys) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            keys.refresh()

    def read_again(self) -> AccessRules:
        """Read API keys, keys of JWTs, and authorities of certificates again. Slow: for a thread.

        Returns:
            The rules as they would be now. API keys and what was fetched count already.

        Raises:
            ConfigurationError: A file cannot be used.
        """
        if self._keys is not None:
            self._keys.refresh()
        for keys in self._key_sets.values():
            keys.refresh()
        if self._reread is None:
            return self._rules
        found = self._reread()
        for issuer in found.issuers:
            if issuer.keys is not None:
                parse_key_set(issuer.keys)
        if found.client_ca is not None:
            check_authorities(found.client_ca, found.client_crl)
        return found

    def adopt(self, rules: AccessRules) -> None:
        """Go by rules that `read_again` returned."""
        self._rules = rules
        for issuer in rules.issuers:
            if issuer.keys is not None:
                self._key_sets[issuer.name].replace(parse_key_set(issuer.keys))
        if self._tokens is not None:
            self._tokens.forget()

    def admit(self, scope: Scope, presented: Presented) -> Principal:
        """Return who asks, if they may.

        Args:
            scope: What is to be done.
            presented: What the request shows.

        Raises:
            AccessDenied: No proof, or one that does not hold.
            NotPermitted: It holds, and gives no right to this.
            RateLimited: Too many proofs from this address did not hold.
        """
        token = presented.bearer_token
        if token is None and self._certificates is None and scope in self._open:
            return self._anonymous
        principal = self._identify(token, presented)
        if scope in principal.scopes:
            return principal
        if scope in self._open:
            # What anybody may, they may as anybody.
            return self._anonymous
        principal.check(scope)
        return principal

    def _identify(self, token: bytes | None, presented: Presented) -> Principal:
        if token is not None:
            address = presented.peer
            self._lockout.check(address)
            try:
                return self._prove(token)
            except AccessDenied:
                self._lockout.refused(address)
                raise
        if self._certificates is not None:
            certificate = presented.client_certificate
            if certificate is not None:
                return self._hold(certificate, self._certificates)
        return self._anonymous

    def _prove(self, token: bytes) -> Principal:
        """Return whose token this is."""
        if hmac.compare_digest(hashlib.sha256(token).digest(), self._digest):
            return self._operator
        if self._keys is not None and token.startswith(PREFIX):
            key = self._keys.find(token, now=datetime.fromtimestamp(self._now(), UTC))
            return self._principal("key", key.id, key.scopes, key.tenant)
        if self._tokens is not None and is_jwt(token):
            found = self._tokens.verify(token, now=self._now())
            return self._principal("jwt", found.subject, found.scopes, found.tenant)
        raise AccessDenied(_REFUSED)

    def _hold(self, certificate: bytes, certificates: Certificates) -> Principal:
        now = datetime.fromtimestamp(self._now(), UTC)
        holder = certificates.find(certificate, now=now)
        if holder is None:
            return self._anonymous
        return self._principal("certificate", holder.name, holder.scopes, holder.tenant)

    def _principal(
        self, kind: str, subject: str, scopes: frozenset[Scope], tenant: str
    ) -> Principal:
        account = self._accounts.get(tenant)
        if account is None and tenant != OPERATOR:
            msg = "who you are is clear, and your tenant is none of this server's"
            raise AccessDenied(msg)
        if tenant != OPERATOR:
            # It is about all that is sealed here, that of other tenants too.
            scopes -= {Scope.ADMIN}
        return Principal(kind, subject, self._allowed(scopes), tenant, account)

    def _allowed(self, scopes: frozenset[Scope]) -> frozenset[Scope]:
        return scopes if self._rules.uploads else scopes - _CHANGES


def generate_token() -> str:
    """Return a fresh token of 256 random bits."""
    return secrets.token_urlsafe(32)


def _key_set(
    issuer: Issuer, fetch: Callable[[str], bytes] | None, clock: Callable[[], float]
) -> KeySet:
    if issuer.keys is not None:
        try:
            return KeySet(parse_key_set(issuer.keys), clock=clock)
        except ConfigurationError as error:
            msg = f"access.jwt {issuer.name!r}: {error}"
            raise ConfigurationError(msg) from error
    url = issuer.jwks_url
    if fetch is None or url is None:
        msg = f"access.jwt {issuer.name!r}: nothing fetches its keys here; give them as a file"
        raise ConfigurationError(msg)
    return KeySet(fetch=lambda: fetch(url), clock=clock)
