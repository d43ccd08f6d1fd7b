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

    from blindai.attestation.model import Evidence


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """How a server's evidence looks to a verifier with the vendors' roots.

    Attributes:
        is_genuine: Whether all of the platform's steps pass.
        weaknesses: That a policy would have to tolerate.
        not_after: When what the evidence rests on ends; `None`: never, or not known.
    """

    is_genuine: bool
    weaknesses: frozenset[str] = frozenset()
    not_after: datetime | None = None


def check_evidence(evidence: Evidence, now: datetime) -> SelfCheck:
    """Look at evidence as a client would, but for the policy."""
    verifier = VERIFIERS.get(evidence.platform)
    if verifier is None:
        return SelfCheck(is_genuine=False)
    try:
        claims = verifier.verify(
            evidence,
            anchors=VENDOR_ROOTS.get(evidence.platform, ()),
            now=now,
            steps=Steps(verifier.STEPS),
        )
    except AttestationError:
        return SelfCheck(is_genuine=False)
    return SelfCheck(is_genuine=True, weaknesses=claims.weaknesses, not_after=claims.not_after)
