"""Make evidence of no hardware at all, for machines without a TEE.

The private key stands below, for everybody to read: whoever wants to pretend to be a
simulated server may do so. It must never be mistaken for the real thing.
"""

from __future__ import annotations

import hashlib
import time
from importlib import resources
from typing import TYPE_CHECKING, Final

import cbor2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blindai.attestation.binding import BINDING_SIZE
from blindai.attestation.model import Evidence, Platform
from blindai.errors import ConfigurationError, SealedDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from importlib.resources.abc import Traversable

PUBLIC_KNOWLEDGE_KEY: Final = Ed25519PrivateKey.from_private_bytes(
    hashlib.sha256(b"blindai simulation key: public, proves nothing").digest()
)
_REPORT_DATA_SIZE: Final = 64
_HANDOVER: Final = b"SIMULATED handover, in clear\n"


class SimulationAttester:
    """Produces simulated evidence.

    Args:
        clock: Returns Unix seconds; a parameter for tests.
    """

    platform = Platform.SIMULATION

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._measurement = source_digest()

    def attest(self, report_data: bytes) -> Evidence:
        """Return evidence that carries the 32 bytes of `report_data`."""
        if len(report_data) != BINDING_SIZE:
            msg = f"expected {BINDING_SIZE} bytes to attest, found {len(report_data)}"
            raise ConfigurationError(msg)
        body = cbor2.dumps(
            {
                "measurement": self._measurement,
                "report_data": report_data.ljust(_REPORT_DATA_SIZE, b"\0"),
                "issued_at": int(self._clock()),
            },
            canonical=True,
        )
        return Evidence(
            platform=self.platform,
            body=body,
            attachments={
                "public_key": PUBLIC_KNOWLEDGE_KEY.public_key().public_bytes_raw(),
                "signature": PUBLIC_KNOWLEDGE_KEY.sign(body),
            },
        )

    def sealing_key(self) -> bytes | None:
        """Return `None`: nothing here could keep a key from the machine's owner."""
        return None

    def seal_for_successor(self, secret: bytes, measurements: Mapping[str, bytes]) -> bytes:
        """Return `secret` beside the measurement of other code, which any code could read.

        Raises:
            ConfigurationError: Anything but one measurement of 32 bytes.
        """
        other = measurements.get("measurement", b"")
        if len(measurements) != 1 or len(other) != len(self._measurement):
            came = ", ".join(sorted(measurements))[:200] or "none"
            msg = f"expected one measurement of {len(self._measurement)} bytes, came {came}"
            raise ConfigurationError(msg)
        return b"".join((_HANDOVER, other, secret))

    def open_from_predecessor(self, blob: bytes) -> bytes:
        """Return the secret that the code before left for the code that runs now.

        Raises:
            SealedDataError: It was left for other code, or changed.
        """
        start = len(_HANDOVER) + len(self._measurement)
        if not blob.startswith(_HANDOVER) or len(blob) <= start:
            msg = "what the code before left for its successor was changed"
            raise SealedDataError(msg)
        if blob[len(_HANDOVER) : start] != self._measurement:
            msg = "what the code before left is for other code: this one was measured otherwise"
            raise SealedDataError(msg)
        return blob[start:]

    def rollback_counter(self) -> None:
        """Return `None`: nothing here could count where the machine's owner cannot reach."""
        return


def source_digest() -> bytes:
    """Return SHA-256 over the installed package's Python sources: a stand-in measurement."""
    digest = hashlib.sha256()
    for name, file in sorted(_sources(resources.files("blindai"), "")):
        content = file.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.digest()


def _sources(folder: Traversable, prefix: str) -> list[tuple[str, Traversable]]:
    found = []
    for entry in folder.iterdir():
        name = f"{prefix}{entry.name}"
        if entry.is_dir() and entry.name != "__pycache__":
            found += _sources(entry, f"{name}/")
        elif entry.name.endswith(".py"):
            found.append((name, entry))
    return found
