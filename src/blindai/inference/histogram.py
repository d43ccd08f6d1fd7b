"""Durations, counted by powers of two: cheap enough to be in the way of every request.

Always true: a count never shrinks; bounded memory, whatever comes.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# Buckets up to 2^14 ns, 16 µs, and so on to 2^37 ns, 137 s; what takes longer is in none.
_FIRST: Final = 14
_LAST: Final = 37
_NS: Final = 1e-9


class Histogram:
    """How often what took how long; safe to use from any thread."""

    __slots__ = ("_counts", "_lock", "_ns")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = [0] * 65
        self._ns = 0

    def add(self, ns: int) -> None:
        """Count one duration, in nanoseconds; at most 64 bits of them."""
        with self._lock:
            self._counts[ns.bit_length()] += 1
            self._ns += ns

    def add_all(self, durations: Iterable[int]) -> None:
        """Count several, in nanoseconds."""
        with self._lock:
            for ns in durations:
                self._counts[ns.bit_length()] += 1
                self._ns += ns

    def read(self) -> tuple[list[tuple[float, int]], int, float]:
        """Return what was counted.

        Returns:
            Upper bound of each bucket, in seconds, with the number of durations below it; the
            number of all; and their sum in seconds.
        """
        with self._lock:
            counts, ns = self._counts.copy(), self._ns
        below = sum(counts[:_FIRST])
        buckets = []
        for power in range(_FIRST, _LAST + 1):
            below += counts[power]
            buckets.append((2**power * _NS, below))
        return buckets, sum(counts), ns * _NS
