"""What a tenant uses at the moment, and how often. For one event loop each; no locks.

`Account` keeps a tenant within its quota; `Parties` keeps tenants, and everybody who is of none,
from taking each other's places where all that wait are more than there is room for.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from blindai.errors import RateLimited
from blindai.server.limits import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blindai.server.access.rules import Quota

_FEWEST: Final = 2


class Parties:
    """Counts the runs of each party, a tenant or everybody who is of none.

    Args:
        places: Runs under way or waiting that there is room for.
    """

    __slots__ = ("_places", "_running")

    def __init__(self, places: int) -> None:
        self._places = places
        self._running: Counter[str] = Counter()

    @contextlib.contextmanager
    def run(self, party: str) -> Iterator[int]:
        """Count a run until the end of the block; yield how many there are of that party.

        No party gets more than half of the places, nor, as soon as there are more than two, more
        than an equal share: so there is one left for whoever comes next.

        Raises:
            RateLimited: It has its share.
        """
        mine = self._running[party]
        parties = len(self._running) + (not mine)
        if mine >= max(1, self._places // max(_FEWEST, parties)):
            msg = f"{mine} runs of yours are under way, which is an equal share of what there is"
            raise RateLimited(msg)
        self._running[party] = mine + 1
        try:
            yield mine
        finally:
            self._running[party] -= 1
            if not self._running[party]:
                del self._running[party]


class Account:
    """Counts the runs and uploads of one tenant.

    Args:
        quota: How many it may have.
        clock: Returns seconds that never go back.
    """

    __slots__ = ("_bucket", "_quota", "running", "uploading")

    def __init__(self, quota: Quota, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._quota = quota
        self._bucket = TokenBucket(quota.rate, quota.burst, clock=clock)
        self.running = 0
        self.uploading = 0

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """Count a run until the end of the block.

        Raises:
            RateLimited: Too many at once, or too often.
        """
        self._check_number(self.running, self._quota.max_runs, "runs")
        self._take()
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    @contextlib.contextmanager
    def upload(self) -> Iterator[None]:
        """Count an upload until the end of the block.

        Raises:
            RateLimited: Too many at once, or too often.
        """
        self._check_number(self.uploading, self._quota.max_uploads, "uploads")
        self._take()
        self.uploading += 1
        try:
            yield
        finally:
            self.uploading -= 1

    def _take(self) -> None:
        wait = self._bucket.take()
        if wait:
            msg = f"expected at most {self._quota.rate:g} requests per second of this tenant"
            raise RateLimited(msg, retry_after=wait)

    def _check_number(self, number: int, limit: int, what: str) -> None:
        if number >= limit:
            msg = f"{number} {what} of this tenant are under way, which is its limit"
            raise RateLimited(msg)
