"""Whether a connection moves as fast as it has to. Looked at once a second, never per frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blindai.server.config import Limits


class Pace:
    """Watches one direction of a connection.

    Args:
        limits: `min_body_rate`, over spans of `body_timeout`.
        now: In seconds of the event loop's clock.
    """

    __slots__ = ("_before", "_rate", "_since", "_span")

    def __init__(self, limits: Limits, now: float) -> None:
        self._rate = limits.min_body_rate
        self._span = limits.body_timeout
        self._since = now
        self._before = 0

    def is_too_slow(self, now: float, moved: int, *, has_to_move: bool) -> bool:
        """Return whether less moved than had to, over a whole span.

        Args:
            now: The time.
            moved: Bytes, since the connection began.
            has_to_move: Whether anything is owed at this moment.
        """
        if not has_to_move:
            self._since, self._before = now, moved
            return False
        span = now - self._since
        if span < self._span:
            return False
        is_slow = moved - self._before < self._rate * span
        self._since, self._before = now, moved
        return is_slow
