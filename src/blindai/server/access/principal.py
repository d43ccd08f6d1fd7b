"""Who asks, and what they may do.

Always true: a principal is made only where a proof was checked; `ANONYMOUS` is the one that
needs none. What is not among its scopes is refused.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from blindai.errors import AccessDenied, InvalidInput, NotPermitted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from blindai.server.access.accounts import Account

OPERATOR: Final = ""
"""The namespace of the operator, whose models may be public; every other is a tenant's."""


class Scope(StrEnum):
    """A kind of thing to do."""

    RUN = "run"
    UPLOAD = "upload"
    DELETE = "delete"
    LIST = "list"
    ADMIN = "admin"

    # An enumeration's own is Python, and is called for each request.
    __hash__ = str.__hash__


ALL_SCOPES: Final = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody whose proof was checked, or nobody in particular.

    Attributes:
        kind: Of the proof: "anonymous", "token", "key", "jwt" or "certificate".
        subject: Whom the proof is of: the id of a key, the subject of a JWT, the name of a holder.
        scopes: What they may do.
        tenant: Whose models they use; `OPERATOR`: the operator's.
        account: Counts what they use; `None`: nobody counts.
    """

    kind: str
    subject: str
    scopes: frozenset[Scope]
    tenant: str = OPERATOR
    account: Account | None = field(default=None, compare=False, repr=False)

    @property
    def is_anonymous(self) -> bool:
        """Whether nothing was proved."""
        return self.kind == "anonymous"

    def counted_run(self) -> contextlib.AbstractContextManager[None]:
        """Return what counts a run of theirs while its block is entered.

        Entering raises RateLimited: Too many of their tenant's.
        """
        return contextlib.nullcontext() if self.account is None else self.account.run()

    def check(self, scope: Scope) -> None:
        """Refuse who has no right.

        Raises:
            AccessDenied: Nothing was proved, and the scope is not for everybody.
            NotPermitted: The scope is not among theirs.
        """
        if scope not in self.scopes:
            if self.is_anonymous:
                msg = f"expected a token to {scope}: Authorization: Bearer TOKEN; came none"
                raise AccessDenied(msg)
            msg = f"who you are is clear, and it gives no right to {scope}"
            raise NotPermitted(msg)


NOBODY: Final = Principal("anonymous", "", frozenset())


class Presented(Protocol):
    """What a request shows of who sent it; looked at only as far as needed."""

    @property
    def bearer_token(self) -> bytes | None:
        """The token in its Authorization header."""
        ...

    @property
    def peer(self) -> str:
        """The address that it comes from, or that of a proxy on the way."""
        ...

    @property
    def client_certificate(self) -> bytes | None:
        """The certificate of its connection, as DER, whose chain TLS has verified."""
        ...


def parse_scopes(names: Iterable[str]) -> frozenset[Scope]:
    """Read names of scopes.

    Raises:
        InvalidInput: One that there is not.
    """
    try:
        return frozenset(map(Scope, names))
    except ValueError:
        msg = f"expected scopes out of {', '.join(Scope)}, came another"
        raise InvalidInput(msg) from None
