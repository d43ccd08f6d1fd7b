"""A TPM quote, and the PCR values that it is a digest of.

Always true here: a quote holds only a digest over the selected PCRs, so values beside it count
only where their digest, in the order of the selection, is the quoted one. Values of PCRs that
were not selected are never looked at. Claims are made of the strongest usual bank: SHA-256
first, SHA-1 last and as the weakness "sha1".

Specification: TCG TPM 2.0 Library, Part 2: §10.12.8 (TPMS_ATTEST), §10.12.1 (TPMS_QUOTE_INFO),
§10.9.7 (TPML_PCR_SELECTION), §10.11.1 (TPMS_CLOCK_INFO); Part 3 §18.4 (TPM2_Quote).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import cbor2

from blindai.attestation.reader import Reader
from blindai.attestation.wire import load_cbor
from blindai.errors import EvidenceError, SignatureError
from blindai.platforms.tpm.boot import command_line_text, named_events
from blindai.platforms.tpm.eventlog import BANKS, parse_event_log, replay

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blindai.attestation.steps import Step

Registers = dict[str, dict[int, bytes]]
"""Bank → PCR → value."""

MAGIC: Final = 0xFF544347  # TPM_GENERATED_VALUE: a restricted key signs it for nobody else
TYPE_QUOTE: Final = 0x8018
PREFERENCE: Final = ("sha256", "sha384", "sha512", "sha1")

_MAX_QUOTE: Final = 4096
_MAX_NAME: Final = 68
_MAX_EXTRA_DATA: Final = 66
_MAX_SELECTIONS: Final = 16
_MAX_SELECT_BYTES: Final = 4
_MAX_PCRS: Final = 24
_MAX_PCR_BYTES: Final = 16 << 10
# Written by firmware and boot loader alone. What the running system extends is in other logs.
_FIRMWARE_AND_LOADER: Final = range(10)


@dataclass(frozen=True, slots=True)
class Selection:
    """PCRs of one bank that a quote covers (TPMS_PCR_SELECTION)."""

    bank: str
    indexes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Quote:
    """A TPMS_ATTEST of type TPM_ST_ATTEST_QUOTE.

    Attributes:
        signer: Qualified name of the key that signed.
        extra_data: What the caller asked to be signed along.
        clock: Milliseconds that the TPM has been powered; of no time zone.
        reset_count: Number of TPM resets.
        restart_count: Number of restarts and resumes since the last reset.
        safe: Whether `clock` was never set back.
        firmware_version: The vendor's number.
        selections: What is covered, in the order of the digest.
        pcr_digest: Over the values of the selected PCRs.
    """

    signer: bytes
    extra_data: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    selections: tuple[Selection, ...]
    pcr_digest: bytes


def parse_quote(data: bytes) -> Quote:
    """Read a TPMS_ATTEST that is a quote.

    Raises:
        EvidenceError: If it is malformed, was not made by a TPM, or is no quote.
    """
    if len(data) > _MAX_QUOTE:
        msg = f"TPM quote: {len(data)} bytes, at most {_MAX_QUOTE} are accepted"
        raise EvidenceError(msg)
    reader = Reader(data, "TPM quote", byteorder="big")
    magic = reader.u32("magic")
    if magic != MAGIC:
        msg = f"TPM quote: expected the magic of the TPM {MAGIC:#x}, found {magic:#x}"
        raise EvidenceError(msg)
    kind = reader.u16("type")
    if kind != TYPE_QUOTE:
        msg = f"TPM quote: expected type {TYPE_QUOTE:#x}, found {kind:#x}"
        raise EvidenceError(msg)
    quote = Quote(
        signer=reader.sized(2, "qualifiedSigner", at_most=_MAX_NAME),
        extra_data=reader.sized(2, "extraData", at_most=_MAX_EXTRA_DATA),
        clock=reader.u64("clock"),
        reset_count=reader.u32("resetCount"),
        restart_count=reader.u32("restartCount"),
        safe=_yes_or_no(reader.u8("safe")),
        firmware_version=reader.u64("firmwareVersion"),
        selections=_parse_selections(reader),
        pcr_digest=reader.sized(2, "pcrDigest", at_most=64),
    )
    reader.end()
    return quote


def parse_registers(data: bytes) -> Registers:
    """Read PCR values: deterministic CBOR of {bank: {index: value}}.

    Raises:
        EvidenceError: If it is anything else.
    """
    banks = load_cbor(data, "PCR values", at_most=_MAX_PCR_BYTES)
    if not isinstance(banks, dict) or not set(banks) <= set(PREFERENCE):
        msg = f"PCR values: expected a map of banks {', '.join(PREFERENCE)}"
        raise EvidenceError(msg)
    for bank, registers in banks.items():
        size = hashlib.new(bank).digest_size
        if not isinstance(registers, dict) or not all(
            type(index) is int
            and 0 <= index < _MAX_PCRS
            and isinstance(value, bytes)
            and len(value) == size
            for index, value in registers.items()
        ):
            msg = f"PCR values: expected {size} bytes for each index of bank {bank}"
            raise EvidenceError(msg)
    if dump_registers(banks) != data:
        msg = "PCR values: not in canonical form"
        raise EvidenceError(msg)
    return banks


def dump_registers(registers: Mapping[str, Mapping[int, bytes]]) -> bytes:
    """Return the canonical bytes of PCR values, as the attachment "pcrs" holds them."""
    return cbor2.dumps({b: dict(values) for b, values in registers.items()}, canonical=True)


def verify_registers(quote: Quote, values: Registers, hash_name: str, step: Step) -> Registers:
    """Return the selected PCRs' values, once their digest is the quoted one.

    Args:
        quote: Whose signature is verified.
        values: Untrusted.
        hash_name: Of the signature: the digest is made with it.
        step: Takes down the comparison.

    Raises:
        EvidenceError: If a selected PCR has no value.
        SignatureError: If these are not the values that the TPM signed.
    """
    selected: Registers = {}
    digest = hashlib.new(hash_name)
    for selection in quote.selections:
        for index in selection.indexes:
            value = values.get(selection.bank, {}).get(index)
            if value is None:
                msg = f"PCR values: the quote covers PCR {index} of {selection.bank}, it is missing"
                raise EvidenceError(msg)
            digest.update(value)
            selected.setdefault(selection.bank, {})[index] = value
    if not step.compare("PCR digest", expected=quote.pcr_digest, found=digest.digest()):
        msg = (
            f"PCR values: their digest is {digest.hexdigest()}, "
            f"the TPM signed {quote.pcr_digest.hex()}"
        )
        raise SignatureError(msg)
    return selected


def claim_registers(selected: Registers) -> tuple[dict[str, bytes], frozenset[str]]:
    """Return each PCR of its best bank as a measurement, and "sha1" where that is SHA-1."""
    claimed: dict[int, bytes] = {}
    weaknesses = set()
    for bank in PREFERENCE:
        for index, value in selected.get(bank, {}).items():
            if index not in claimed:
                claimed[index] = value
                weaknesses |= {"sha1"} if bank == "sha1" else set()
    measurements = {f"pcr{index}": value for index, value in sorted(claimed.items())}
    return measurements, frozenset(weaknesses)


def claim_events(
    selected: Registers, data: bytes, step: Step
) -> tuple[dict[str, bytes], frozenset[str]]:
    """Return the claims of an event log, from the PCRs alone that it replays to.

    Args:
        selected: What the TPM signed.
        data: The log, untrusted.
        step: Takes down which PCRs the log explains.

    Returns:
        Measurements by name; and the weakness "event-log-mismatch" if a PCR of firmware or
        boot loader (0 to 9) holds something else than the log says. Others are extended by
        the running system, which keeps logs of its own.

    Raises:
        EvidenceError: If the log is malformed, or explains none of the PCRs it speaks of.
    """
    log = parse_event_log(data)
    bank = next((b for b in PREFERENCE if b in log.banks and selected.get(b)), None)
    if bank is None:
        msg = f"event log: it has the banks {', '.join(log.banks)}, none of which was quoted"
        raise EvidenceError(msg)
    replayed = replay(log, bank)
    known = {index: v for index, v in selected[bank].items() if index in replayed}
    for index, value in known.items():
        step.compare(f"{bank} PCR {index}", expected=value, found=replayed[index])
    authentic = {index for index, value in known.items() if replayed[index] == value}
    if not authentic:
        msg = f"event log: it explains none of the {len(known)} quoted PCRs that it speaks of"
        raise EvidenceError(msg)
    differing = sorted(set(known) - authentic)
    notes = [f"explains PCR {', '.join(map(str, sorted(authentic)))}"]
    if differing:
        notes.append(f"does not explain PCR {', '.join(map(str, differing))}")
    text = command_line_text(log, bank, authentic=authentic)
    if text is not None:
        notes.append(f"command line: {text}")
    step.note("; ".join(notes))
    mismatch = any(index in _FIRMWARE_AND_LOADER for index in differing)
    weaknesses = frozenset({"event-log-mismatch"} if mismatch else ())
    return named_events(log, bank, authentic=authentic), weaknesses


def _parse_selections(reader: Reader) -> tuple[Selection, ...]:
    count = reader.u32("number of PCR selections")
    if count > _MAX_SELECTIONS:
        msg = f"TPM quote: {count} PCR selections, at most {_MAX_SELECTIONS} are accepted"
        raise EvidenceError(msg)
    selections = []
    for _ in range(count):
        algorithm = reader.u16("hash")
        mask = int.from_bytes(reader.sized(1, "pcrSelect", at_most=_MAX_SELECT_BYTES), "little")
        if mask >> _MAX_PCRS:
            msg = f"TPM quote: it selects a PCR beyond {_MAX_PCRS - 1}"
            raise EvidenceError(msg)
        indexes = tuple(index for index in range(_MAX_PCRS) if mask >> index & 1)
        bank = BANKS.get(algorithm)
        if bank is not None:
            selections.append(Selection(bank, indexes))
        elif indexes:
            msg = f"TPM quote: it covers PCRs of the unsupported bank {algorithm:#06x}"
            raise EvidenceError(msg)
    return tuple(selections)


def _yes_or_no(value: int) -> bool:
    if value > 1:
        msg = f"TPM quote: safe has to be 0 or 1, found {value}"
        raise EvidenceError(msg)
    return value == 1
