"""Evidence of no hardware at all: signed by a key whose private half is public.

It exercises every step that real evidence goes through, and its claims always carry the
weakness "simulated", so only a policy that names simulation accepts it.

The body is deterministic CBOR of {"measurement": 32 bytes, "report_data": 64 bytes,
"issued_at": Unix seconds}; the attachment "signature" is Ed25519 over the body, the
attachment "public_key" the raw key.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from blindai.attestation.model import Claims, Evidence, Platform
from blindai.attestation.steps import StepName, Steps
from blindai.attestation.wire import load_cbor
from blindai.errors import EvidenceError, SignatureError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blindai.attestation.trust import Anchor

STEPS: Final = (
    StepName("format", "The evidence has the form of simulated evidence"),
    StepName("root", "The key is the public simulation key"),
    StepName("signature", "The evidence is signed by that key, as anybody could sign it"),
)
MEASUREMENT_SIZE: Final = 32
REPORT_DATA_SIZE: Final = 64
_MAX_BODY: Final = 1024
_MAX_TIME: Final = 253_402_300_799  # 9999-12-31, the last second that datetime can hold


def verify(evidence: Evidence, *, anchors: Sequence[Anchor], now: datetime, steps: Steps) -> Claims:
    """Return the claims of simulated evidence; see `blindai.platforms.base.Verifier`."""
    del now  # nothing here expires: the signature proves nothing at any time
    with steps.take("format"):
        claims = _parse(evidence.body)
        key = evidence.attachments.get("public_key", b"")
        signature = evidence.attachments.get("signature", b"")
    with steps.take("root") as step:
        found = hashlib.sha256(key).digest()
        if not any(step.compare("public key", expected=a.sha256, found=found) for a in anchors):
            msg = "simulated evidence is signed by an unknown key"
            raise SignatureError(msg)
    with steps.take("signature"):
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, evidence.body)
        except (InvalidSignature, ValueError) as error:
            msg = "the signature of the simulated evidence is wrong"
            raise SignatureError(msg) from error
    return claims


def _parse(body: bytes) -> Claims:
    document = load_cbor(body, "simulated evidence", at_most=_MAX_BODY)
    if not isinstance(document, dict) or set(document) != {
        "measurement",
        "report_data",
        "issued_at",
    }:
        msg = "simulated evidence: expected exactly measurement, report_data and issued_at"
        raise EvidenceError(msg)
    for name, size in (("measurement", MEASUREMENT_SIZE), ("report_data", REPORT_DATA_SIZE)):
        if not isinstance(document[name], bytes) or len(document[name]) != size:
            msg = f"simulated evidence: {name} has to be {size} bytes"
            raise EvidenceError(msg)
    issued_at = document["issued_at"]
    if type(issued_at) is not int or not 0 <= issued_at <= _MAX_TIME:
        msg = "simulated evidence: issued_at has to be Unix seconds"
        raise EvidenceError(msg)
    return Claims(
        platform=Platform.SIMULATION,
        measurements={"measurement": document["measurement"]},
        versions={},
        weaknesses=frozenset({"simulated"}),
        report_data=document["report_data"],
        issued_at=datetime.fromtimestamp(issued_at, UTC),
    )
