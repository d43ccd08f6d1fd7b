"""What a server's own evidence says, read as a client would read it: for people, not for trust.

Always true: a server that lies about itself lies here too. The hardware's part is verified
with the same code and the same pinned roots as at a client's, with the endorsements that are at
hand; where that fails, the reason is shown instead.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from blindai.attestation import wire
from blindai.attestation.steps import Steps
from blindai.attestation.trust import VENDOR_ROOTS, Anchors
from blindai.errors import AttestationError, EvidenceError
from blindai.platforms import VERIFIERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from blindai.attestation.model import Claims
    from blindai.server.identity import EvidenceDesk


@dataclass(frozen=True, slots=True)
class OwnEvidence:
    """What a server's evidence says.

    Attributes:
        claims: Of the machine; `None`: it could not be verified here.
        problem: Why not, in words; "" if it could.
        devices: GPUs whose evidence is shown beside the machine's.
    """

    claims: Claims | None
    problem: str = ""
    devices: int = 0


def read_evidence(content: bytes, *, now: datetime, anchors: Anchors = VENDOR_ROOTS) -> OwnEvidence:
    """Return what evidence says. May take long: not for an event loop.

    Args:
        content: A bundle in wire form.
        now: The moment to verify at, with a time zone.
        anchors: The vendors' roots that count.
    """
    try:
        bundle = wire.parse_bundle(content)
        verifier = VERIFIERS.get(bundle.evidence.platform)
        if verifier is None:
            msg = f"no verifier for platform {bundle.evidence.platform}"
            raise EvidenceError(msg)
        claims = verifier.verify(
            bundle.evidence,
            anchors=anchors.get(bundle.evidence.platform, ()),
            now=now,
            steps=Steps(verifier.STEPS),
        )
    except AttestationError as error:
        return OwnEvidence(None, f"{type(error).__name__}: {error}")
    return OwnEvidence(claims, devices=len(bundle.devices))


class EvidenceReader:
    """Reads the evidence of a desk, once each time that it is made anew. For one event loop.

    Args:
        desk: Hands it out.
        now: Returns the time, with a time zone.
    """

    def __init__(self, desk: EvidenceDesk, *, now: Callable[[], datetime] | None = None) -> None:
        self._desk = desk
        self._now = now or (lambda: datetime.now(UTC))
        self._read: tuple[bytes, OwnEvidence] | None = None
        self._reading = asyncio.Lock()

    async def current(self) -> OwnEvidence:
        """Return what the evidence says that is handed out without a nonce."""
        content = await self._desk.cached()
        async with self._reading:
            if self._read is None or self._read[0] is not content:
                found = await asyncio.to_thread(read_evidence, content, now=self._now())
                self._read = (content, found)
            return self._read[1]
