"""The attestation report of an NVIDIA device: an SPDM 1.1 request and response (DSP0274).

Every length is checked and every byte accounted for. The signature covers all that precedes
it. NVIDIA's opaque data is a list of (u16 type, u16 length, value), little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from blindai.attestation.reader import Reader
from blindai.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_REPORT_BYTES: Final = 64 << 10
REQUEST_SIZE: Final = 37
NONCE_SIZE: Final = 32
SIGNATURE_SIZE: Final = 96
_SPDM_1_1: Final = 0x11
_GET_MEASUREMENTS: Final = 0xE0
_MEASUREMENTS: Final = 0x60
_SIGNATURE_REQUESTED: Final = 0x01
_ALL_MEASUREMENTS: Final = 0xFF
_DMTF: Final = 0x01

# NVIDIA's numbers of the opaque fields that are read here.
DRIVER_VERSION: Final = 3
VBIOS_VERSION: Final = 6
NVDEC0_STATUS: Final = 11
FWID: Final = 20
OPAQUE_DATA_VERSION: Final = 34
CHIP_INFO: Final = 35
_READ_FIELDS: Final = frozenset(
    {DRIVER_VERSION, VBIOS_VERSION, NVDEC0_STATUS, FWID, OPAQUE_DATA_VERSION, CHIP_INFO}
)
_KNOWN_OPAQUE_VERSIONS: Final = (0, 1)
_VBIOS_SIZE: Final = 8
_FWID_SIZE: Final = 48
_NVDEC0_DISABLED: Final = b"\x55"


@dataclass(frozen=True, slots=True)
class Report:
    """What the device signed.

    Attributes:
        nonce: The caller's 32 bytes, from the request.
        measurements: Index (from 1) → value of each measurement block.
        opaque: NVIDIA's number → value of each opaque field.
        signed: The bytes under the signature.
        signature: r and s, 48 bytes each, big-endian.
        padding: Bytes after the signature: 0, or 1 zero byte that some captures carry.
    """

    nonce: bytes
    measurements: Mapping[int, bytes]
    opaque: Mapping[int, bytes]
    signed: bytes
    signature: bytes
    padding: int

    @property
    def driver_version(self) -> str | None:
        """The driver's version, such as "550.90.07"; none for a switch or a firmware report."""
        value = self.opaque.get(DRIVER_VERSION)
        return None if value is None else _text(value, "driver version")

    @property
    def vbios_version(self) -> str | None:
        """The VBIOS version, such as "96.00.9F.00.01"."""
        value = self.opaque.get(VBIOS_VERSION)
        if value is None:
            return None
        # Four bytes of a little-endian word, then one more part.
        return ".".join(f"{byte:02X}" for byte in (*reversed(value[:4]), value[4]))

    @property
    def chip_info(self) -> str | None:
        """The chip's name, such as "GB202", where the firmware states it."""
        value = self.opaque.get(CHIP_INFO)
        return None if value is None else _text(value, "chip info")

    @property
    def fwid(self) -> bytes | None:
        """SHA-384 of the first mutable firmware, where the report repeats it."""
        return self.opaque.get(FWID)

    @property
    def nvdec0_disabled(self) -> bool:
        """Whether video decoder 0 is off, which leaves its measurement without meaning."""
        return self.opaque.get(NVDEC0_STATUS) == _NVDEC0_DISABLED


def parse_report(body: bytes) -> Report:
    """Read a report.

    Args:
        body: At most 64 KiB from an untrusted source.

    Raises:
        EvidenceError: If it is no complete SPDM 1.1 exchange about all measurements.
    """
    if len(body) > MAX_REPORT_BYTES:
        msg = f"NVIDIA report: {len(body)} bytes, at most {MAX_REPORT_BYTES} are accepted"
        raise EvidenceError(msg)
    reader = Reader(body, "NVIDIA report")
    nonce = _parse_request(reader)
    count, record = _parse_response_head(reader)
    reader.skip(NONCE_SIZE, "nonce of the device")
    opaque = reader.sized(2, "opaque data", at_most=MAX_REPORT_BYTES)
    signed = body[: reader.position]
    signature = reader.take(SIGNATURE_SIZE, "signature")
    padding = reader.remaining
    if padding == 1:
        reader.zeros(1, "byte after the signature")
    reader.end()
    report = Report(
        nonce=nonce,
        measurements=_parse_measurements(record, count),
        opaque=_parse_opaque(opaque),
        signed=signed,
        signature=signature,
        padding=padding,
    )
    _check_fields(report)
    return report


