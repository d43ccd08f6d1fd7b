"""What a server's own evidence says of it, for its operator; clients judge for themselves.

Always true: it proves nothing to anybody, as whoever runs the machine can say what they like
in its place; no network is asked: what the evidence carries has to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from blindai.attestation.steps import Steps
from blindai.attestation.trust import VENDOR_ROOTS
from blindai.errors import AttestationError
from blindai.platforms import VERIFIERS

if TYPE_CHECKING:
    from datetime import datetime

    from blindai.attestation.model import Claims, Evidence


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """How a server's evidence looks to a verifier with the vendors' roots.

    Attributes:
        claims: What the hardware said; `None`: not all of the platform's steps pass.
        problem: Why not, in words.
    """

    claims: Claims | None
    problem: str = ""

    @property
    def is_genuine(self) -> bool:
        """Whether all of the platform's steps pass."""
        return self.claims is not None

    @property
    def weaknesses(self) -> frozenset[str]:
        """That a policy would have to tolerate."""
        return frozenset() if self.claims is None else self.claims.weaknesses

    @property
    def not_after(self) -> datetime | None:
        """When what the evidence rests on ends; `None`: never, or not known."""
        return None if self.claims is None else self.claims.not_after


def check_evidence(evidence: Evidence, now: datetime) -> SelfCheck:
    """Look at evidence as a client would, but for the policy."""
    verifier = VERIFIERS.get(evidence.platform)
    if verifier is None:
        return SelfCheck(None, f"no verifier for platform {evidence.platform}")
    try:
        claims = verifier.verify(
            evidence,
            anchors=VENDOR_ROOTS.get(evidence.platform, ()),
            now=now,
            steps=Steps(verifier.STEPS),
        )
    except AttestationError as error:
        return SelfCheck(None, f"{type(error).__name__}: {error}")
    return SelfCheck(claims)
