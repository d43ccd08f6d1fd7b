"""How much a server did lately: a ring of counts, for the page that a person reads.

Always true: bounded memory; counts and times only, over all models together, so nobody sees
what whose model did. It is in memory, and begins anew with the process.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

INTERVAL: Final = 10.0
"""Seconds that one entry covers."""
LENGTH: Final = 90
"""Entries that are kept."""
_NS: Final = 1_000_000_000


class _Tally(Protocol):
    @property
    def count(self) -> int: ...
    @property
    def ns(self) -> int: ...


class Counts(Protocol):
    """What one model has served since it was loaded; see `ServedStatistics`."""

    @property
    def sha256(self) -> str: ...  # noqa: D102 - as there
    @property
    def success(self) -> _Tally: ...  # noqa: D102
    @property
    def fail(self) -> _Tally: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Load:
    """What was served in one interval.

    Attributes:
        seconds: That it lasted.
        succeeded: Requests.
        failed: Requests.
        mean: Seconds from a request's arrival to its result; `None`: none succeeded.
        running: Requests that ran or waited at its end.
    """

    seconds: float
    succeeded: int
    failed: int
    mean: float | None
    running: int


class LoadHistory:
    """Remembers the last `LENGTH` intervals. For one event loop.

    Args:
        counts: Returns what each model has served, since it was loaded.
        running: Returns the requests that run or wait.
        interval: Seconds between two entries.
        clock: Returns seconds that never go back.
    """

    def __init__(
        self,
        counts: Callable[[], Iterable[Counts]],
        running: Callable[[], int],
        *,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._counts = counts
        self._running = running
        self._interval = interval
        self._clock = clock
        self._entries: deque[Load] = deque(maxlen=LENGTH)
        self._before = self._totals()
        self._before_at = clock()

    @property
    def entries(self) -> tuple[Load, ...]:
        """The intervals that are over, oldest first."""
        return tuple(self._entries)

    async def record_for_ever(self) -> None:
        """Record an interval after each interval, until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            self.record()

    def record(self) -> None:
        """End the present interval, and begin the next one."""
        now, totals = self._clock(), self._totals()
        succeeded = _growth(self._before[0], totals[0])
        ns = _growth(self._before[2], totals[2])
        self._entries.append(
            Load(
                seconds=now - self._before_at,
                succeeded=succeeded,
                failed=_growth(self._before[1], totals[1]),
                mean=ns / succeeded / _NS if succeeded else None,
                running=self._running(),
            )
        )
        self._before, self._before_at = totals, now

    def _totals(self) -> tuple[Counter[str], Counter[str], Counter[str]]:
        succeeded: Counter[str] = Counter()
        failed: Counter[str] = Counter()
        ns: Counter[str] = Counter()
        for each in self._counts():
            # Two tenants may have the same model, each with counts of its own.
            succeeded[each.sha256] += each.success.count
            failed[each.sha256] += each.fail.count
            ns[each.sha256] += each.success.ns
        return succeeded, failed, ns


def _growth(before: Counter[str], after: Counter[str]) -> int:
    """Return by how much totals grew; one that fell was begun anew, by a model that came back."""
    return sum(
        total - before[key] if total >= before[key] else total for key, total in after.items()
    )
