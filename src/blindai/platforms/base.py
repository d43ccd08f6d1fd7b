"""What a platform's verifier is: Evidence in, Claims out, nothing else touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from blindai.attestation.model import Claims, Evidence
    from blindai.attestation.steps import StepName, Steps
    from blindai.attestation.trust import Anchor


class Verifier(Protocol):
    """A module of `blindai.platforms`.

    `verify` is pure: no network, no clock, no environment. It raises `EvidenceError`,
    `SignatureError` or `EndorsementError` and nothing else, whatever the bytes; and it makes
    claims only of bytes that it found authentic.
    """

    @property
    def STEPS(self) -> Sequence[StepName]:  # noqa: N802 - a constant of a module
        """The steps that `verify` takes, in order."""
        ...

    def verify(
        self, evidence: Evidence, *, anchors: Sequence[Anchor], now: datetime, steps: Steps
    ) -> Claims:
        """Return what genuine hardware said.

        Args:
            evidence: Untrusted.
            anchors: The roots that count for this platform.
            now: The moment to verify at, with a time zone.
            steps: Takes down each of `STEPS`.

        Raises:
            EvidenceError: If it is malformed or of an unsupported version.
            SignatureError: If it is not signed by hardware of the vendor.
            EndorsementError: If collateral is missing, out of date or says revoked.
        """
        ...


class Assembler(Protocol):
    """Makes evidence of files as they lie on a disk."""

    def __call__(self, body: bytes, extras: Sequence[bytes], /) -> tuple[Evidence, list[int]]:
        """Return the evidence, and the indexes of `extras` that it does not need.

        Args:
            body: The quote, report or document, as bytes or as hexadecimal text.
            extras: Certificates, collateral, revocation lists, event logs, in any order.

        Raises:
            EvidenceError: If `body` is no evidence of the platform.
        """
        ...
