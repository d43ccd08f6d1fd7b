"""Server side: an attester whose evidence carries the vendors' endorsements.

Always true: who asks for evidence never waits for a vendor longer than `timeout`, and not at
all while a vendor has just failed. What cannot be had is left out, for the client to fetch.
"""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Self

from blindai.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from blindai.attestation.model import Evidence, Platform
    from blindai.attesters.base import Attester, Counter
    from blindai.endorsements.endorser import Endorser

# Endorsements live for hours at least, and are renewed well before their end.
_INTERVAL: Final = timedelta(minutes=5)
_log: Final = logging.getLogger(__name__)


class Stapler:
    """Wraps an attester; use it as one.

    Without `start`, which fetches in a thread of its own, evidence carries only what
    `refresh` has fetched before.

    Args:
        attester: Makes the evidence.
        endorser: Fetches and keeps endorsements.
        timeout: Seconds that one call of `attest` waits for endorsements at most.
        interval: How often to look whether an endorsement has to be renewed.
        clock: Returns the time, with a time zone.
    """

    def __init__(
        self,
        attester: Attester,
        endorser: Endorser,
        *,
        timeout: float = 5.0,
        interval: timedelta = _INTERVAL,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        if timeout < 0 or interval <= timedelta(0):
            msg = f"expected a timeout and an interval, found {timeout} and {interval}"
            raise ConfigurationError(msg)
        self._attester = attester
        self._endorser = endorser
        self._timeout = timeout
        self._interval = interval
        self._clock = clock or _now
        # All below is guarded by the condition.
        self._condition = threading.Condition()
        self._latest: Evidence | None = None
        self._asked = False
        self._rounds = 0
        self._quiet_until: datetime | None = None
        self._failures: tuple[str, ...] = ()
        self._thread: threading.Thread | None = None

    @property
    def platform(self) -> Platform:
        """Where the attester runs."""
        return self._attester.platform

    @property
    def failures(self) -> tuple[str, ...]:
        """Why endorsements are missing since the last round; empty where none is."""
        with self._condition:
            return self._failures

    def sealing_key(self) -> bytes | None:
        """Return the attester's sealing key."""
        return self._attester.sealing_key()

    def rollback_counter(self) -> Counter | None:
        """Return the attester's counter."""
        return self._attester.rollback_counter()

    @property
    def wrapped(self) -> Attester:
        """The attester itself."""
        return self._attester

    def attest(self, report_data: bytes) -> Evidence:
        """Return fresh evidence with its endorsements, as far as they are at hand.

        Args:
            report_data: 32 bytes.
        """
        return self.staple(self._attester.attest(report_data))

    def staple(self, evidence: Evidence) -> Evidence:
        """Return `evidence` with its endorsements, as far as they are at hand."""
        now = self._clock()
        stapled = self._endorser.endorse(evidence, now, fetch=False)
        with self._condition:
            self._latest = evidence
            quiet = self._quiet_until is not None and now < self._quiet_until
            if not stapled.missing or quiet or self._thread is None:
                return stapled.evidence
            seen = self._rounds
            self._asked = True
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._rounds > seen, self._timeout)
        return self._endorser.endorse(evidence, now, fetch=False).evidence

    def refresh(self) -> None:
        """Fetch what the last evidence lacks, and what has to be renewed. May take long."""
        with self._condition:
            evidence = self._latest
        if evidence is None:
            return
        failures: tuple[str, ...] = ()
        missing = True
        try:
            endorsed = self._endorser.endorse(evidence, self._clock(), fetch=True)
            failures, missing = endorsed.failures, bool(endorsed.missing)
        finally:
            with self._condition:
                quiet = self._clock() + self._endorser.settings.retry_after
                self._quiet_until = quiet if missing else None
                self._failures = failures
                self._rounds += 1
                self._condition.notify_all()

    def start(self) -> Self:
        """Begin to fetch in the background; does nothing where that has begun."""
        with self._condition:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="blindai-endorsements", daemon=True
                )
                self._thread.start()
        return self

    def close(self) -> None:
        """Stop fetching; a request under way ends by itself."""
        with self._condition:
            thread, self._thread = self._thread, None
            self._condition.notify_all()
        if thread is not None:
            thread.join(self._timeout)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        me = threading.current_thread()
        while True:
            with self._condition:
                self._condition.wait_for(
                    lambda: self._asked or self._thread is not me, self._interval.total_seconds()
                )
                if self._thread is not me:
                    return
                self._asked = False
            try:
                self.refresh()
            except Exception as error:  # noqa: BLE001 (a `get` of someone else's must not end us)
                _log.warning("endorsements: a round failed (%s)", type(error).__name__)


def _now() -> datetime:
    return datetime.now(UTC)
