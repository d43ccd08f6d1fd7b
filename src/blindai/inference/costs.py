"""What a run costs by its number of rows, and how many requests are best run together.

Always true: nothing is batched because it should be faster, only because it was measured to
be; and what was measured is measured again now and then, because machines change.

Times are those of runs that shared the machine with other runs: a lone run has all cores, and
would make every batch look slow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Of a new time in the moving average.
_WEIGHT: Final = 0.25
# A run that was put off by the system is no reason to change course at once.
_OUTLIER: Final = 2.0
# Below this many measurements a time is not relied on; the first runs are slower than later ones.
_ENOUGH: Final = 3
# What a row of a batch must cost at most, of a row alone: latency grows for sure.
_GAIN: Final = 0.95
# Every so many decisions one is made otherwise, to learn.
_CURIOSITY: Final = 48
# Larger sizes share a figure with all up to the next power of two: bounded memory.
_EXACT_SIZES: Final = 64


class MovingAverage:
    """A time that follows its measurements; `None` before the first."""

    __slots__ = ("count", "seconds")

    def __init__(self) -> None:
        self.seconds: float | None = None
        self.count = 0

    def add(self, seconds: float) -> None:
        """Add a measurement."""
        self.count += 1
        if self.seconds is None:
            self.seconds = seconds
        elif self.count <= _ENOUGH:
            self.seconds = min(self.seconds, seconds)
        else:
            seconds = min(seconds, _OUTLIER * self.seconds)
            self.seconds += _WEIGHT * (seconds - self.seconds)


class CostModel:
    """The costs of one model for inputs of one shape. Not for several threads at once."""

    __slots__ = ("_by_rows", "_decisions")

    def __init__(self) -> None:
        self._by_rows: dict[int, MovingAverage] = {}
        self._decisions = 0

    def record(self, rows: int, seconds: float) -> None:
        """Add the time of a run."""
        self._by_rows.setdefault(_bucket(rows), MovingAverage()).add(seconds)

    def seconds_by_rows(self) -> Mapping[int, float]:
        """Return the time of a run by its number of rows, as far as known."""
        return {
            rows: average.seconds
            for rows, average in sorted(self._by_rows.items())
            if average.seconds is not None
        }

    def estimate(self, rows: int) -> float | None:
        """Return the seconds that a run will take; `None` before the first measurement."""
        known = self.seconds_by_rows()
        if not known:
            return None
        rows = max(1, rows)
        below = max((size for size in known if size <= rows), default=None)
        above = min((size for size in known if size >= rows), default=None)
        if below is None or above is None:
            nearest = below or above or 1
            # Without a second point: as if each row cost the same.
            return known[nearest] * rows / nearest
        if below == above:
            return known[below]
        share = (rows - below) / (above - below)
        return known[below] + share * (known[above] - known[below])

    def choose(self, rows: Sequence[int]) -> int:
        """Return how many of the waiting requests to run together.

        Args:
            rows: Of each request, in the order of the queue; at least one.
        """
        if len(rows) == 1 or not self._is_known(rows[0]):
            return 1
        self._decisions += 1
        totals = _running_totals(rows)
        if self._decisions % _CURIOSITY == 0:
            return self._something_else(totals)
        return self._best(totals)

    def _best(self, totals: Sequence[int]) -> int:
        largest = max(size for size in self._by_rows if self._is_known(size))
        best, best_cost = 1, _GAIN * self._cost(totals[0])
        for count, total in enumerate(totals[1:], start=2):
            if total > largest:
                break
            cost = self._cost(total)
            if cost < best_cost:
                best, best_cost = count, cost
        # As long as the largest known size is the best one, a larger one is worth a try.
        best_total = totals[best - 1]
        at_frontier = best == len(totals) or totals[best] > largest
        if at_frontier:
            for count in range(best + 1, len(totals) + 1):
                if totals[count - 1] > max(2 * best_total, totals[1]):
                    break
                best = count
        return best

    def _something_else(self, totals: Sequence[int]) -> int:
        """Return now one, now two, four, eight, …: what was settled may have changed."""
        turn = self._decisions // _CURIOSITY
        sizes = [1 << power for power in range(len(totals).bit_length())]
        return sizes[turn % len(sizes)]

    def _is_known(self, rows: int) -> bool:
        average = self._by_rows.get(_bucket(rows))
        return average is not None and average.count >= _ENOUGH

    def _cost(self, rows: int) -> float:
        return (self.estimate(rows) or 0.0) / rows


def _running_totals(rows: Sequence[int]) -> list[int]:
    totals = [rows[0]]
    for count in rows[1:]:
        totals.append(totals[-1] + count)
    return totals


def _bucket(rows: int) -> int:
    return rows if rows <= _EXACT_SIZES else 1 << (rows - 1).bit_length()
