"""MRTD and RTMRs of a machine image in a TDX domain under OVMF (TDVF).

- MRTD: computed from the sections that the firmware's metadata lists.
- RTMR1: the kernel; RTMR2: command line and initrd. Computed from what EDK2 and the EFI stub
  measure there (the events of PCR 4 and 5, and of PCR 9). Never compared with hardware.
- RTMR0: the firmware's configuration, ACPI tables and memory map: not predicted.

Specifications: Intel TDX Virtual Firmware Design Guide §11 (metadata); Intel TDX Module Base
Architecture §12 (TDH.MEM.PAGE.ADD, TDH.MR.EXTEND); UEFI 2.10 §38.4.1.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from blindai.attestation.model import Platform
from blindai.attestation.reader import Reader
from blindai.errors import ConfigurationError, EvidenceError
from blindai.measure.kernel import extend
from blindai.measure.prediction import Measured, Prediction, Unpredicted
from blindai.measure.tpm import (
    BOOT_CALLS,
    BOOT_EXITS,
    DEFAULT_MEMORY,
    SEPARATOR,
    file_digests,
    kernel_digests,
)

if TYPE_CHECKING:
    from blindai.measure.image import MachineImage

BANK: Final = "sha384"
MAX_FIRMWARE_BYTES: Final = 64 << 20
_METADATA: Final = uuid.UUID("e47a6535-984a-4798-865e-4685a7bf8ec2").bytes_le
_TABLE: Final = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
_AFTER_TABLE: Final = 32
_ENTRY_HEADER: Final = 18  # size in two bytes, and a GUID, at the end of each entry
_PAGE: Final = 0x1000
_CHUNK: Final = 0x100
_EXTEND: Final = 0x01
_LATE: Final = 0x02
_MAX_SECTIONS: Final = 64
_MAX_PAGES: Final = 1 << 17


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the firmware's metadata: what is put into the domain, and where.

    Attributes:
        content: Bytes of the firmware's file, filled up with zeros to whole pages.
        address: In the domain.
        pages: Its size.
        measured: Whether its content is measured, and not its place alone.
        late: Whether it is added after the domain was built, and not measured at all.
    """

    content: bytes
    address: int
    pages: int
    measured: bool
    late: bool


def measure_tdx(image: MachineImage, firmware: bytes, *, memory: int = DEFAULT_MEMORY) -> Measured:
    """Predict what a TDX domain of this image and firmware shows.

    Args:
        image: What is booted.
        firmware: The file that QEMU loads as firmware, such as OVMF.fd.
        memory: Of the machine, in bytes.

    Raises:
        ConfigurationError: If the firmware has no TDX metadata, or the kernel cannot be booted.
    """
    try:
        sections = parse_sections(firmware)
    except EvidenceError as error:
        raise ConfigurationError(str(error)) from error
    # Older kernels add all pages of a section before they measure any.
    built = tuple(dict.fromkeys(_mrtd(sections, together=each) for each in (True, False)))
    calls, separator = _digest(BOOT_CALLS), _digest(SEPARATOR)
    exits = tuple(map(_digest, BOOT_EXITS))
    started = tuple(
        extend(BANK, digest, calls, separator, *exits)
        for digest in kernel_digests(image, memory, BANK)
    )
    options = extend(BANK, *file_digests(image, BANK))
    return Measured(
        Platform.TDX,
        (
            Prediction("mrtd", built, "the firmware, page by page or section by section"),
            Prediction("rtmr1", started, "the kernel, as QEMU loads it and as is; EDK2's events"),
            Prediction("rtmr2", (options,), "command line (root hash included) and initrd"),
            Prediction("rtmr3", (bytes(48),), "nothing of the image measures anything there"),
        ),
        (Unpredicted("rtmr0", "ACPI tables, memory map and boot variables of the hypervisor"),),
    )


def parse_sections(firmware: bytes) -> list[Section]:
    """Read the TDX metadata of a firmware file.

    Raises:
        EvidenceError: If there is none, or it is malformed.
    """
    start = len(firmware) - _metadata_offset(firmware)
    reader = Reader(firmware[max(start, 0) :], "TDX metadata")
    signature = reader.take(4, "signature")
    reader.skip(4, "length")
    version, count = reader.u32("version"), reader.u32("number of sections")
    if start < 0 or signature != b"TDVF" or version != 1 or count > _MAX_SECTIONS:
        msg = f"TDX metadata: expected TDVF, version 1 and at most {_MAX_SECTIONS} sections"
        raise EvidenceError(msg)
    return [_parse_section(reader, firmware) for _ in range(count)]


def _parse_section(reader: Reader, firmware: bytes) -> Section:
    offset, size = reader.u32("DataOffset"), reader.u32("RawDataSize")
    address, room = reader.u64("MemoryAddress"), reader.u64("MemoryDataSize")
    reader.skip(4, "Type")
    attributes = reader.u32("Attributes")
    if offset + size > len(firmware):
        msg = "TDX metadata: a section is not in this file; give the whole firmware (OVMF.fd)"
        raise EvidenceError(msg)
    if address % _PAGE or room % _PAGE or room > _MAX_PAGES * _PAGE or size > room:
        msg = f"TDX metadata: a section of {size} bytes does not fit {room} bytes of memory"
        raise EvidenceError(msg)
    return Section(
        content=firmware[offset : offset + size],
        address=address,
        pages=room // _PAGE,
        measured=bool(attributes & _EXTEND),
        late=bool(attributes & _LATE),
    )


def _metadata_offset(firmware: bytes) -> int:
    """Return how far from the end of the firmware its metadata begins."""
    end = len(firmware) - _AFTER_TABLE - _ENTRY_HEADER
    if firmware[max(end, 0) + 2 : len(firmware) - _AFTER_TABLE] != _TABLE:
        msg = "TDX metadata: the firmware has no table of GUIDs"
        raise EvidenceError(msg)
    left = int.from_bytes(firmware[end : end + 2], "little") - _ENTRY_HEADER
    while left >= _ENTRY_HEADER and end >= left:
        header = firmware[end - _ENTRY_HEADER : end]
        size = int.from_bytes(header[:2], "little")
        if size < _ENTRY_HEADER or size > left:
            break
        if header[2:] == _METADATA:
            return int.from_bytes(firmware[end - size : end - size + 4], "little")
        end, left = end - size, left - size
    msg = "TDX metadata: the firmware has none; it was built without TDX"
    raise EvidenceError(msg)


def _mrtd(sections: list[Section], *, together: bool) -> bytes:
    digest = hashlib.sha384()
    for section in sections:
        places = [section.address + page * _PAGE for page in range(section.pages)]
        added = [b"" if section.late else _command(b"MEM.PAGE.ADD", place) for place in places]
        content = section.content.ljust(section.pages * _PAGE, b"\0") if section.measured else b""
        extended = [
            _extend_page(place, content[page * _PAGE : (page + 1) * _PAGE])
            for page, place in enumerate(places)
        ]
        if together:
            parts = [part for pair in zip(added, extended, strict=True) for part in pair]
        else:
            parts = [*added, *extended]
        for part in parts:
            digest.update(part)
    return digest.digest()


def _extend_page(place: int, content: bytes) -> bytes:
    return b"".join(
        _command(b"MR.EXTEND", place + at) + content[at : at + _CHUNK]
        for at in range(0, len(content), _CHUNK)
    )


def _command(name: bytes, place: int) -> bytes:
    return (name.ljust(16, b"\0") + place.to_bytes(8, "little")).ljust(128, b"\0")


def _digest(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()
