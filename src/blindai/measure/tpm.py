"""PCRs of a machine image under OVMF: computed where they can be, golden where they were seen.

- PCR 4: the kernel as an EFI application. PCR 9: command line and initrd. Both computed, and the
  root image with them, whose root hash the command line holds.
- PCR 2, 3, 5, 6, 7: computed, for a machine without option ROMs, without a GPT, and without
  Secure Boot: nothing but what the firmware always measures there.
- PCR 0 and 1: the firmware and its configuration; golden, from a boot that somebody trusted.

Specification: TCG PC Client Platform Firmware Profile (PFP) 1.06 §3.3.4 and §10.4.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from blindai.attestation.model import Platform
from blindai.errors import ConfigurationError
from blindai.measure.kernel import as_qemu_loads, authenticode, extend, load_options
from blindai.measure.prediction import Measured, Prediction, Unpredicted
from blindai.platforms.tpm.eventlog import parse_event_log, replay

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from blindai.measure.image import MachineImage

BANK: Final = "sha256"
GOLDEN_REGISTERS: Final = ("pcr0", "pcr1")
DEFAULT_MEMORY: Final = 2 << 30
SEPARATOR: Final = bytes(4)
BOOT_CALLS: Final = b"Calling EFI Application from Boot Option"
BOOT_EXITS: Final = (b"Exit Boot Services Invocation", b"Exit Boot Services Returned with Success")
_GLOBAL: Final = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
_SECURITY: Final = bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f")
# Variables of PCR 7 in the order of PFP §3.3.4.8.
_SECURE_BOOT: Final = (
    *((_GLOBAL, name) for name in ("SecureBoot", "PK", "KEK")),
    *((_SECURITY, name) for name in ("db", "dbx")),
)
_WHY_GOLDEN: Final = "depends on the firmware and the hypervisor: give --golden or --firmware"


@dataclass(frozen=True, slots=True)
class Golden:
    """Registers that were seen at a boot that somebody trusted.

    Attributes:
        values: Name → what was seen.
        how: Where and when.
    """

    values: Mapping[str, bytes]
    how: str


def measure_tpm(
    image: MachineImage, *, memory: int = DEFAULT_MEMORY, golden: Golden | None = None
) -> Measured:
    """Predict the PCRs of a boot with OVMF, kernel and initrd given to QEMU directly.

    Args:
        image: What is booted.
        memory: Of the machine, in bytes.
        golden: What cannot be computed.

    Raises:
        ConfigurationError: If the kernel is none that can be booted so.
    """
    seen = golden or Golden({}, "")
    separated = extend(BANK, _digest(SEPARATOR))
    exits = extend(BANK, _digest(SEPARATOR), *map(_digest, BOOT_EXITS))
    lines = (
        *(_golden(name, seen) for name in GOLDEN_REGISTERS if name in seen.values),
        Prediction("pcr2", (separated,), "a machine without option ROMs"),
        Prediction("pcr3", (separated,), "a machine without option ROMs"),
        Prediction("pcr4", _kernel(image, memory), _how_kernel(memory)),
        Prediction("pcr5", (exits,), "boot services are left once, no partition table is read"),
        Prediction("pcr6", (separated,), "the firmware's maker measures nothing"),
        Prediction("pcr7", (_secure_boot(),), "Secure Boot is off, and no key is enrolled"),
        Prediction("pcr9", (_files(image),), "command line (root hash included) and initrd"),
    )
    left = tuple(
        Unpredicted(name, _WHY_GOLDEN) for name in GOLDEN_REGISTERS if name not in seen.values
    )
    return Measured(Platform.TPM, lines, left, frozenset({"memory-not-encrypted"}))


def golden_from_log(image: MachineImage, log: bytes, how: str) -> Golden:
    """Take what cannot be computed from the event log of a boot of this very image.

    Args:
        image: What was booted.
        log: The firmware's event log.
        how: Where it comes from.

    Raises:
        ConfigurationError: If the log is that of another image.
        EvidenceError: If it is malformed.
    """
    held = replay(parse_event_log(log), BANK)
    if held.get(9) != _files(image):
        msg = (
            "golden values: the event log is of another image: its PCR 9 is "
            f"{held.get(9, b'').hex() or 'missing'}, expected {_files(image).hex()}"
        )
        raise ConfigurationError(msg)
    registers = {name: held.get(int(name.removeprefix("pcr"))) for name in GOLDEN_REGISTERS}
    return Golden({name: value for name, value in registers.items() if value}, how)


def golden_of_firmware(image: MachineImage, firmware: bytes) -> Golden | None:
    """Return what the image's manifest says was seen with this firmware; `None`: nothing.

    Raises:
        ConfigurationError: If the manifest is malformed.
    """
    wanted = hashlib.sha256(firmware).hexdigest()
    for entry in image.golden:
        if isinstance(entry, dict) and entry.get("firmware_sha256") == wanted:
            return _parse_golden(entry)
    return None


def _parse_golden(entry: Mapping[str, Any]) -> Golden:
    values, how = entry.get("values"), entry.get("how")
    try:
        if not isinstance(values, dict) or not isinstance(how, str):
            raise TypeError  # noqa: TRY301 - one message for all that is malformed
        parsed = {name: bytes.fromhex(values[name]) for name in GOLDEN_REGISTERS if name in values}
    except (TypeError, ValueError) as error:
        msg = "manifest.json: golden: expected values, in hexadecimal, and how they were seen"
        raise ConfigurationError(msg) from error
    return Golden(parsed, how)


def kernel_digests(image: MachineImage, memory: int, algorithm: str) -> Sequence[bytes]:
    """Return the digests under which firmware may start the kernel: patched by QEMU, and as is."""
    return (
        authenticode(as_qemu_loads(image, memory), algorithm),
        authenticode(image.kernel, algorithm),
    )


def file_digests(image: MachineImage, algorithm: str) -> tuple[bytes, bytes]:
    """Return what the EFI stub measures: load options, then initrd."""
    return (
        hashlib.new(algorithm, load_options(image.command_line)).digest(),
        hashlib.new(algorithm, image.initrd).digest(),
    )


def _kernel(image: MachineImage, memory: int) -> tuple[bytes, ...]:
    called, separator = _digest(BOOT_CALLS), _digest(SEPARATOR)
    digests = kernel_digests(image, memory, BANK)
    return tuple(extend(BANK, digest, called, separator) for digest in digests)


def _how_kernel(memory: int) -> str:
    return f"the kernel's Authenticode digest, as QEMU loads it with {memory >> 20} MiB, and as is"


def _files(image: MachineImage) -> bytes:
    return extend(BANK, *file_digests(image, BANK))


def _secure_boot() -> bytes:
    digests = []
    for owner, name in _SECURE_BOOT:
        value = b"\0" if name == "SecureBoot" else b""
        sizes = len(name).to_bytes(8, "little") + len(value).to_bytes(8, "little")
        digests.append(_digest(owner + sizes + name.encode("utf-16-le") + value))
    return extend(BANK, *digests, _digest(SEPARATOR))


def _golden(name: str, golden: Golden) -> Prediction:
    return Prediction(name, (golden.values[name],), f"golden: {golden.how}", golden=True)


def _digest(data: bytes) -> bytes:
    return hashlib.new(BANK, data).digest()
