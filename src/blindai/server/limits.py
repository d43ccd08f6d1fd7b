"""Two small accounts: how often, and how much at once. For one event loop each; no locks."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from blindai.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class TokenBucket:
    """Allows `burst` events at once and `rate` per second in the long run.

    Args:
        rate: Events per second.
        burst: Events that may come at once.
        clock: Returns seconds that never go back.
    """

    __slots__ = ("_burst", "_clock", "_level", "_rate", "_seen")

    def __init__(
        self, rate: float, burst: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._level = float(burst)
        self._seen = clock()

    def take(self) -> float:
        """Take one event; return 0, or the seconds after which there is one to take."""
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._seen) * self._rate)
        self._seen = now
        if self._level < 1:
            return (1 - self._level) / self._rate
        self._level -= 1
        return 0.0


class ByteBudget:
    """Bytes that all requests together may hold.

    Args:
        total: In bytes.
    """

    __slots__ = ("_total", "_used")

    def __init__(self, total: int) -> None:
        self._total = total
        self._used = 0

    @property
    def used(self) -> int:
        """Bytes that are held now."""
        return self._used

    @contextmanager
    def share(self) -> Iterator[Share]:
        """Open one request's share; all of it is given back at the end of the block."""
        share = Share(self)
        try:
            yield share
        finally:
            self._used -= share.used

    def _grow(self, count: int) -> None:
        if self._used + count > self._total:
            msg = "the server holds as much data as it has room for"
            raise Overloaded(msg)
        self._used += count


class Share:
    """What one request holds of a `ByteBudget`."""

    __slots__ = ("_budget", "used")

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.used = 0

    def grow(self, count: int) -> None:
        """Hold `count` bytes more.

        Raises:
            Overloaded: There is no room for them.
        """
        self._budget._grow(count)  # noqa: SLF001 - two halves of one account
        self.used += count

    def shrink(self, count: int) -> None:
        """Hold `count` bytes less."""
        self._budget._grow(-count)  # noqa: SLF001 - two halves of one account
        self.used -= count
