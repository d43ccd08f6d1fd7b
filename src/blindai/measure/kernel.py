"""What firmware measures of a Linux kernel, its command line and its initrd.

Always true here: every value is a digest of bytes that are given, laid out as the firmware sees
them.

Specifications: Microsoft, "Windows Authenticode Portable Executable Signature Format"; Linux
boot protocol (Documentation/arch/x86/boot.rst); Linux EFI stub, which measures the load options
and the initrd into PCR 9.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from blindai.attestation.reader import Reader
from blindai.errors import ConfigurationError, EvidenceError

if TYPE_CHECKING:
    from blindai.measure.image import MachineImage

_PE32_PLUS: Final = 0x20B
_MAX_SECTIONS: Final = 96
# Offsets of the setup header (boot.rst, "The Real-Mode Kernel Header")
_MAGIC: Final = 0x202
_VERSION: Final = 0x206
_LOADER: Final = 0x210
_FLAGS: Final = 0x211
_INITRD_ADDRESS: Final = 0x218
_HEAP_END: Final = 0x224
_COMMAND_LINE: Final = 0x228
_INITRD_LIMIT: Final = 0x22C
_LOAD_FLAGS: Final = 0x236
_ABOVE_4G: Final = 0x02
_MODERN: Final = 0x20C
# Where QEMU puts things below the first megabyte, and what it keeps free for ACPI tables.
_QEMU_LOADER: Final = 0xB0
_QEMU_REAL_MODE: Final = 0x10000
_QEMU_COMMAND_LINE: Final = 0x20000
_QEMU_ACPI: Final = 0x28000
_QEMU_SPLIT: Final = 0xB0000000  # from this much memory on, only 2 GiB are below 4 GiB
_QEMU_LOW: Final = 0x80000000


def authenticode(image: bytes, algorithm: str) -> bytes:
    """Return the digest of a PE image: all of it but checksum and signatures.

    Raises:
        ConfigurationError: If it is no PE image.
    """
    try:
        return _authenticode(image, algorithm)
    except EvidenceError as error:
        msg = f"the kernel is no EFI application: {error}"
        raise ConfigurationError(msg) from error


def _authenticode(image: bytes, algorithm: str) -> bytes:
    dos = Reader(image, "PE image")
    dos.skip(0x3C, "DOS header")
    start = dos.u32("e_lfanew")
    reader = Reader(image[start:], "PE image")
    if image[:2] != b"MZ" or reader.take(4, "signature") != b"PE\0\0":
        msg = "PE image: no signature"
        raise EvidenceError(msg)
    reader.skip(2, "Machine")
    sections = reader.u16("NumberOfSections")
    reader.skip(12, "COFF header")
    optional_size = reader.u16("SizeOfOptionalHeader")
    reader.skip(2, "Characteristics")
    optional = start + reader.position
    if reader.u16("Magic") != _PE32_PLUS or sections > _MAX_SECTIONS:
        msg = f"PE image: expected PE32+ and at most {_MAX_SECTIONS} sections"
        raise EvidenceError(msg)
    reader.skip(58, "optional header")
    header_size = reader.u32("SizeOfHeaders")
    checksum, certificates = optional + 64, optional + 112 + 4 * 8
    table = Reader(image[certificates:], "PE certificate table")
    table.skip(4, "VirtualAddress")
    signatures_size = table.u32("Size")
    digest = hashlib.new(algorithm, image[:checksum])
    digest.update(image[checksum + 4 : certificates])
    digest.update(image[certificates + 8 : header_size])
    hashed = header_size
    for offset, size in sorted(_sections(image[optional + optional_size :], sections)):
        digest.update(image[offset : offset + size])
        hashed += size
    digest.update(image[hashed : len(image) - signatures_size])
    return digest.digest()


def _sections(table: bytes, count: int) -> list[tuple[int, int]]:
    reader = Reader(table, "PE section table")
    found = []
    for _ in range(count):
        reader.skip(16, "Name, VirtualSize and VirtualAddress")
        size, offset = reader.u32("SizeOfRawData"), reader.u32("PointerToRawData")
        reader.skip(16, "relocations and Characteristics")
        if size:
            found.append((offset, size))
    return found


def as_qemu_loads(image: MachineImage, memory: int) -> bytes:
    """Return the kernel as QEMU hands it to the firmware: with the setup header filled in.

    Args:
        image: Kernel and initrd.
        memory: Of the machine, in bytes. It says where the initrd goes.

    Raises:
        ConfigurationError: If the kernel is too old for this, or the memory too small.
    """
    kernel = bytearray(image.kernel)
    version = int.from_bytes(kernel[_VERSION : _VERSION + 2], "little")
    if kernel[_MAGIC : _MAGIC + 4] != b"HdrS" or version < _MODERN:
        msg = f"the kernel speaks no boot protocol from {_MODERN:#x} on"
        raise ConfigurationError(msg)
    limit = int.from_bytes(kernel[_INITRD_LIMIT : _INITRD_LIMIT + 4], "little")
    if kernel[_LOAD_FLAGS] & _ABOVE_4G:
        limit = 0xFFFFFFFF
    below = _QEMU_LOW if memory >= _QEMU_SPLIT else memory
    limit = min(limit, below - _QEMU_ACPI - 1)
    address = (limit - len(image.initrd)) & ~0xFFF
    if address <= len(image.kernel):
        msg = f"{memory >> 20} MiB of memory are too few for this image"
        raise ConfigurationError(msg)
    heap_end = _QEMU_COMMAND_LINE - _QEMU_REAL_MODE - 0x200
    kernel[_LOADER] = _QEMU_LOADER
    kernel[_FLAGS] |= 0x80
    for offset, size, value in (
        (_INITRD_ADDRESS, 4, address),
        (_INITRD_ADDRESS + 4, 4, len(image.initrd)),
        (_HEAP_END, 2, heap_end),
        (_COMMAND_LINE, 4, _QEMU_COMMAND_LINE),
    ):
        kernel[offset : offset + size] = value.to_bytes(size, "little")
    return bytes(kernel)


def load_options(command_line: str) -> bytes:
    """Return the load options as the EFI stub measures them: OVMF names the initrd at the end."""
    return (command_line + " initrd=initrd\0").encode("utf-16-le")


def extend(algorithm: str, *digests: bytes) -> bytes:
    """Return what a register of zeros holds once all digests were extended into it."""
    held = bytes(hashlib.new(algorithm).digest_size)
    for digest in digests:
        held = hashlib.new(algorithm, held + digest).digest()
    return held
