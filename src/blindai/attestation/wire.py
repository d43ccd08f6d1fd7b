"""Evidence as bytes: deterministic CBOR (RFC 8949 §4.2), one version, bounded.

Reading is strict: whatever is accepted is the one encoding that writing gives, so the digest
of a bundle names it. Anything else is `EvidenceError`, and nothing else is ever raised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NoReturn

import cbor2

from blindai.attestation.model import Evidence, EvidenceBundle, Platform
from blindai.attestation.reader import Reader
from blindai.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Iterator

WIRE_VERSION: Final = 1
MEDIA_TYPE: Final = "application/vnd.blindai.evidence+cbor"
# The largest real part is a TPM event log (some 100 KiB) beside certificates and collateral.
MAX_BUNDLE_BYTES: Final = 4 << 20
MAX_DEVICES: Final = 32
MAX_ATTACHMENTS: Final = 32
_MAX_DEPTH: Final = 8
# A full bundle of `MAX_DEVICES` with all their attachments has some 2,400.
_MAX_ITEMS: Final = 8192
# Initial bytes of RFC 8949 §3: three bits of major type, five of additional information.
_UNSIGNED, _BYTES, _ARRAY, _MAP = 0, 2, 4, 5
_IMMEDIATE: Final = 24
_LENGTHS: Final = {24: 1, 25: 2, 26: 4, 27: 8}
_INDEFINITE: Final = 31
_BREAK: Final = 0xFF
_SIMPLE: Final = {0xF4: False, 0xF5: True, 0xF6: None}


def dump_bundle(bundle: EvidenceBundle) -> bytes:
    """Return the canonical bytes of `bundle`."""
    return cbor2.dumps(
        {
            "version": WIRE_VERSION,
            "evidence": _evidence_to_data(bundle.evidence),
            "keyset": bundle.keyset,
            "certificate": bundle.certificate,
            "devices": [_evidence_to_data(device) for device in bundle.devices],
        },
        canonical=True,
    )


def dump_evidence(evidence: Evidence) -> bytes:
    """Return the canonical bytes of one piece of evidence: what a device digest covers."""
    return cbor2.dumps(_evidence_to_data(evidence), canonical=True)


def parse_bundle(data: bytes) -> EvidenceBundle:
    """Read a bundle.

    Args:
        data: At most 4 MiB from an untrusted source.

    Raises:
        EvidenceError: If it is anything but the canonical encoding of a version 1 bundle.
    """
    document = load_cbor(data, "evidence bundle", at_most=MAX_BUNDLE_BYTES)
    fields = _fields(
        document, "evidence bundle", {"version", "evidence", "keyset", "certificate", "devices"}
    )
    if fields["version"] != WIRE_VERSION:
        found = repr(fields["version"])[:32]
        msg = f"evidence bundle: expected version {WIRE_VERSION}, found {found}"
        raise EvidenceError(msg)
    devices = fields["devices"]
    if not isinstance(devices, list) or len(devices) > MAX_DEVICES:
        msg = f"evidence bundle: expected at most {MAX_DEVICES} devices"
        raise EvidenceError(msg)
    bundle = EvidenceBundle(
        evidence=_parse_evidence(fields["evidence"], "evidence"),
        keyset=_bytes(fields["keyset"], "keyset"),
        certificate=_bytes(fields["certificate"], "certificate"),
        devices=tuple(_parse_evidence(d, f"devices[{i}]") for i, d in enumerate(devices)),
    )
    if dump_bundle(bundle) != data:
        msg = "evidence bundle: not in canonical form"
        raise EvidenceError(msg)
    return bundle


def load_cbor(data: bytes, name: str, *, at_most: int) -> object:
    """Decode exactly one plain CBOR item of bounded size, depth and number of items.

    Plain is what evidence is made of: integers of 64 bits, byte strings, text, arrays, maps
    with distinct integers or text as keys, false, true and null. Tags are refused before
    anything acts on them: those for sharing turn 300 bytes into more items than can be
    visited, others build dates, regular expressions or numbers of a million digits.

    Not every encoding that is accepted is the canonical one; who needs that encodes again and
    compares, which never takes more bytes than `data` has.

    Raises:
        EvidenceError: If `data` is anything else.
    """
    if len(data) > at_most:
        msg = f"{name}: {len(data)} bytes, at most {at_most} are accepted"
        raise EvidenceError(msg)
    decoder = _Decoder(data, name)
    item = decoder.item(_MAX_DEPTH)
    decoder.end()
    return item


class _Decoder:
    """Reads items one after another; memory is only ever taken for bytes that are there."""

    __slots__ = ("_data", "_items_left", "_name", "_reader")

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self._name = name
        self._reader = Reader(data, name, byteorder="big")
        self._items_left = _MAX_ITEMS

    def item(self, depth: int) -> object:
        if depth == 0:
            self._refuse("nested too deeply")
        if self._items_left == 0:
            self._refuse(f"more than {_MAX_ITEMS} items")
        self._items_left -= 1
        head = self._reader.u8("the start of an item")
        if head in _SIMPLE:
            return _SIMPLE[head]
        major, information = head >> 5, head & 31
        if major > _MAP:
            self._refuse(f"unexpected CBOR type (initial byte 0x{head:02x})")
        if major >= _ARRAY:
            rounds = self._rounds(information)
            return self._array(rounds, depth) if major == _ARRAY else self._map(rounds, depth)
        argument = self._argument(information)
        if major >= _BYTES:
            return self._string(major, argument)
        return argument if major == _UNSIGNED else -1 - argument

    def end(self) -> None:
        self._reader.end()

    def _argument(self, information: int) -> int:
        if information < _IMMEDIATE:
            return information
        if information not in _LENGTHS:
            self._refuse(f"reserved or indefinite length ({information})")
        size = _LENGTHS[information]
        return int.from_bytes(self._reader.take(size, "the argument of an item"))

    def _string(self, major: int, size: int) -> bytes | str:
        content = self._reader.take(size, "a string")
        if major == _BYTES:
            return content
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            msg = f"{self._name}: a text string is not UTF-8"
            raise EvidenceError(msg) from error

    def _rounds(self, information: int) -> Iterator[None]:
        # Each round reads at least one byte, so a count that lies ends with the data.
        if information != _INDEFINITE:
            for _ in range(self._argument(information)):
                yield None
            return
        while self._reader.remaining == 0 or self._data[self._reader.position] != _BREAK:
            yield None
        self._reader.skip(1, "the break")

    def _array(self, rounds: Iterator[None], depth: int) -> list[object]:
        return [self.item(depth - 1) for _ in rounds]

    def _map(self, rounds: Iterator[None], depth: int) -> dict[int | str, object]:
        found: dict[int | str, object] = {}
        for _ in rounds:
            key = self.item(depth - 1)
            # bool is refused although it is an int: True and 1 would be one key.
            if not isinstance(key, int | str) or isinstance(key, bool):
                self._refuse(f"a key of a map is {type(key).__name__}")
            if key in found:
                self._refuse("a key of a map is there twice")
            found[key] = self.item(depth - 1)
        return found

    def _refuse(self, what: str) -> NoReturn:
        msg = f"{self._name}, before offset {self._reader.position}: {what}"
        raise EvidenceError(msg)


def _evidence_to_data(evidence: Evidence) -> dict[str, object]:
    return {
        "platform": str(evidence.platform),
        "body": evidence.body,
        "attachments": dict(evidence.attachments),
    }


def _parse_evidence(data: object, name: str) -> Evidence:
    fields = _fields(data, name, {"platform", "body", "attachments"})
    try:
        platform = Platform(fields["platform"])
    except ValueError as error:
        msg = f"{name}: unsupported platform {str(fields['platform'])[:64]!r}"
        raise EvidenceError(msg) from error
    attachments = fields["attachments"]
    if not isinstance(attachments, dict) or len(attachments) > MAX_ATTACHMENTS:
        msg = f"{name}: expected at most {MAX_ATTACHMENTS} attachments"
        raise EvidenceError(msg)
    if not all(isinstance(key, str) for key in attachments):
        msg = f"{name}: an attachment's name must be text"
        raise EvidenceError(msg)
    return Evidence(
        platform=platform,
        body=_bytes(fields["body"], f"{name}.body"),
        attachments={
            key: _bytes(value, f"{name}.attachments") for key, value in attachments.items()
        },
    )


def _fields(data: object, name: str, expected: set[str]) -> dict[str, Any]:
    if not isinstance(data, dict) or set(data) != expected:
        msg = f"{name}: expected a map of exactly {', '.join(sorted(expected))}"
        raise EvidenceError(msg)
    return data


def _bytes(value: object, name: str) -> bytes:
    if not isinstance(value, bytes):
        msg = f"{name}: expected bytes, found {type(value).__name__}"
        raise EvidenceError(msg)
    return value
