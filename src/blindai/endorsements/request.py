"""What is asked of a vendor's service, what comes back, and what a piece of evidence lacks.

Pure: nothing here fetches. `Get` is the one seam to the network; `https` has the one
implementation that leaves the machine, and a test, a proxy or an air gap brings another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from blindai.platforms.dcap.collateral import Answer

__all__ = [
    "MAX_ANSWER_BYTES",
    "Answer",
    "Get",
    "Kind",
    "Request",
    "Source",
    "Want",
    "origin_of",
    "worst",
]

MAX_ANSWER_BYTES: Final = 4 << 20


class Kind(StrEnum):
    """What an answer has to be: how its lifetime is read, and whether a newer one may follow."""

    CERTIFICATES = "certificates"
    CRL = "crl"
    TCB_INFO = "tcb-info"
    QE_IDENTITY = "qe-identity"
    OCSP = "ocsp"
    RIM = "rim"

    @property
    def superseded(self) -> bool:
        """Whether the vendor may say something else before this expires."""
        return self not in {Kind.CERTIFICATES, Kind.RIM}


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a vendor.

    Attributes:
        url: Where; https only.
        kind: What the answer has to be.
        body: What to POST; `None` for a GET. Only OCSP has one.
    """

    url: str
    kind: Kind
    body: bytes | None = None

    @property
    def origin(self) -> str:
        """The address without path and query: what an error may name."""
        return origin_of(self.url)


def origin_of(url: str) -> str:
    """Return an address without path and query."""
    return "/".join(url.split("/", 3)[:3])


Get = Callable[[Request], Answer]
"""Returns the answer to a request, or raises `ConnectionFailed` where a retry may help, and
`EndorsementError` where it does not."""


class Source(StrEnum):
    """Where an endorsement came from; from the best to the weakest."""

    STAPLED = "stapled"
    FETCHED = "fetched"
    CACHED = "cached"
    STAPLED_STALE = "stapled-stale"
    CACHED_STALE = "cached-stale"


@dataclass(frozen=True, slots=True)
class Want:
    """An attachment that evidence lacks, and how to come by it.

    Attributes:
        attachment: Its name.
        options: Sets of requests. Any one set that is answered in full is enough.
    """

    attachment: str
    options: tuple[tuple[Request, ...], ...]


def worst(sources: list[Source]) -> Source:
    """Return the weakest of some sources."""
    return max(sources, key=list(Source).index)
