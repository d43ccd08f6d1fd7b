"""Which vendor endorses which platform. Pure, and the one explicit list.

A vendor's module says what a piece of evidence lacks (`plan`), puts answers into it
(`attach`), and says how long what it carries holds (`lifetimes`). Nitro, a TPM and simulation
are not listed: what verifies them comes with their evidence, or is a root that is pinned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blindai.attestation.model import Platform
from blindai.endorsements import amd, azure, intel, nvidia
from blindai.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from blindai.attestation.model import Evidence
    from blindai.endorsements.base import Vendor
    from blindai.endorsements.lifetime import Lifetime
    from blindai.endorsements.request import Answer, Want
    from blindai.endorsements.settings import EndorsementSettings


VENDORS: Final[dict[Platform, Vendor]] = {
    Platform.SEV_SNP: amd,
    Platform.SGX: intel,
    Platform.TDX: intel,
    Platform.AZURE_VTPM: azure,
    Platform.NVIDIA_GPU: nvidia,
}


def plan(evidence: Evidence, settings: EndorsementSettings, now: datetime) -> tuple[Want, ...]:
    """Return what is missing in the evidence or not current at `now`.

    More may be missing once that is attached: which revocation list is needed, a
    certificate says.

    Args:
        evidence: Untrusted.
        settings: Where endorsements are.
        now: The moment at which they have to be current.

    Raises:
        AttestationError: If the evidence is malformed.
    """
    vendor = VENDORS.get(evidence.platform)
    return () if vendor is None else vendor.plan(evidence, settings, now)


def attach(evidence: Evidence, want: Want, answers: Sequence[Answer], now: datetime) -> Evidence:
    """Return the evidence with the answers to one option of `want` attached.

    Args:
        evidence: As it was planned for.
        want: One of `plan`.
        answers: One for each request of an option, in order. Untrusted.
        now: Decides which of several issuers of one name is meant.

    Raises:
        EvidenceError: If an answer is malformed.
        EndorsementError: If it is about something else.
    """
    vendor = VENDORS.get(evidence.platform)
    if vendor is None:
        msg = f"nothing is fetched for {evidence.platform}"
        raise ConfigurationError(msg)
    return vendor.attach(evidence, want, answers, now)


def lifetimes(evidence: Evidence, now: datetime) -> Mapping[str, Lifetime]:
    """Return how long each endorsement that the evidence carries holds, by attachment.

    Raises:
        AttestationError: If the evidence is malformed.
    """
    vendor = VENDORS.get(evidence.platform)
    return {} if vendor is None else vendor.lifetimes(evidence, now)
