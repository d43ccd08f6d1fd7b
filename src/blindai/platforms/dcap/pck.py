"""Read what Intel writes about a platform into its PCK certificate. No judgement.

Reference: Intel SGX PCK Certificate and CRL Profile Specification, §1.3.5 (SGX extensions,
1.2.840.113741.1.13.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509

from blindai.attestation.reader import Reader
from blindai.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Iterator

SGX_EXTENSIONS: Final = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
_PREFIX: Final = bytes.fromhex("2a864886f84d010d01")  # the same in DER
_PPID, _PCEID, _FMSPC, _PIID, _CONFIGURATION = 1, 3, 4, 6, 7
_DYNAMIC, _CACHED_KEYS, _SMT = 1, 2, 3
_SEQUENCE, _OID, _BOOLEAN, _OCTETS = 0x30, 0x06, 0x01, 0x04
_LONG_FORM: Final = 0x80


@dataclass(frozen=True, slots=True)
class PckExtension:
    """The SGX extensions of a PCK certificate, as far as claims need them.

    Attributes:
        ppid: Identity of the platform, 16 bytes.
        pceid: Kind of the provisioning certification enclave, 2 bytes.
        fmspc: Model of the platform, 6 bytes; which collateral speaks of it.
        piid: Identity of the platform's instance, 16 bytes; multi-package platforms only.
        dynamic_platform: Whether packages can be added; `None`: not said.
        cached_keys: Whether Intel keeps the platform's root keys; `None`: not said.
        smt_enabled: Whether hyper-threading is on; `None`: not said.
    """

    ppid: bytes
    pceid: bytes
    fmspc: bytes
    piid: bytes | None
    dynamic_platform: bool | None
    cached_keys: bool | None
    smt_enabled: bool | None


def parse_pck_extension(certificate: x509.Certificate) -> PckExtension:
    """Read the SGX extensions of a PCK certificate.

    Raises:
        EvidenceError: If there are none, or malformed ones.
    """
    try:
        extension = certificate.extensions.get_extension_for_oid(SGX_EXTENSIONS).value
    except x509.ExtensionNotFound as error:
        msg = "PCK certificate: it has no SGX extensions"
        raise EvidenceError(msg) from error
    if not isinstance(extension, x509.UnrecognizedExtension):
        msg = "PCK certificate: malformed SGX extensions"
        raise EvidenceError(msg)
    reader = Reader(extension.value, "SGX extensions", byteorder="big")
    members = dict(_members(_expect(reader, _SEQUENCE), _PREFIX))
    reader.end()
    flags: dict[int, bytes] = {}
    if _CONFIGURATION in members:
        content = _expect_in(members[_CONFIGURATION], _SEQUENCE)
        prefix = _PREFIX + bytes([_CONFIGURATION])
        flags = {number: _sized(tlv, _BOOLEAN, 1) for number, tlv in _members(content, prefix)}
    return PckExtension(
        ppid=_required(members, _PPID, "PPID", 16),
        pceid=_required(members, _PCEID, "PCEID", 2),
        fmspc=_required(members, _FMSPC, "FMSPC", 6),
        piid=_sized(members[_PIID], _OCTETS, 16) if _PIID in members else None,
        dynamic_platform=_flag(flags, _DYNAMIC),
        cached_keys=_flag(flags, _CACHED_KEYS),
        smt_enabled=_flag(flags, _SMT),
    )


def _members(content: bytes, prefix: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the last number of each object identifier below `prefix`, and its value in DER."""
    reader = Reader(content, "SGX extensions", byteorder="big")
    seen = set()
    while reader.remaining:
        pair = Reader(_expect(reader, _SEQUENCE), "SGX extension", byteorder="big")
        identifier = _expect(pair, _OID)
        value = pair.take(pair.remaining, "value")
        if identifier in seen:
            msg = f"SGX extensions: repeated member {identifier[:32].hex()}"
            raise EvidenceError(msg)
        seen.add(identifier)
        if identifier[:-1] == prefix:
            yield identifier[-1], value


def _expect(reader: Reader, tag: int) -> bytes:
    found = reader.u8("tag")
    if found != tag:
        msg = f"SGX extensions: expected DER tag {tag:#04x}, found {found:#04x}"
        raise EvidenceError(msg)
    size = reader.u8("length")
    if size == _LONG_FORM + 1:
        size = reader.u8("length")
    elif size == _LONG_FORM + 2:
        size = reader.u16("length")
    elif size >= _LONG_FORM:
        msg = f"SGX extensions: unsupported DER length {size:#04x}"
        raise EvidenceError(msg)
    return reader.take(size, "value")


def _expect_in(tlv: bytes, tag: int) -> bytes:
    reader = Reader(tlv, "SGX extension", byteorder="big")
    content = _expect(reader, tag)
    reader.end()
    return content


def _sized(tlv: bytes, tag: int, size: int) -> bytes:
    content = _expect_in(tlv, tag)
    if len(content) != size:
        msg = f"SGX extensions: expected {size} bytes, found {len(content)}"
        raise EvidenceError(msg)
    return content


def _required(members: dict[int, bytes], number: int, name: str, size: int) -> bytes:
    if number not in members:
        msg = f"SGX extensions: {name} is missing"
        raise EvidenceError(msg)
    return _sized(members[number], _OCTETS, size)


def _flag(flags: dict[int, bytes], number: int) -> bool | None:
    return any(flags[number]) if number in flags else None
