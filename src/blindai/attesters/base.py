"""What an attester is, and what looking for its hardware can find."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from blindai.attestation.binding import BINDING_SIZE
from blindai.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blindai.attestation.model import Evidence, Platform


class Counter(Protocol):
    """Counts up, never down, where the owner of the machine's disk cannot reach."""

    @property
    def is_new(self) -> bool:
        """Whether it was made just now, so that its value means nothing yet."""
        ...

    def read(self) -> int:
        """Return its value."""
        ...

    def advance(self) -> int:
        """Add 1, for good, and return the new value."""
        ...


class Attester(Protocol):
    """Makes evidence on one platform.

    All attesters are safe to use from several threads. They raise `ConfigurationError` where
    the hardware is not there or may not be used, `Overloaded` where it may answer later, and
    `EvidenceError` where what it answers makes no sense.
    """

    @property
    def platform(self) -> Platform:
        """Where this runs."""
        ...

    def attest(self, report_data: bytes) -> Evidence:
        """Return fresh evidence that carries the 32 bytes of `report_data`."""
        ...

    def sealing_key(self) -> bytes | None:
        """Return 32 bytes that only this code on this machine gets; `None`: there are none."""
        ...

    def rollback_counter(self) -> Counter | None:
        """Return a counter that only goes up; `None`: this platform has none."""
        ...


@runtime_checkable
class Succeeded(Protocol):
    """An attester whose code can leave a secret for the code that runs after it."""

    def seal_for_successor(self, secret: bytes, measurements: Mapping[str, bytes]) -> bytes:
        """Return `secret` in a form that only code with these measurements opens, here."""
        ...

    def open_from_predecessor(self, blob: bytes) -> bytes:
        """Return the secret that the code before sealed for the code that runs now."""
        ...


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the trusted hardware of a machine is reached.

    Attributes:
        root: Folder that stands for `/`: every device and kernel file is below it.
        tpm: TCTI of the TPM, as tpm2-tss names them ("device:/dev/tpmrm0",
            "swtpm:host=127.0.0.1,port=2321"); `None`: the kernel's resource manager.
        ak_certificates: PEM of the TPM attestation key's certificate and its chain, from
            whoever enrolled this TPM; `None`: the key is known by its digest only.
    """

    root: Path = Path("/")
    tpm: str | None = None
    ak_certificates: Path | None = None

    @property
    def tcti(self) -> str:
        """TCTI of the TPM."""
        return self.tpm or f"device:{self.root / 'dev/tpmrm0'}"

    @property
    def event_log(self) -> Path:
        """The firmware's event log (Linux, securityfs)."""
        return self.root / "sys/kernel/security/tpm0/binary_bios_measurements"

    @property
    def tsm(self) -> Path:
        """Folder of report entries (Linux, configfs-tsm)."""
        return self.root / "sys/kernel/config/tsm/report"

    @property
    def sev_guest(self) -> Path:
        """Device that derives keys in an SEV-SNP guest."""
        return self.root / "dev/sev-guest"

    @property
    def nsm(self) -> Path:
        """Device of the Nitro Security Module."""
        return self.root / "dev/nsm"

    @property
    def gramine(self) -> Path:
        """Folder through which Gramine attests an SGX enclave."""
        return self.root / "dev/attestation"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a look for one platform's hardware found.

    Attributes:
        platform: Which one.
        available: Whether it can be used here.
        looked_for: What was looked for, and where.
        found: What was there.
        advice: How to get what is missing; empty where nothing is.
        details: Firmware versions and the like, by name, as far as they can be read.
    """

    platform: Platform
    available: bool
    looked_for: str
    found: str
    advice: str = ""
    details: Mapping[str, str] = field(default_factory=dict)


def check_binding(report_data: bytes) -> None:
    """Refuse anything but 32 bytes to attest."""
    if len(report_data) != BINDING_SIZE:
        msg = f"expected {BINDING_SIZE} bytes to attest, found {len(report_data)}"
        raise ConfigurationError(msg)
