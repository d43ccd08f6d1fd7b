"""Ends requests whose deadline passes, and tells the callers of those that were let go.

Always true: one thread for any number of requests, which sleeps until the earliest deadline that
it knew when it fell asleep; no caller is told while a lock is held; nothing is kept of a request
that has ended.

Lock order: a request's `RunHandle`, the scheduler's lock, the lock here.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from blindai.inference.batch_run import fail_request

if TYPE_CHECKING:
    from blindai.inference.queues import Request

_FOREVER: Final = float("inf")


class Sweeper:
    """A thread that ends requests, from its making until `close`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._deadlines: dict[Request, float] = {}
        self._left: list[Request] = []
        self._wakes_at = _FOREVER
        self._closed = False
        self._thread = threading.Thread(target=self._sweep, name="blindai-deadlines", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Return the number of deadlines that are watched."""
        return len(self._deadlines)

    def watch(self, request: Request) -> None:
        """Terminate a request at its deadline, if it has one."""
        if request.deadline is None:
            return
        with self._changed:
            self._deadlines[request] = request.deadline
            if request.deadline < self._wakes_at:
                self._changed.notify()

    def forget(self, request: Request) -> None:
        """Watch a request no longer."""
        if request.deadline is not None:
            with self._changed:
                self._deadlines.pop(request, None)

    def tell(self, request: Request) -> None:
        """Give the caller of a request that was terminated its error, on the thread here."""
        with self._changed:
            self._deadlines.pop(request, None)
            self._left.append(request)
            self._changed.notify()

    def close(self) -> None:
        """End, after the last caller was told."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _sweep(self) -> None:
        while self._sweep_once():
            pass

    def _sweep_once(self) -> bool:
        # A frame of its own: a sleeping sweeper keeps nobody's data.
        with self._changed:
            if not self._left and not self._closed:
                self._wakes_at = min(self._deadlines.values(), default=_FOREVER)
                seconds = None
                if self._wakes_at != _FOREVER:
                    seconds = self._wakes_at - time.monotonic()
                if seconds is None or seconds > 0:
                    self._changed.wait(seconds)
            now = time.monotonic()
            left, self._left = self._left, []
            expired = [request for request, when in self._deadlines.items() if when <= now]
            if self._closed and not left:
                return False
        for request in expired:
            request.handle.terminate(expired=True)
        for request in left:
            fail_request(request, request.handle.reason())
        return True
