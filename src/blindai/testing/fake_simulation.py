"""A simulated machine under a key of its own, beside the public one that everybody has."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import cbor2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blindai.attestation.model import Evidence, Platform
from blindai.attestation.trust import Anchor
from blindai.platforms.simulation import MEASUREMENT_SIZE, REPORT_DATA_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping


class FakeSimulation:
    """Signs simulated evidence with a fresh key.

    Attributes:
        platform: `Platform.SIMULATION`.
        anchors: The fresh key's fingerprint; pass it where the vendor's anchors would go.
        now: A moment at which its evidence verifies.
        measurement: What the evidence says is running.

    Example:
        >>> vendor = FakeSimulation()
        >>> vendor.attest(bytes(32)).platform
        <Platform.SIMULATION: 'simulation'>
    """

    platform: Final = Platform.SIMULATION
    now: Final = datetime(2026, 6, 1, 12, tzinfo=UTC)

    def __init__(self, measurement: bytes = b"\x5a" * MEASUREMENT_SIZE) -> None:
        self._key = Ed25519PrivateKey.generate()
        self._public_key = self._key.public_key().public_bytes_raw()
        self.measurement = measurement
        self.anchors: tuple[Anchor, ...] = (
            Anchor(
                "Fake simulation key", hashlib.sha256(self._public_key).digest(), "blindai.testing"
            ),
        )

    def attest(
        self,
        report_data: bytes,
        *,
        issued_at: datetime | None = None,
        fields: Mapping[str, object] | None = None,
    ) -> Evidence:
        """Return evidence that carries `report_data`.

        Args:
            report_data: At most 64 bytes; zeros follow.
            issued_at: When the evidence says it was made; default: `now`.
            fields: Replaces or adds fields of the body before it is signed.
        """
        moment = self.now if issued_at is None else issued_at
        body = {
            "measurement": self.measurement,
            "report_data": report_data.ljust(REPORT_DATA_SIZE, b"\0"),
            "issued_at": int(moment.timestamp()),
        } | dict(fields or {})
        return self.sign(cbor2.dumps(body, canonical=True))

    def sign(self, body: bytes) -> Evidence:
        """Return evidence of any body."""
        return Evidence(
            platform=self.platform,
            body=body,
            attachments={"public_key": self._public_key, "signature": self._key.sign(body)},
        )

    def signed_bytes(self, evidence: Evidence) -> list[range]:
        """Return the ranges of the body of which every flipped bit must be refused: all of it."""
        return [range(len(evidence.body))]
