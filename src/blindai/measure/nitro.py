"""PCR0, PCR1, PCR2 and PCR8 of an AWS Nitro enclave image file (EIF).

Always true here: the file's checksum is right, and its sections are all read. PCR0 is of kernel,
command line and every ramdisk; PCR1 of kernel, command line and the first ramdisk; PCR2 of the
other ramdisks; PCR8 of the certificate that signed the image. Each is SHA-384 of 48 zeros and
the SHA-384 of these bytes, as a register that was extended once.

Specification: AWS, "Enclave Image File", as published with the Nitro Enclaves command line tools.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, field
from typing import Final

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from blindai.attestation.model import Platform
from blindai.attestation.reader import Reader
from blindai.errors import ConfigurationError, EvidenceError
from blindai.measure.kernel import extend
from blindai.measure.prediction import Measured, Prediction, Unpredicted

MAGIC: Final = b".eif"
HEADER_SIZE: Final = 548
MAX_SECTIONS: Final = 32
MAX_EIF_BYTES: Final = 4 << 30
_VERSIONS: Final = (2, 3, 4)
_KERNEL, _COMMAND_LINE, _RAMDISK, _SIGNATURE, _METADATA = 1, 2, 3, 4, 5


@dataclass(slots=True)
class _Sections:
    boot: list[bytes] = field(default_factory=list)
    applications: list[bytes] = field(default_factory=list)
    image: list[bytes] = field(default_factory=list)
    certificate: bytes | None = None
    kinds: list[int] = field(default_factory=list)


def measure_nitro(data: bytes) -> Measured:
    """Compute the registers that an enclave of this image has.

    Args:
        data: The EIF.

    Raises:
        ConfigurationError: If it is malformed, or its checksum is wrong.
    """
    try:
        found = _parse(data)
    except EvidenceError as error:
        raise ConfigurationError(str(error)) from error
    lines = [
        Prediction("pcr0", (_register(found.image),), "kernel, command line and ramdisks"),
        Prediction("pcr1", (_register(found.boot),), "kernel, command line and first ramdisk"),
        Prediction("pcr2", (_register(found.applications),), "the other ramdisks"),
    ]
    if found.certificate is not None:
        register = _register([found.certificate])
        lines.append(Prediction("pcr8", (register,), "the certificate that signed the image"))
    left = (
        Unpredicted("pcr3", "the IAM role of the instance it runs on"),
        Unpredicted("pcr4", "the instance it runs on"),
    )
    return Measured(Platform.NITRO, tuple(lines), left)


def _parse(data: bytes) -> _Sections:
    reader = Reader(data, "EIF", byteorder="big")
    if reader.take(4, "magic") != MAGIC:
        msg = "EIF: it does not begin with .eif"
        raise EvidenceError(msg)
    version = reader.u16("version")
    reader.skip(2 + 8 + 8 + 2, "flags, memory, processors and reserved")
    count = reader.u16("num_sections")
    if version not in _VERSIONS or not 1 <= count <= MAX_SECTIONS:
        msg = f"EIF: version {version} with {count} sections, expected 2 to 4 and 1 to 32"
        raise EvidenceError(msg)
    reader.skip(2 * 8 * MAX_SECTIONS + 4, "offsets and sizes")
    expected = reader.u32("eif_crc32")
    found = zlib.crc32(data[HEADER_SIZE:], zlib.crc32(data[: HEADER_SIZE - 4]))
    if expected != found:
        msg = f"EIF: expected the checksum {expected:#010x}, found {found:#010x}"
        raise EvidenceError(msg)
    sections = _Sections()
    for _ in range(count):
        kind = reader.u16("section_type")
        reader.skip(2, "flags")
        _add(sections, kind, reader.take(reader.u64("section_size"), "section"))
    reader.end()
    if sections.kinds.count(_KERNEL) != 1 or sections.kinds.count(_COMMAND_LINE) != 1:
        msg = "EIF: expected one kernel and one command line"
        raise EvidenceError(msg)
    return sections


def _add(sections: _Sections, kind: int, content: bytes) -> None:
    first = _RAMDISK not in sections.kinds
    sections.kinds.append(kind)
    if kind in (_KERNEL, _COMMAND_LINE):
        sections.boot.append(content)
        sections.image.append(content)
    elif kind == _RAMDISK:
        (sections.boot if first else sections.applications).append(content)
        sections.image.append(content)
    elif kind == _SIGNATURE:
        sections.certificate = _certificate(content)
    elif kind != _METADATA:
        msg = f"EIF: a section of the unknown kind {kind}"
        raise EvidenceError(msg)


def _certificate(content: bytes) -> bytes:
    try:
        signatures = cbor2.loads(content)
        certificate = x509.load_pem_x509_certificate(bytes(signatures[0]["signing_certificate"]))
    except (cbor2.CBORError, ValueError, TypeError, LookupError, RecursionError) as error:
        msg = "EIF: its signature section holds no certificate"
        raise EvidenceError(msg) from error
    return certificate.public_bytes(Encoding.DER)


def _register(parts: list[bytes]) -> bytes:
    digest = hashlib.sha384()
    for part in parts:
        digest.update(part)
    return extend("sha384", digest.digest())
