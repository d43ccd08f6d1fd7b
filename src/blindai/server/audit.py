"""The audit log of a server: who uploaded, deleted, handed over, or changed access.

Always true: an action that is audited begins only after the disk has the entry that says so;
where that cannot be written, nothing is done. What is said of an outcome afterwards is best
effort: an entry "begun" without one says that the action may have happened. Only one server
writes to a file. A last line that a power cut tore was never acknowledged: it is cut off at
the start, and the next entry says so.

Entries are written by several threads, one at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from blindai.channel.audit import Entry, Head, read_lines, sign_entry
from blindai.errors import BlindAIError, ConfigurationError, EvidenceError, Overloaded
from blindai.inference.disk import Disk
from blindai.server.events import log_event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from blindai.channel.audit import Event, Outcome

# Of a subject: a JWT's may be as long as its issuer likes.
_MAX_SUBJECT: Final = 256
_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


def make_file(path: Path, disk: Disk | None = None) -> None:
    """Make the file of a log where it is missing; its name, too, is to survive a power cut.

    Raises:
        OSError: The system refuses.
    """
    disk = disk or Disk()
    try:
        disk.close(disk.create(path))
    except FileExistsError:
        return
    disk.sync_folder(path.parent)


class Who(Protocol):
    """Whom an entry is about."""

    @property
    def kind(self) -> str:
        """How they proved who they are."""
        ...

    @property
    def subject(self) -> str:
        """Who they are."""
        ...

    @property
    def tenant(self) -> str:
        """Whose models they use; empty: the operator's."""
        ...


class AuditLog:
    """Appends to one file; safe to use from any thread. Its methods wait for the disk.

    Args:
        path: Of the file; made where it is missing, for nobody else to read.
        now: Returns the time, in UTC.
        disk: Writes.

    Attributes:
        failures: Entries that could not be written.

    Raises:
        ConfigurationError: The file cannot be used, another server writes to it, or a line of
            it is not as it was written.
    """

    def __init__(
        self,
        path: Path,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        disk: Disk | None = None,
    ) -> None:
        self._path = path
        self._now = now
        self._disk = disk or Disk()
        self._lock = threading.Lock()
        self._key: Ed25519PrivateKey | None = None
        self._broken = ""
        self.failures = 0
        try:
            make_file(path, self._disk)
            self._file = os.open(path, _FLAGS)
        except OSError as error:
            msg = f"audit_log: cannot write to {path}: {error.strerror}"
            raise ConfigurationError(msg) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._head, self._size, self._torn = self._recover()
        except BlockingIOError as error:
            os.close(self._file)
            msg = f"audit_log: another server writes to {path}"
            raise ConfigurationError(msg) from error
        except OSError as error:
            os.close(self._file)
            msg = f"audit_log: cannot use {path}: {error.strerror}"
            raise ConfigurationError(msg) from error
        except ConfigurationError:
            os.close(self._file)
            raise

    @property
    def head(self) -> Head:
        """The end of the log."""
        return self._head

    def begin(self, key: Ed25519PrivateKey, evidence: bytes) -> None:
        """Sign with a key from now on, and say who vouches for it.

        Args:
            key: Of the keyset that the evidence is bound to.
            evidence: In wire form, without a nonce.

        Raises:
            Overloaded: The entry cannot be written.
        """
        with self._lock:
            before, self._key = self._key, key
            try:
                self._append("keys", evidence=evidence, torn=self._torn)
            except Overloaded:
                # The one before still holds, and is known.
                self._key = before
                raise
            self._torn = None
        log_event("audit_head", entries=self._head.entries, head=self._head.sha256)

    @contextlib.contextmanager
    def action(self, event: Event, who: Who, **about: Any) -> Iterator[None]:
        """Let something happen in a `with` block, and say how it ended.

        Args:
            event: What.
            who: Asked for it.
            about: Further fields of `Entry`.

        Raises:
            Overloaded: The entry cannot be written; the block is not entered.
        """
        said = {
            "kind": who.kind,
            "subject": who.subject[:_MAX_SUBJECT],
            "tenant": who.tenant or None,
            **about,
        }
        with self._lock:
            begun = self._append(event, "begun", **said)
        try:
            yield
        except BaseException as error:
            # Of others than ours not even the class is told: it may be a library's.
            name = type(error).__name__ if isinstance(error, BlindAIError) else "error"
            self._say(event, "failed", of=begun, error=name)
            raise
        self._say(event, "done", of=begun)

    def note(self, event: Event, **about: Any) -> None:
        """Say that something has happened that nobody asked this server for.

        Raises:
            Overloaded: The entry cannot be written.
        """
        with self._lock:
            self._append(event, kind="server", **about)

    def close(self) -> None:
        """Say that the server ends, and release the file."""
        if self._key is not None:
            self._say("stop")
            log_event("audit_head", entries=self._head.entries, head=self._head.sha256)
        with self._lock:
            self._broken = "it is closed"
            os.close(self._file)

    def _say(self, event: Event, outcome: Outcome | None = None, **about: Any) -> None:
        """Write what can no longer be refused, as well as can be."""
        with self._lock, contextlib.suppress(Overloaded):
            self._append(event, outcome, **about)

    def _append(self, event: Event, outcome: Outcome | None = None, **about: Any) -> int:
        """Write an entry, return its number; the lock must be held."""
        if self._broken or self._key is None:
            raise self._refused(self._broken or "it has no key yet")
        entry = Entry(
            seq=self._head.entries + 1,
            time=self._now(),
            previous=self._head.sha256,
            event=event,
            outcome=outcome,
            **about,
        )
        line = sign_entry(entry, self._key)
        try:
            self._disk.write(self._file, line + b"\n")
        except OSError as error:
            try:
                # What is half there would make the next line no entry.
                os.ftruncate(self._file, self._size)
            except OSError:
                self._broken = "its last line cannot be taken back"
            raise self._refused(error.strerror or "the disk refuses") from error
        try:
            self._disk.sync(self._file)
        except OSError as error:
            # After that the system no longer says what the disk has.
            self._broken = error.strerror or "the disk refuses"
            raise self._refused(self._broken) from error
        self._head = self._head.after(line)
        self._size += len(line) + 1
        return entry.seq

    def _refused(self, why: str) -> Overloaded:
        self.failures += 1
        log_event("audit_failed", level="error", entries=self._head.entries)
        msg = f"the audit log cannot be written, so nothing was done: {why}"
        return Overloaded(msg, retry_after=30.0)

    def _recover(self) -> tuple[Head, int, int | None]:
        """Follow the chain; cut off a last line that is none."""
        head, size, total = Head(), 0, os.fstat(self._file).st_size
        with open(self._file, "rb", closefd=False) as file:
            number = 0
            try:
                for number, line in enumerate(read_lines(file), 1):  # noqa: B007 - for the message
                    is_last = size + len(line) == total
                    if is_last and not line.endswith(b"\n"):
                        break
                    _, head = head.follow(line.removesuffix(b"\n"))
                    size += len(line)
            except EvidenceError as error:
                msg = (
                    f"audit_log: {self._path}, line {number}: {error}; move the file away, and "
                    "look at it with: blindai audit verify"
                )
                raise ConfigurationError(msg) from error
        if size == total:
            return head, size, None
        os.ftruncate(self._file, size)
        self._disk.sync(self._file)
        return head, size, total - size
