"""What a tenant uses at the moment, and how often. For one event loop each; no locks."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from blindai.errors import RateLimited
from blindai.server.limits import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blindai.server.access.rules import Quota


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
