"""What is limited: two small accounts, how often and how much at once, and how limits are checked.

The accounts are for one event loop each; no locks.
"""

from __future__ import annotations

import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, Self

from blindai.errors import ConfigurationError, Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable

    from blindai.inference.memory import Memory

_PIECE: Final = 4 << 20
# Kept, so that requests that come and go do not ask each time.
_SPARE: Final = 16 << 20


def check_positive(limits: Any) -> None:
    """Refuse limits that let nothing pass.

    Args:
        limits: A dataclass of numbers.

    Raises:
        ConfigurationError: One of them is not greater than zero.
    """
    for item in fields(limits):
        value = getattr(limits, item.name)
        if not value > 0:
            msg = f"{item.name}: expected more than 0, came {value}"
            raise ConfigurationError(msg)


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
        memory: Counts them together with all else that is held; `None`: nobody does.
        make_room: Asked for so many bytes of it where there were none; returns at once.
    """

    __slots__ = ("_granted", "_make_room", "_memory", "_total", "_used")

    def __init__(
        self,
        total: int,
        memory: Memory | None = None,
        make_room: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._total = total
        self._used = 0
        self._memory = memory
        self._make_room = make_room
        # What the memory's account has for all requests: asked for in large pieces, and seldom.
        self._granted = 0 if memory is not None else total

    @property
    def used(self) -> int:
        """Bytes that are held now."""
        return self._used

    def share(self) -> Share:
        """Open one request's share, for a `with` block."""
        return Share(self)

    def _grow(self, count: int) -> None:
        used = self._used + count
        if used > self._total:
            msg = "the server holds as much data as it has room for"
            raise Overloaded(msg)
        if self._memory is not None and not self._granted - _SPARE <= used <= self._granted:
            self._ask(used, self._memory)
        self._used = used

    def _ask(self, used: int, memory: Memory) -> None:
        """Have as much granted as is needed, rounded up; give back what is not."""
        wanted = -(-used // _PIECE) * _PIECE
        more = wanted - self._granted
        if more <= 0:
            memory.release(-more)
        elif not memory.take(more):
            memory.refused += 1
            self._make_room(more)
            msg = "the server holds as much data as it has memory for"
            raise Overloaded(msg)
        self._granted = wanted


class Share:
    """What one request holds of a `ByteBudget`, until the end of a `with` block."""

    __slots__ = ("_budget", "used")

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.used = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shrink(self.used)

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
