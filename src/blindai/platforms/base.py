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

    STEPS: Sequence[StepName]

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
