"""What the operator set about access: fixed before the server starts.

`AccessRules.statement()` is what a client can pin of it, through the server's configuration
digest in the attested keyset. Rates and quotas protect the server and are not in it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from blindai.errors import ConfigurationError
from blindai.server.access.principal import OPERATOR, Scope
from blindai.server.limits import check_positive

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TENANT: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")
MAX_LEEWAY: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What one tenant may use. All greater than zero.

    Attributes:
        max_models: Names of models.
        max_bytes: All its models together.
        max_uploads: Uploads under way.
        max_runs: Runs under way or waiting.
        rate: Runs and uploads per second, in the long run.
        burst: Runs and uploads that may come at once.
    """

    max_models: int = 16
    max_bytes: int = 1 << 30
    max_uploads: int = 2
    max_runs: int = 64
    rate: float = 100.0
    burst: int = 200

    def __post_init__(self) -> None:
        check_positive(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """Somebody whose JWTs are accepted.

    Attributes:
        name: What their tokens say as "iss".
        audience: What their tokens have to be for ("aud").
        keys: Public keys, as a JWKS or as PEM; `None`: from `jwks_url`.
        jwks_url: Where their keys are fetched from, by https.
        tenant_claim: The claim that names the tenant, where `tenant` is `None`.
        tenant: Of all its tokens; `OPERATOR`: they use the operator's models.
        scopes: The most that its tokens can give.
        leeway: Seconds that its clock and ours may differ.
        max_lifetime: Seconds from now to the end of a token, at most.
    """

    name: str
    audience: str
    keys: bytes | None = None
    jwks_url: str | None = None
    tenant_claim: str = "tenant"
    tenant: str | None = None
    scopes: frozenset[Scope] = frozenset({Scope.RUN, Scope.LIST})
    leeway: float = 30.0
    max_lifetime: float = 86_400.0

    def __post_init__(self) -> None:
        if not self.name or not self.audience:
            msg = "access.jwt: expected an issuer and an audience"
            raise ConfigurationError(msg)
        if (self.keys is None) == (self.jwks_url is None):
            msg = f"access.jwt {self.name!r}: expected either keys or jwks_url"
            raise ConfigurationError(msg)
        if self.jwks_url is not None and not self.jwks_url.startswith("https://"):
            msg = f"access.jwt {self.name!r}: expected a jwks_url that begins with https://"
            raise ConfigurationError(msg)
        if not 0 <= self.leeway <= MAX_LEEWAY or not self.max_lifetime > 0:
            msg = f"access.jwt {self.name!r}: expected leeway from 0 to {MAX_LEEWAY:g} seconds"
            raise ConfigurationError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who is let in with a client certificate.

    Attributes:
        name: As the certificate has it: a DNS name, URI or e-mail address among its
            alternative names; where it has none of these, its common name.
        tenant: Whose models they use.
        scopes: What they may do.
    """

    name: str
    tenant: str = OPERATOR
    scopes: frozenset[Scope] = frozenset({Scope.RUN, Scope.LIST})


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRules:
    """Who may do what.

    Attributes:
        public: Names of the operator's models that anybody may run; `None`: all of them.
        listed: Whether anybody may list those.
        uploads: Whether anybody at all may upload, delete or hand over models.
        api_keys: File of API keys; read again when it changes.
        issuers: Of JWTs.
        client_ca: Certificates that client certificates have to lead to, as PEM.
        client_crl: Lists of revoked client certificates, as PEM.
        holders: Of client certificates.
        tenants: Name → quota. No other tenants exist.
        files: That certificates and keys were read from, beside `api_keys`.
    """

    public: frozenset[str] | None = None
    listed: bool = True
    uploads: bool = True
    api_keys: Path | None = None
    issuers: tuple[Issuer, ...] = ()
    client_ca: bytes | None = None
    client_crl: bytes | None = None
    holders: tuple[Holder, ...] = ()
    tenants: Mapping[str, Quota] = field(default_factory=dict)
    files: tuple[Path, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for name in self.tenants:
            if not TENANT.fullmatch(name):
                msg = "access.tenants: expected names of 1 to 64 letters a-z, digits and '-', came "
                raise ConfigurationError(msg + repr(name[:80]))
        named = [holder.tenant for holder in self.holders]
        named += [issuer.tenant for issuer in self.issuers if issuer.tenant]
        for name in named:
            if name != OPERATOR and name not in self.tenants:
                msg = f"expected a tenant of access.tenants, came {name[:80]!r}"
                raise ConfigurationError(msg)
        issuers = [issuer.name for issuer in self.issuers]
        holders = [holder.name for holder in self.holders]
        if len(set(issuers)) < len(issuers) or len(set(holders)) < len(holders):
            msg = "access: expected each issuer and each certificate once, came one twice"
            raise ConfigurationError(msg)
        if (self.holders or self.client_crl) and self.client_ca is None:
            msg = "access: expected client_ca beside certificates and client_crl"
            raise ConfigurationError(msg)

    @property
    def open_scopes(self) -> frozenset[Scope]:
        """What needs no proof, as far as public models go."""
        return frozenset({Scope.RUN, Scope.LIST} if self.listed else {Scope.RUN})

    def is_public(self, name: str) -> bool:
        """Return whether anybody may run the operator's model of this name."""
        return self.public is None or name in self.public

    def statement(self) -> dict[str, object]:
        """Return what a client may want to know of this, for the configuration's digest."""
        return {
            "public": None if self.public is None else sorted(self.public),
            "listed": self.listed,
            "uploads": self.uploads,
            "keys": self.api_keys is not None,
            "jwt": [_describe(issuer) for issuer in sorted(self.issuers, key=lambda i: i.name)],
            "client_ca": _digest(self.client_ca),
            "client_crl": self.client_crl is not None,
            "holders": [
                [holder.name, holder.tenant, sorted(holder.scopes)]
                for holder in sorted(self.holders, key=lambda holder: holder.name)
            ],
            "tenants": sorted(self.tenants),
        }


def _describe(issuer: Issuer) -> list[object]:
    return [
        issuer.name,
        issuer.audience,
        _digest(issuer.keys),
        issuer.jwks_url,
        issuer.tenant_claim,
        issuer.tenant,
        sorted(issuer.scopes),
        issuer.leeway,
        issuer.max_lifetime,
    ]


def _digest(content: bytes | None) -> bytes | None:
    return None if content is None else hashlib.sha256(content).digest()
