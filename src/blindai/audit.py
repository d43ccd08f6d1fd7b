"""Verify an audit log: which lines are as they were written, and whose key signed them.

Always true here: no network and no clock. Each line has to follow the one before it and to
bear a signature of the key that the last "keys" entry brought; with a policy, that entry's
evidence has to hold as of its time, every step of `blindai.verify` included, and entries have
to be of that key's life. The first line that differs is named.

A log that was cut short at its end is whole for all that it says: only a head that was known
before shows that something is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from blindai.attestation.trust import VENDOR_ROOTS, Anchors
from blindai.attestation.wire import parse_bundle
from blindai.channel.audit import Entry, Head, read_lines
from blindai.channel.keyset import Keyset
from blindai.errors import AttestationError, BindingError, EvidenceError
from blindai.verify import verify

if TYPE_CHECKING:
    from datetime import datetime
    from typing import BinaryIO

    from blindai.attestation.model import AttestationResult
    from blindai.attestation.policy import Policy

__all__ = ["AuditResult", "verify_audit_log"]

_MAX_CLOCK_SKEW: Final = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What an audit log is.

    Attributes:
        head: Its end.
        results: Of each "keys" entry, where there was a policy; empty: nobody vouched for a key.
        open: Numbers of entries that say "begun", and whose outcome nobody wrote.
        torn: Bytes of a last line that is not whole.
    """

    head: Head
    results: tuple[AttestationResult, ...]
    open: tuple[int, ...]
    torn: int

    @property
    def simulated(self) -> bool:
        """Whether a key in it was one that no hardware protected."""
        return any(result.simulated for result in self.results)


def verify_audit_log(
    file: BinaryIO,
    policy: Policy | None,
    *,
    now: datetime,
    head: str | None = None,
    anchors: Anchors = VENDOR_ROOTS,
) -> AuditResult:
    """Read a log from its beginning to its end, or raise what is wrong with it.

    Args:
        file: The log.
        policy: What may have written it; `None`: whatever did.
        now: The moment to verify at, with a time zone; nothing in the log may be later.
        head: SHA-256 of a line that has to be there, in hexadecimal: what was printed before.
        anchors: The vendors' roots that count; tests bring their own.

    Raises:
        AttestationError: One of its subclasses, with the number of the first line that differs.
        OSError: The file cannot be read.
    """
    reader = _Reader(policy, now, anchors)
    seen = head is None
    torn = 0
    for line in read_lines(file):
        if not line.endswith(b"\n"):
            torn = len(line)
            break
        try:
            reader.take(line[:-1])
        except AttestationError as error:
            error.args = (f"line {reader.head.entries + 1}: {error}",)
            raise
        seen = seen or reader.head.sha256 == head
    if not seen:
        msg = (
            f"expected the line with SHA-256 {head}, which was the log's end before; it is not "
            f"there: something was taken away. It ends at line {reader.head.entries}"
        )
        raise EvidenceError(msg)
    return AuditResult(reader.head, tuple(reader.results), tuple(reader.open), torn)


class _Reader:
    """Follows a log line by line."""

    def __init__(self, policy: Policy | None, now: datetime, anchors: Anchors) -> None:
        self.head = Head()
        self.results: list[AttestationResult] = []
        self.open: dict[int, None] = {}
        self._policy = policy
        self._now = now
        self._anchors = anchors
        self._keys: Keyset | None = None

    def take(self, line: bytes) -> None:
        """Follow one line.

        Raises:
            AttestationError: It differs.
        """
        entry, head = self.head.follow(line)
        if entry.time > self._now + _MAX_CLOCK_SKEW:
            msg = f"expected a time in the past, came {entry.time:%Y-%m-%d %H:%M:%S}Z"
            raise EvidenceError(msg)
        keys, result = self._keys, None
        if entry.event == "keys":
            keys, result = self._introduce(entry)
        if keys is None:
            msg = "expected the server's keys first, came something else"
            raise EvidenceError(msg)
        entry.check_signature(keys.receipt_public_key)
        if entry.time >= keys.not_after:
            msg = f"the key that signed it ended at {keys.not_after:%Y-%m-%d %H:%M:%S}Z"
            raise BindingError(msg)
        if entry.outcome == "begun":
            self.open[entry.seq] = None
        elif entry.of is not None:
            self.open.pop(entry.of, None)
        if result is not None:
            self.results.append(result)
        self._keys, self.head = keys, head

    def _introduce(self, entry: Entry) -> tuple[Keyset, AttestationResult | None]:
        """Return the keys that an entry brings, and what says that they may be trusted."""
        if entry.evidence is None:
            msg = "expected evidence of the server's keys, came none"
            raise EvidenceError(msg)
        bundle = parse_bundle(entry.evidence)
        keys = Keyset.parse(bundle.keyset)
        if self._policy is None:
            return keys, None
        result = verify(bundle, self._policy, nonce=None, now=entry.time, anchors=self._anchors)
        return keys, result
