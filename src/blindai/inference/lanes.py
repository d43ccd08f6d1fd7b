"""How many runs of one model go side by side: found out, not assumed.

One run on all cores, or several that share them? Neither is always best. Runs of one session
share its pool of threads: with large arithmetic they get into each other's way (measured: 15 %
lost), with small they fill the gaps that each leaves. So both are tried under load, now and then,
and what made a row cheapest is kept.

Always true: without measurements as many go side by side as there are workers; a trial ends
after a few runs, and changes nothing unless it was better by more than noise.
"""

from __future__ import annotations

from typing import Final

# Of earlier runs in a sum, with each new one.
_DECAY: Final = 0.9
# A run that was put off by the system counts as at most so many times what was expected.
_OUTLIER: Final = 2.0
# What a row must cost at most, of what it costs now, for a change.
_GAIN: Final = 0.97
# Runs before the first trial, from one trial to the next, and in one. The pause doubles with
# each trial that changes nothing, up to a bound.
_WARM_UP: Final = 8
_PAUSE: Final = 64
_LONGEST_PAUSE: Final = 1024
_TRIAL: Final = 12
# Fewer runs are no measurement.
_ENOUGH: Final = 3


class _Cost:
    """Seconds of the machine for a row, of the last runs."""

    __slots__ = ("_rows", "_seconds", "runs")

    def __init__(self) -> None:
        self.runs = 0
        self._rows = self._seconds = 0.0

    @property
    def per_row(self) -> float | None:
        return self._seconds / self._rows if self.runs >= _ENOUGH else None

    def add(self, rows: int, seconds: float) -> None:
        expected = self.per_row
        if expected is not None:
            seconds = min(seconds, _OUTLIER * expected * rows)
        self.runs += 1
        self._rows = self._rows * _DECAY + rows
        self._seconds = self._seconds * _DECAY + seconds


class Lanes:
    """The lanes of one model for inputs of one shape. Not for several threads at once.

    Args:
        most: Lanes there can be; 1 or more.
    """

    __slots__ = ("_costs", "_ladder", "_left", "_pause", "_settled", "_trial", "_upwards")

    def __init__(self, most: int) -> None:
        powers = [1 << power for power in range((most - 1).bit_length())]
        self._ladder = (*powers, most)
        self._costs = {lanes: _Cost() for lanes in self._ladder}
        self._settled = most
        self._trial: int | None = None
        # Runs of the trial, or before the next.
        self._left = _WARM_UP
        self._pause = _PAUSE
        self._upwards = True

    @property
    def current(self) -> int:
        """How many runs may go side by side now."""
        return self._settled if self._trial is None else self._trial

    def record(self, lanes: int, rows: int, seconds: float) -> None:
        """Add a run under load.

        Args:
            lanes: Runs that were under way together, this one among them.
            rows: Of this run.
            seconds: That it took.
        """
        cost = self._costs.get(lanes)
        if cost is None or len(self._ladder) == 1:
            return
        cost.add(rows, seconds / lanes)
        self._left -= 1
        if self._left <= 0:
            if self._trial is None:
                self._begin_trial()
            else:
                self._end_trial(self._trial)

    def _begin_trial(self) -> None:
        at = self._ladder.index(self._settled)
        # In turns, but from an end there is one way only.
        self._upwards = not self._upwards if 0 < at < len(self._ladder) - 1 else at == 0
        self._trial = self._ladder[at + 1 if self._upwards else at - 1]
        # What the machine was like at the last trial says nothing.
        self._costs[self._trial] = _Cost()
        self._left = _TRIAL

    def _end_trial(self, tried: int) -> None:
        new, old = self._costs[tried].per_row, self._costs[self._settled].per_row
        if new is not None and (old is None or new < _GAIN * old):
            self._settled = tried
            self._pause = _PAUSE
        else:
            self._pause = min(_LONGEST_PAUSE, 2 * self._pause)
        self._trial = None
        self._left = self._pause
