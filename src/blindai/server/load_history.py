"""How much a server did lately: a ring of counts, for the page that a person reads.

Always true: bounded memory; counts and times only, over models together. It is in memory, and
begins anew with the process.
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
    @property
    def waiting(self) -> int: ...  # noqa: D102
    @property
    def running(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Load:
    """What was served in one interval.

    Attributes:
        seconds: That it lasted.
        succeeded: Requests.
        failed: Requests.
        mean: Seconds from a request's arrival to its result; `None`: none succeeded.
        running: Runs under way and requests that waited, at its end.
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
        interval: Seconds between two entries.
        clock: Returns seconds that never go back.
    """

    def __init__(
        self,
        counts: Callable[[], Iterable[Counts]],
        *,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._counts = counts
        self._interval = interval
        self._clock = clock
        self._entries: deque[Load] = deque(maxlen=LENGTH)
        self._before = _Totals(counts())
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
        now, totals, before = self._clock(), _Totals(self._counts()), self._before
        succeeded = _growth(before.succeeded, totals.succeeded)
        ns = _growth(before.ns, totals.ns)
        self._entries.append(
            Load(
                seconds=now - self._before_at,
                succeeded=succeeded,
                failed=_growth(before.failed, totals.failed),
                mean=ns / succeeded / _NS if succeeded else None,
                running=totals.running,
            )
        )
        self._before, self._before_at = totals, now


class _Totals:
    """Counts since each model was loaded, by its SHA-256."""

    __slots__ = ("failed", "ns", "running", "succeeded")

    def __init__(self, counts: Iterable[Counts]) -> None:
        self.succeeded: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.ns: Counter[str] = Counter()
        self.running = 0
        for each in counts:
            self.succeeded[each.sha256] += each.success.count
            self.failed[each.sha256] += each.fail.count
            self.ns[each.sha256] += each.success.ns
            self.running += each.waiting + each.running


def _growth(before: Counter[str], after: Counter[str]) -> int:
    """Return by how much totals grew; one that fell was begun anew, by a model that came back."""
    return sum(
        total - before[key] if total >= before[key] else total for key, total in after.items()
    )
