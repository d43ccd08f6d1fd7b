"""Look at a server without having a policy yet, to write one."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from blindai.attestation.binding import NONCE_SIZE
from blindai.attestation.draft import draft_policy
from blindai.attestation.steps import Steps
from blindai.attestation.trust import VENDOR_ROOTS, Anchors
from blindai.client.session import Session
from blindai.endorsements import Endorser, HttpsGet
from blindai.errors import EvidenceError
from blindai.platforms import VERIFIERS
from blindai.verify import verify

if TYPE_CHECKING:
    from blindai.attestation.model import Claims, Evidence
    from blindai.attestation.policy import Policy


def draft_from_server(
    address: str, *, proxy: str | None = None, anchors: Anchors = VENDOR_ROOTS
) -> Policy:
    """Return the policy that accepts exactly what a server shows now.

    The server is verified with it: the hardware is genuine, and bound to the connection and
    to a fresh nonce. Whether its code is good is what nobody has looked at.

    Args:
        address: "host:port" of the attested port.
        proxy: "http://host:port", or `None`.
        anchors: The vendors' roots that count.

    Raises:
        AttestationError: If what it shows is not genuine.
        ConnectionFailed: If it cannot be reached.
    """
    nonce = secrets.token_bytes(NONCE_SIZE)
    bundle, peer = Session(address, None, proxy=proxy).fetch_evidence(nonce)
    completed = Endorser(get=HttpsGet()).complete(bundle, datetime.now(UTC))
    now = datetime.now(UTC)
    policy = draft_policy([_authentic(e, now, anchors) for e in completed.evidence])
    verify(
        completed.bundle,
        policy,
        nonce=nonce,
        now=now,
        peer_certificate=peer,
        anchors=anchors,
        # At the present: a draft does not tolerate what is stale.
        endorsed=replace(completed.endorsed, at=None, devices_at=()),
    )
    return policy


def _authentic(evidence: Evidence, now: datetime, anchors: Anchors) -> Claims:
    verifier = VERIFIERS.get(evidence.platform)
    if verifier is None:
        msg = f"no verifier for platform {evidence.platform}"
        raise EvidenceError(msg)
    roots = anchors.get(evidence.platform, ())
    return verifier.verify(evidence, anchors=roots, now=now, steps=Steps(verifier.STEPS))
