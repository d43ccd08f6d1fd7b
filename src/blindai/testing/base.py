"""What a fake vendor is: a root of trust of one's own, under which evidence is genuine.

The format, the chain and every signature are those of the real platform; only the root
differs, and it counts only where its `anchors` are passed to the verifier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from blindai.attestation.model import Evidence, Platform
    from blindai.attestation.trust import Anchor


class FakeVendor(Protocol):
    """A vendor whose private keys a test holds.

    Platforms without a debug mode or without revocation leave that argument of `attest` out.
    """

    @property
    def platform(self) -> Platform:
        """Whose evidence this makes."""
        ...

    @property
    def anchors(self) -> Sequence[Anchor]:
        """The fake roots; pass them where the vendor's would go."""
        ...

    @property
    def now(self) -> datetime:
        """A moment at which the evidence verifies."""
        ...

    def attest(self, report_data: bytes, *, issued_at: datetime | None = None) -> Evidence:
        """Return genuine evidence that carries the 32 bytes of `report_data`.

        Args:
            report_data: What the hardware signs along.
            issued_at: When it signed; default: `now`.
        """
        ...

    def signed_bytes(self, evidence: Evidence) -> Sequence[range]:
        """Return the ranges of `evidence.body` of which every flipped bit must be refused."""
        ...
