"""What a vendor's module is: it knows what evidence lacks, and judges nothing. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from blindai.attestation.model import Evidence
    from blindai.endorsements.lifetime import Lifetime
    from blindai.endorsements.request import Answer, Want
    from blindai.endorsements.settings import EndorsementSettings


class Vendor(Protocol):
    """A module that knows what a vendor says about evidence. Pure, and judges nothing."""

    def plan(
        self, evidence: Evidence, settings: EndorsementSettings, now: datetime
    ) -> tuple[Want, ...]:
        """Return what is missing in the evidence or not current at `now`, in order.

        Raises:
            AttestationError: If the evidence is malformed.
        """
        ...

    def attach(
        self, evidence: Evidence, want: Want, answers: Sequence[Answer], now: datetime
    ) -> Evidence:
        """Return the evidence with the answers to one option of `want`.

        Raises:
            EvidenceError: If an answer is malformed.
            EndorsementError: If it is about something else.
        """
        ...

    def lifetimes(self, evidence: Evidence, now: datetime) -> Mapping[str, Lifetime]:
        """Return how long each endorsement that the evidence carries holds, by attachment.

        Raises:
            AttestationError: If the evidence is malformed.
        """
        ...
