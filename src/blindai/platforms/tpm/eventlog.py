"""TCG event logs: what was measured into each register, in order.

Always true here: a log is untrusted. Replaying its digests gives register values, and only
where these equal values that hardware signed are its *digests* authentic. An event's type and
data are authentic only where the digest is the hash of them; a label is not. So an attacker
who has booted other code can extend a register further and label the new event as he likes:
what an event is called is no identity (`blindai.platforms.tpm.boot`), the register is.

Formats: TCG PC Client Platform Firmware Profile (PFP) 1.06 §10.2: SHA-1 logs
(TCG_PCClientPCREvent) and crypto-agile ones (TCG_PCR_EVENT2 after "Spec ID Event03"). A TDX log
(CCEL: UEFI 2.10 §38.4.1) is a crypto-agile one whose index is that of a measurement register:
0 is MRTD, 1 to 4 are RTMR0 to RTMR3.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from blindai.attestation.reader import Reader
from blindai.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

MAX_LOG_BYTES: Final = 4 << 20
MAX_EVENTS: Final = 20_000

# TCG Algorithm Registry §4; SM3 and SHA-3 banks are passed over.
BANKS: Final[dict[int, str]] = {0x04: "sha1", 0x0B: "sha256", 0x0C: "sha384", 0x0D: "sha512"}

EV_NO_ACTION: Final = 0x03

_SPEC_ID: Final = b"Spec ID Event03\0"
_STARTUP_LOCALITY: Final = b"StartupLocality\0"
_HEADER_SHA1: Final = 20
_MAX_ALGORITHMS: Final = 8
_MAX_DIGEST: Final = 64
_MAX_REGISTERS: Final = 32
_SHA1: Final = "sha1"


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a log.

    Attributes:
        register: PCR, or, in a CCEL, measurement register.
        kind: EV_… (PFP §10.4.1). Not covered by any digest.
        digests: Bank → what was extended.
        data: What the event says. Authentic only where `hashes` says so.
    """

    register: int
    kind: int
    digests: Mapping[str, bytes]
    data: bytes

    def hashes(self, content: bytes, bank: str) -> bool:
        """Return whether the digest of this event is the hash of `content`."""
        return self.digests.get(bank) == hashlib.new(bank, content).digest()


@dataclass(frozen=True, slots=True)
class EventLog:
    """A log as it was read: nothing in it is to be believed yet.

    Attributes:
        banks: The banks of which it has digests.
        events: In order, those included that extend nothing (EV_NO_ACTION).
    """

    banks: tuple[str, ...]
    events: tuple[Event, ...]


def parse_event_log(data: bytes) -> EventLog:
    """Read an event log of either format.

    Args:
        data: At most 4 MiB and 20,000 events.

    Raises:
        EvidenceError: If it is malformed, too large, or has no bank that is known.
    """
    if len(data) > MAX_LOG_BYTES:
        msg = f"event log: {len(data)} bytes, at most {MAX_LOG_BYTES} are accepted"
        raise EvidenceError(msg)
    reader = Reader(data, "event log")
    first = _read_sha1_event(reader)
    if first.kind != EV_NO_ACTION or not first.data.startswith(_SPEC_ID):
        rest = _read_events(reader, lambda: _read_sha1_event(reader))
        return EventLog(banks=(_SHA1,), events=(first, *rest))
    sizes = _parse_spec_id(first.data)
    banks = tuple(BANKS[algorithm] for algorithm in sizes if algorithm in BANKS)
    events = _read_events(
        reader, lambda: _read_agile_event(reader, sizes), end=_padding_start(data)
    )
    return EventLog(banks=banks, events=tuple(events))


def replay(log: EventLog, bank: str) -> dict[int, bytes]:
    """Return what each register of `bank` holds once all events were extended into it.

    Registers without an event are left out: the log says nothing of them.

    Raises:
        EvidenceError: If an event has no digest for the bank, or names no register.
    """
    registers: dict[int, bytes] = {}
    size = hashlib.new(bank).digest_size
    for event in log.events:
        if event.kind == EV_NO_ACTION:
            _start_up(registers, event, size)
            continue
        if event.register >= _MAX_REGISTERS:
            msg = f"event log: there is no register {event.register}"
            raise EvidenceError(msg)
        digest = event.digests.get(bank)
        if digest is None:
            msg = f"event log: an event of register {event.register} has no {bank} digest"
            raise EvidenceError(msg)
        held = registers.get(event.register, bytes(size))
        registers[event.register] = hashlib.new(bank, held + digest).digest()
    return registers