def _parse_request(reader: Reader) -> bytes:
    _expect(reader.u8("request.SPDMVersion"), _SPDM_1_1, "request.SPDMVersion")
    _expect(reader.u8("request code"), _GET_MEASUREMENTS, "request code")
    _expect(reader.u8("request.Param1"), _SIGNATURE_REQUESTED, "request.Param1")
    _expect(reader.u8("request.Param2"), _ALL_MEASUREMENTS, "request.Param2")
    nonce = reader.take(NONCE_SIZE, "request.Nonce")
    reader.skip(1, "request.SlotIDParam")
    return nonce


def _parse_response_head(reader: Reader) -> tuple[int, bytes]:
    _expect(reader.u8("response.SPDMVersion"), _SPDM_1_1, "response.SPDMVersion")
    _expect(reader.u8("response code"), _MEASUREMENTS, "response code")
    reader.skip(2, "response.Param1 and Param2")
    count = reader.u8("NumberOfBlocks")
    size = int.from_bytes(reader.take(3, "MeasurementRecordLength"), "little")
    return count, reader.take(size, "MeasurementRecord")


def _parse_measurements(record: bytes, count: int) -> dict[int, bytes]:
    reader = Reader(record, "NVIDIA measurement record")
    measurements: dict[int, bytes] = {}
    for _ in range(count):
        index = reader.u8("Index")
        _expect(reader.u8("MeasurementSpecification"), _DMTF, "MeasurementSpecification")
        block = Reader(
            reader.sized(2, "Measurement", at_most=MAX_REPORT_BYTES), f"measurement {index}"
        )
        block.skip(1, "DMTFSpecMeasurementValueType")
        value = block.sized(2, "DMTFSpecMeasurementValue", at_most=MAX_REPORT_BYTES)
        block.end()
        if index in measurements:
            msg = f"NVIDIA report: measurement {index} appears twice"
            raise EvidenceError(msg)
        measurements[index] = value
    reader.end()
    if not measurements:
        msg = "NVIDIA report: no measurements"
        raise EvidenceError(msg)
    return measurements


def _parse_opaque(data: bytes) -> dict[int, bytes]:
    reader = Reader(data, "NVIDIA opaque data")
    fields: dict[int, bytes] = {}
    while reader.remaining:
        number = reader.u16("field type")
        value = reader.sized(2, f"field {number}", at_most=MAX_REPORT_BYTES)
        if number in fields and number in _READ_FIELDS:
            msg = f"NVIDIA opaque data: field {number} appears twice"
            raise EvidenceError(msg)
        fields[number] = value
    return fields


def _check_fields(report: Report) -> None:
    version = int.from_bytes(report.opaque.get(OPAQUE_DATA_VERSION, b""), "little")
    if version not in _KNOWN_OPAQUE_VERSIONS:
        msg = f"NVIDIA opaque data: unsupported version {version}"
        raise EvidenceError(msg)
    for number, size in ((VBIOS_VERSION, _VBIOS_SIZE), (FWID, _FWID_SIZE)):
        value = report.opaque.get(number)
        if value is not None and len(value) != size:
            msg = f"NVIDIA opaque data: field {number} has {len(value)} bytes, expected {size}"
            raise EvidenceError(msg)
    # Read once, so that the properties cannot raise later.
    _ = report.driver_version, report.chip_info


def _text(value: bytes, name: str) -> str:
    text = value.rstrip(b"\0")
    if not text or not all(0x21 <= byte <= 0x7E for byte in text):  # noqa: PLR2004 (ASCII)
        msg = f"NVIDIA opaque data: the {name} is not printable text"
        raise EvidenceError(msg)
    return text.decode("ascii")


def _expect(found: int, expected: int, field: str) -> None:
    if found != expected:
        msg = f"NVIDIA report: {field} is {found:#04x}, expected {expected:#04x}"
        raise EvidenceError(msg)
