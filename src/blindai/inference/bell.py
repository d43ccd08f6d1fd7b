"""Wakes workers that have nothing to do: one for each ring.

Always true: a ring is never lost, and no more workers are rung for than are idle. Not a
condition, whose waiters wake up only to wait for the lock that whoever woke them still holds.
"""

from __future__ import annotations

import contextlib
import queue


class Bell:
    """A bell that idle workers listen to. All but `wait` are called with the scheduler's lock.

    Attributes:
        idle: Workers that look for work or wait for it.
    """

    __slots__ = ("_rings", "_rung", "idle")

    def __init__(self) -> None:
        self.idle = 0
        # Rings that nobody has answered yet.
        self._rung = 0
        self._rings: queue.SimpleQueue[None] = queue.SimpleQueue()

    def ring(self) -> None:
        """Wake a worker, if one is idle that was not rung for."""
        if self.idle > self._rung:
            self.ring_anyway()

    def ring_anyway(self) -> None:
        """Wake a worker, or the next that becomes idle."""
        self._rung += 1
        self._rings.put(None)

    def wait(self, seconds: float | None) -> bool:
        """Wait for a ring, at most so long; without the lock.

        Returns:
            Whether it rang; then `answered` has to be called.
        """
        with contextlib.suppress(queue.Empty):
            self._rings.get(timeout=seconds)
            return True
        return False

    def answered(self) -> None:
        """Say that a ring was heard."""
        self._rung -= 1