def replay_rtmrs(log: EventLog) -> dict[int, bytes]:
    """Return what RTMR0 to RTMR3 hold, by their number, for a CCEL (UEFI 2.10 §38.4.1).

    Raises:
        EvidenceError: As `replay`.
    """
    return {register - 1: held for register, held in replay(log, "sha384").items() if register}


def _read_events(
    reader: Reader, read: Callable[[], Event], *, end: int | None = None
) -> Iterator[Event]:
    count = 0
    while reader.remaining:
        if end is not None and reader.position >= end:
            return
        count += 1
        if count >= MAX_EVENTS:
            msg = f"event log: more than {MAX_EVENTS} events"
            raise EvidenceError(msg)
        yield read()


def _padding_start(data: bytes) -> int:
    # A CCEL is a fixed area of memory: what follows its last event is all ones or all zeros.
    return min(len(data.rstrip(b"\xff")), len(data.rstrip(b"\0")))


def _read_sha1_event(reader: Reader) -> Event:
    register = reader.u32("pcrIndex")
    kind = reader.u32("eventType")
    digest = reader.take(_HEADER_SHA1, "digest")
    data = reader.sized(4, "event", at_most=MAX_LOG_BYTES)
    return Event(register, kind, {_SHA1: digest}, data)


def _read_agile_event(reader: Reader, sizes: Mapping[int, int]) -> Event:
    register = reader.u32("pcrIndex")
    kind = reader.u32("eventType")
    count = reader.u32("number of digests")
    if count > len(sizes):
        msg = f"event log: an event with {count} digests, the header names {len(sizes)}"
        raise EvidenceError(msg)
    digests: dict[str, bytes] = {}
    for _ in range(count):
        algorithm = reader.u16("hashAlg")
        if algorithm not in sizes:
            msg = f"event log: an event with the unannounced algorithm {algorithm:#06x}"
            raise EvidenceError(msg)
        digest = reader.take(sizes[algorithm], "digest")
        bank = BANKS.get(algorithm)
        if bank in digests:
            msg = f"event log: an event with two {bank} digests"
            raise EvidenceError(msg)
        if bank is not None:
            digests[bank] = digest
    return Event(register, kind, digests, reader.sized(4, "event", at_most=MAX_LOG_BYTES))


def _parse_spec_id(data: bytes) -> dict[int, int]:
    reader = Reader(data, "Spec ID event")
    reader.skip(len(_SPEC_ID), "signature")
    reader.skip(8, "platform class, version, errata and uintn size")
    count = reader.u32("numberOfAlgorithms")
    if not 1 <= count <= _MAX_ALGORITHMS:
        msg = f"event log: {count} algorithms, expected 1 to {_MAX_ALGORITHMS}"
        raise EvidenceError(msg)
    sizes: dict[int, int] = {}
    for _ in range(count):
        algorithm, size = reader.u16("algorithmId"), reader.u16("digestSize")
        bank = BANKS.get(algorithm)
        fits = size <= _MAX_DIGEST if bank is None else size == hashlib.new(bank).digest_size
        if algorithm in sizes or not fits:
            msg = f"event log: algorithm {algorithm:#06x} twice, or with {size} bytes"
            raise EvidenceError(msg)
        sizes[algorithm] = size
    reader.sized(1, "vendorInfo", at_most=255)
    reader.end()
    if not any(algorithm in BANKS for algorithm in sizes):
        msg = "event log: no bank that is known"
        raise EvidenceError(msg)
    return sizes


def _start_up(registers: dict[int, bytes], event: Event, size: int) -> None:
    # PFP §10.4.5.3: the locality that started the TPM is the last byte PCR 0 begins with.
    data = event.data
    if data.startswith(_STARTUP_LOCALITY) and len(data) == len(_STARTUP_LOCALITY) + 1:
        if 0 in registers:
            msg = "event log: the startup locality comes after an event of PCR 0"
            raise EvidenceError(msg)
        registers[0] = data[-1:].rjust(size, b"\0")
