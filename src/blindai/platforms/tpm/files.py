"""Evidence of a TPM from files as they lie on disk, in any order, each known by its content."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from blindai.attestation import certs
from blindai.attestation.model import Evidence, Platform
from blindai.errors import AttestationError, EvidenceError
from blindai.platforms.tpm.eventlog import MAX_LOG_BYTES, parse_event_log
from blindai.platforms.tpm.keys import parse_key, parse_signature
from blindai.platforms.tpm.quote import PREFERENCE, dump_registers, parse_registers
from blindai.platforms.tpm.verifier import parse_crls

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MAGIC: Final = b"\xff\x54\x43\x47"
_MAX_TEXT: Final = 64 << 10
# A bare RSA signature does not say how it was made: RSASSA with SHA-256 is what TPMs sign with.
_BARE_SIZES: Final = (256, 384, 512)
_RSASSA_SHA256: Final = b"\x00\x14\x00\x0b"
_BANK_LINE: Final = re.compile(r"\s*(sha[0-9]+)\s*:\s*")
_PCR_LINE: Final = re.compile(r"\s*([0-9]{1,2})\s*:\s*(?:0[xX])?([0-9a-fA-F]{40,128})\s*")


def assemble(body: bytes, extras: Sequence[bytes]) -> tuple[Evidence, list[int]]:
    """Make evidence of a quote and the files beside it.

    Args:
        body: TPMS_ATTEST or TPM2B_ATTEST, in bytes or as hexadecimal text.
        extras: In any order: the signature (TPMT_SIGNATURE, or the bare number of RSASSA with
            SHA-256), the AK's public part, certificates, revocation lists, the event log, and
            PCR values as CBOR, as JSON of {bank: {index: hex}}, or as `tpm2_pcrread` prints.

    Returns:
        The evidence, and the indexes of the extras that are none of these.

    Raises:
        EvidenceError: If the body is no TPMS_ATTEST.
    """
    quote = from_hex(body)
    if quote[2:6] == _MAGIC and int.from_bytes(quote[:2]) == len(quote) - 2:
        quote = quote[2:]
    if not quote.startswith(_MAGIC):
        msg = "TPM quote: the file does not begin as TPMS_ATTEST does"
        raise EvidenceError(msg)
    attachments, ignored = attach(extras)
    return Evidence(Platform.TPM, quote, attachments), ignored


def attach(extras: Sequence[bytes]) -> tuple[dict[str, bytes], list[int]]:
    """Return attachments by their names, and the indexes of the extras that are none."""
    attachments: dict[str, bytes] = {}
    certificates: list[x509.Certificate] = []
    crls: list[bytes] = []
    ignored = []
    for index, extra in enumerate(extras):
        found = _certificates(extra)
        if found:
            certificates += found
        elif _is(parse_crls, extra) and extra:
            crls += [crl.public_bytes(Encoding.PEM) for crl in parse_crls(extra)]
        elif (named := _recognise(extra) or _recognise(from_hex(extra))) is not None:
            attachments.setdefault(*named)
        else:
            ignored.append(index)
    if certificates:
        # The AK's own comes first: the only one that is no CA.
        certificates.sort(key=_is_ca)
        pem = [certificate.public_bytes(Encoding.PEM) for certificate in certificates]
        attachments["ak_certificates"] = b"".join(dict.fromkeys(pem))
    if crls:
        attachments["crl"] = b"".join(dict.fromkeys(crls))
    return attachments, ignored


def from_hex(data: bytes) -> bytes:
    """Return what hexadecimal text stands for, or `data` itself where it is none."""
    if len(data) > 2 * MAX_LOG_BYTES:
        return data
    text = b"".join(data.split()).removeprefix(b"0x").removeprefix(b"0X")
    try:
        return bytes.fromhex(text.decode("ascii"))
    except (UnicodeDecodeError, ValueError):
        return data


def _recognise(data: bytes) -> tuple[str, bytes] | None:
    named = None
    if not data:
        return None
    if _is(parse_signature, data):
        named = "signature", data
    elif _is(parse_key, data):
        named = "ak_public", data
    elif _is(parse_registers, data):
        named = "pcrs", data
    elif (registers := _registers_from_text(data)) is not None:
        named = "pcrs", registers
    elif len(data) in _BARE_SIZES:
        named = "signature", _RSASSA_SHA256 + len(data).to_bytes(2) + data
    elif _is(parse_event_log, data):
        named = "event_log", data
    return named


def _is(parse: Callable[[bytes], object], data: bytes) -> bool:
    try:
        parse(data)
    except AttestationError:
        return False
    return True


def _certificates(data: bytes) -> list[x509.Certificate]:
    for candidate in (data, from_hex(data)):
        try:
            return certs.parse_certificates(candidate)
        except AttestationError:
            continue
    return []


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _registers_from_text(data: bytes) -> bytes | None:
    if len(data) > _MAX_TEXT:
        return None
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        return None
    registers = _from_json(text) if text.lstrip().startswith("{") else _from_lines(text)
    if not registers or any(
        len(value) != hashlib.new(bank).digest_size
        for bank, values in registers.items()
        for value in values.values()
    ):
        return None
    return dump_registers(registers)


def _from_json(text: str) -> dict[str, dict[int, bytes]] | None:
    try:
        document = json.loads(text)
        return {
            bank: {int(index): bytes.fromhex(value) for index, value in document[bank].items()}
            for bank in PREFERENCE
            if bank in document
        }
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def _from_lines(text: str) -> dict[str, dict[int, bytes]]:
    """Read what `tpm2_pcrread` prints: a line with the bank, then one for each PCR."""
    registers: dict[str, dict[int, bytes]] = {}
    bank = None
    for line in text.splitlines():
        if (found := _BANK_LINE.fullmatch(line)) and found[1] in PREFERENCE:
            bank = found[1]
        elif bank and (found := _PCR_LINE.fullmatch(line)) and len(found[2]) % 2 == 0:
            registers.setdefault(bank, {})[int(found[1])] = bytes.fromhex(found[2])
    return registers
