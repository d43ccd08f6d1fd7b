"""What an NVIDIA device certificate says of its device: name, serial number, firmware, mode.

Two forms of one extension exist: Hopper carries the older composite device identity
(version, key, FWID) under 2.23.133.5.4.1, Blackwell a DiceTcbInfo (TCG DICE Attestation
Architecture 1.1 §6.1.1) under 2.23.133.5.4.1.1. The name is a DMTF device-info in the subject
alternative name (DSP0274 1.1, leaf certificates): "NVIDIA:GH100:48B02D…".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography import x509

from blindai.attestation.reader import Reader
from blindai.errors import EvidenceError

COMPOSITE_IDENTITY: Final = x509.ObjectIdentifier("2.23.133.5.4.1")
TCB_INFO: Final = x509.ObjectIdentifier("2.23.133.5.4.1.1")
DEVICE_INFO: Final = x509.ObjectIdentifier("1.3.6.1.4.1.412.274.1")
SHA384_OID: Final = bytes.fromhex("0609608648016503040202")
_FWID_SIZE: Final = 48
# OperationalFlags by bit. notConfigured (0) is set on shipped Blackwell boards in normal
# operation, and fixedWidth (31) says only how the bits are written.
_FLAGS: Final = {1: "not-secure", 2: "recovery", 3: "debug"}

_INTEGER: Final = 0x02
_BIT_STRING_UNUSED: Final = range(8)
_OCTET_STRING: Final = 0x04
_UTF8_STRING: Final = 0x0C
_SEQUENCE: Final = 0x30
_FWIDS: Final = 0xA6  # [6] IMPLICIT FWIDLIST
_OPERATIONAL_FLAGS: Final = 0x87  # [7] IMPLICIT BIT STRING
_CONTEXT: Final = 0x80
_MULTI_BYTE_TAG: Final = 0x1F
_LONG_LENGTHS: Final = {0x81: 1, 0x82: 2}
_NAME_PARTS: Final = 3


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """What the certificate's issuer, the chip's boot ROM, says of the device.

    Attributes:
        fwid: SHA-384 of the first mutable firmware; `None` where not stated.
        flags: Those of "debug", "recovery" and "not-secure" that are set.
        model: The chip's name, such as "GH100".
        serial: The chip's serial number, stable over firmware updates.
    """

    fwid: bytes | None
    flags: frozenset[str]
    model: str | None
    serial: bytes | None


def parse_device_identity(leaf: x509.Certificate) -> DeviceIdentity:
    """Read the identity in a device certificate.

    Raises:
        EvidenceError: If an extension that states it is malformed.
    """
    found = [
        parse_tcb_info(extension.value.value)
        for extension in leaf.extensions
        if extension.oid in {COMPOSITE_IDENTITY, TCB_INFO}
        and isinstance(extension.value, x509.UnrecognizedExtension)
    ]
    if len(found) > 1:
        msg = "device certificate: two extensions state its TCB info"
        raise EvidenceError(msg)
    fwid, flags = found[0] if found else (None, frozenset[str]())
    model, serial = _parse_name(leaf)
    return DeviceIdentity(fwid=fwid, flags=flags, model=model, serial=serial)


def parse_tcb_info(data: bytes) -> tuple[bytes | None, frozenset[str]]:
    """Return FWID and flags of the extension, in either of its forms.

    Raises:
        EvidenceError: If it has neither form.
    """
    outer = Reader(data, "device certificate's TCB info", byteorder="big")
    content = _element(outer, _SEQUENCE)
    outer.end()
    elements = _elements(content)
    tags = [tag for tag, _ in elements]
    if tags == [_INTEGER, _SEQUENCE, _SEQUENCE]:
        return _parse_fwid(elements[2][1]), frozenset()
    if (
        tags
        and tags == sorted(set(tags), key=lambda tag: tag & _MULTI_BYTE_TAG)
        and all(tag & _CONTEXT for tag in tags)
    ):
        return _parse_dice(dict(elements))
    msg = "device certificate's TCB info: neither a composite device identity nor a DiceTcbInfo"
    raise EvidenceError(msg)


def _parse_dice(fields: dict[int, bytes]) -> tuple[bytes | None, frozenset[str]]:
    fwid = None
    if _FWIDS in fields:
        entries = _elements(fields[_FWIDS])
        if not entries or any(tag != _SEQUENCE for tag, _ in entries):
            msg = "device certificate's TCB info: malformed list of FWIDs"
            raise EvidenceError(msg)
        # All are read, the first counts: it is of the firmware that owns the attestation key.
        fwid, *_ = [_parse_fwid(entry) for _, entry in entries]
    flags = fields.get(_OPERATIONAL_FLAGS, b"\0")
    if not flags or flags[0] not in _BIT_STRING_UNUSED:
        msg = "device certificate's TCB info: malformed flags"
        raise EvidenceError(msg)
    bits = flags[1:]
    return fwid, frozenset(
        name
        for bit, name in _FLAGS.items()
        if bit // 8 < len(bits) and bits[bit // 8] >> (7 - bit % 8) & 1
    )


def _parse_fwid(content: bytes) -> bytes:
    if not content.startswith(SHA384_OID):
        msg = "device certificate's TCB info: the FWID is not SHA-384"
        raise EvidenceError(msg)
    reader = Reader(content[len(SHA384_OID) :], "FWID", byteorder="big")
    digest = _element(reader, _OCTET_STRING)
    reader.end()
    if len(digest) != _FWID_SIZE:
        msg = f"device certificate's TCB info: FWID of {len(digest)} bytes, expected {_FWID_SIZE}"
        raise EvidenceError(msg)
    return digest


def _parse_name(leaf: x509.Certificate) -> tuple[str | None, bytes | None]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None, None
    for name in names:
        if isinstance(name, x509.OtherName) and name.type_id == DEVICE_INFO:
            reader = Reader(name.value, "device name", byteorder="big")
            text = _element(reader, _UTF8_STRING)
            reader.end()
            return _split_name(text)
    return None, None


def _split_name(text: bytes) -> tuple[str, bytes]:
    parts = text.split(b":")
    try:
        if len(parts) != _NAME_PARTS or parts[0] != b"NVIDIA" or not parts[2]:
            msg = "device name: expected NVIDIA:model:serial"
            raise EvidenceError(msg)
        return parts[1].decode("ascii"), bytes.fromhex(parts[2].decode("ascii"))
    except ValueError as error:
        msg = "device name: the model is not ASCII, or the serial number not hexadecimal"
        raise EvidenceError(msg) from error


def _elements(content: bytes) -> list[tuple[int, bytes]]:
    reader = Reader(content, "DER", byteorder="big")
    elements = []
    while reader.remaining:
        elements.append(_any_element(reader))
    return elements


def _element(reader: Reader, expected: int) -> bytes:
    tag, content = _any_element(reader)
    if tag != expected:
        msg = f"DER: tag {tag:#04x}, expected {expected:#04x}"
        raise EvidenceError(msg)
    return content


def _any_element(reader: Reader) -> tuple[int, bytes]:
    tag = reader.u8("tag")
    size = reader.u8("length")
    if size in _LONG_LENGTHS:
        size = int.from_bytes(reader.take(_LONG_LENGTHS[size], "length"), "big")
    elif size & 0x80:
        msg = f"DER: length form {size:#04x} is not accepted"
        raise EvidenceError(msg)
    if tag & _MULTI_BYTE_TAG == _MULTI_BYTE_TAG:
        msg = f"DER: tag {tag:#04x} is not accepted"
        raise EvidenceError(msg)
    return tag, reader.take(size, "content")
