"""Entries of the audit log: who changed what is served, one JSON line each, chained and signed.

Always true: a line holds the SHA-256 of the line before it, and a signature of the keyset's
Ed25519 key, which lives in the TEE: whoever owns the disk can neither change a line nor add
one. They can take the last lines away, or all of them; only who remembers a later head sees
that. A line has one encoding, so that its digest names it.

Nothing here says whose key it is: `blindai.audit` ties it to the evidence in the log.

Specification: RFC 8032 (Ed25519), over "blindai audit log v1", a zero byte, and the line
without its signature.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from blindai.attestation.wire import MAX_BUNDLE_BYTES
from blindai.errors import EvidenceError, SignatureError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

# Evidence in base64, and a little more.
MAX_LINE_BYTES: Final = MAX_BUNDLE_BYTES * 4 // 3 + (64 << 10)
GENESIS: Final = "0" * 64
_PURPOSE: Final = b"blindai audit log v1\0"

Event = Literal["keys", "stop", "upload", "delete", "handover", "withdraw", "access"]
Outcome = Literal["begun", "done", "failed"]


class Entry(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """One line of an audit log. What does not apply is left out.

    Attributes:
        seq: Number of the line, from 1.
        time: In UTC, by the clock in the TEE.
        previous: SHA-256 of the line before, in hexadecimal; of the first: zeros.
        event: "keys" (the server started, or renewed its keys), "stop", "upload", "delete",
            "handover", "withdraw" (of a handover), "access" (API keys were changed).
        outcome: "begun" is on the disk before anything happens; "done" or "failed" follows.
        of: Of an outcome: the number of the line that says "begun".
        kind: How who asked proved who they are: "token", "key", "jwt", "certificate"; "server"
            where nobody asked.
        subject: Who it was.
        tenant: Whose models it was about; left out: the operator's.
        model: SHA-256 of the model's file. Its name is its owner's to tell.
        size: Of the model, in bytes.
        error: Class of the error, of a failure.
        measurements: Of the code that may open the sealed models, in hexadecimal.
        sha256: Of the file of API keys.
        count: Of the keys in it.
        evidence: The bundle that vouches for the key that signs from this line on.
        torn: Bytes of a last line that was never whole, and was cut off before this one.
        signature: By the key of the last "keys" entry.
    """

    seq: int
    time: datetime
    previous: str
    event: Event
    outcome: Outcome | None = None
    of: int | None = None
    kind: str | None = None
    subject: str | None = None
    tenant: str | None = None
    model: str | None = None
    size: int | None = None
    error: str | None = None
    measurements: dict[str, str] | None = None
    sha256: str | None = None
    count: int | None = None
    evidence: bytes | None = None
    torn: int | None = None
    signature: bytes | None = None

    def check_signature(self, public_key: bytes) -> None:
        """Refuse an entry that `public_key` did not sign.

        Args:
            public_key: 32 raw bytes, Ed25519.

        Raises:
            SignatureError: It is not signed, or by another key.
        """
        try:
            key = Ed25519PublicKey.from_public_bytes(public_key)
            key.verify(self.signature or b"", _to_sign(self))
        except (InvalidSignature, ValueError) as error:
            msg = "expected a signature of the server's key, came another"
            raise SignatureError(msg) from error


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Entry)


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a log: who remembers it knows whether something was taken away since.

    Attributes:
        entries: How many there are.
        sha256: Of the last line, in hexadecimal.
    """

    entries: int = 0
    sha256: str = GENESIS

    def after(self, line: bytes) -> Head:
        """Return the head after one line more, given without its end."""
        return Head(self.entries + 1, hashlib.sha256(line).hexdigest())

    def follow(self, line: bytes) -> tuple[Entry, Head]:
        """Read the line that comes next.

        Args:
            line: Without its end.

        Returns:
            The entry, whose signature was not looked at, and the head after it.

        Raises:
            EvidenceError: It is no entry, or none that follows this head.
        """
        entry = parse_entry(line)
        if entry.seq != self.entries + 1:
            msg = f"expected entry {self.entries + 1}, came entry {entry.seq}"
            raise EvidenceError(msg)
        if entry.previous != self.sha256:
            msg = f"expected an entry after {self.sha256}, came one after {entry.previous[:64]}"
            raise EvidenceError(msg)
        return entry, self.after(line)


def parse_entry(line: bytes) -> Entry:
    """Read one line, given without its end.

    Raises:
        EvidenceError: If it is anything but the one encoding of an entry.
    """
    try:
        entry = _DECODER.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        msg = "expected an entry of an audit log, came something else"
        raise EvidenceError(msg) from error
    if entry.time.utcoffset() != timedelta(0):
        msg = "expected an entry with a time in UTC, came another"
        raise EvidenceError(msg)
    if _ENCODER.encode(entry) != line:
        msg = "expected an entry in the one form that is written, came another spelling"
        raise EvidenceError(msg)
    return entry


def sign_entry(entry: Entry, key: Ed25519PrivateKey) -> bytes:
    """Return the line of an entry, signed, without its end."""
    return _ENCODER.encode(msgspec.structs.replace(entry, signature=key.sign(_to_sign(entry))))


def read_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a log, each with its end; the last may lack it, as one cut short does.

    Raises:
        EvidenceError: A line longer than any entry.
        OSError: The file cannot be read.
    """
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            msg = f"expected lines of at most {MAX_LINE_BYTES} bytes, came a longer one"
            raise EvidenceError(msg)
        yield line


def _to_sign(entry: Entry) -> bytes:
    return _PURPOSE + _ENCODER.encode(msgspec.structs.replace(entry, signature=None))
