"""Whose turn it is: the model that had the least, its oldest requests, as many as pay off.

Always true: a model that asked for nothing for a while has no credit for that, and no debt;
whoever is next runs as soon as a worker asks, unless its model's options make it wait.

Nothing here has a lock: `Scheduler` holds its own around every call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from blindai.inference.ledger import Ledger
    from blindai.inference.queues import Request

# Who was there at the last run is expected back for so many run times.
_HYSTERESIS_RUNS: Final = 4


class Roster:
    """All requests that wait."""

    __slots__ = ("_active", "_clock", "_waiting")

    def __init__(self) -> None:
        self._active: set[Ledger] = set()
        self._waiting = 0
        # What the model that was chosen last had been served by then.
        self._clock = 0.0

    def __len__(self) -> int:
        return self._waiting

    def __iter__(self) -> Iterator[Request]:
        for ledger in self._active:
            yield from ledger.queue

    def add(self, request: Request) -> None:
        """Let a request wait."""
        ledger = request.ledger
        queue = ledger.queue
        if not queue and not queue.running:
            queue.served = max(queue.served, self._clock)
        queue.add(request)
        self._active.add(ledger)
        self._waiting += 1

    def withdraw(self, request: Request) -> None:
        """Take a request out that shall not run."""
        request.ledger.queue.remove(request)
        self._waiting -= 1

    def may_have_more(self, ledger: Ledger) -> bool:
        """Return whether another worker might find something, after this model's run began."""
        if len(self._active) > 1:
            return self._waiting > 0
        keys = ledger.queue.keys()
        return any(ledger.queue.running < ledger.lanes(key) for key in keys)

    def enter(self, ledger: Ledger) -> None:
        """Say that a request of a model runs at once, while nothing waits."""
        queue = ledger.queue
        if not queue.running:
            queue.served = max(queue.served, self._clock)
        self._clock = max(self._clock, queue.served)
        queue.running += 1
        queue.under_way += 1

    def ended(self, ledger: Ledger, requests: int, *, now: float, seconds: float) -> None:
        """Say that a run has ended, which was chosen here or said to begin."""
        ledger.queue.running -= 1
        ledger.queue.under_way -= requests
        ledger.queue.freed_at = now
        ledger.queue.served += seconds

    def backlog(self) -> float:
        """Return the seconds of one worker that everything will take."""
        return sum(ledger.backlog() for ledger in self._active)

    def choose(
        self, now: float, *, idle: int, hurry: bool
    ) -> tuple[tuple[Ledger, list[Request]] | None, float | None]:
        """Take out what shall run next.

        Args:
            now: In seconds of `time.monotonic()`.
            idle: Workers that have nothing to do, the one that asks among them.
            hurry: Let nothing wait for company.

        Returns:
            The requests to run together, with their model's ledger; or `None`, and when to
            ask again if no request comes and no run ends before.
        """
        again_at: float | None = None
        self._active = {ledger for ledger in self._active if ledger.queue}
        ledgers: Iterable[Ledger] = self._active
        if len(self._active) > 1:
            ledgers = sorted(self._active, key=lambda ledger: ledger.queue.turn())
        for ledger in ledgers:
            for group in ledger.queue.groups():
                lanes = ledger.lanes(group[0].key)
                free = min(idle, lanes - ledger.queue.running)
                if free < 1:
                    continue
                size = _size(ledger, group, lanes, free)
                ready_at = 0.0 if hurry else _ready_at(ledger, group, size, now)
                if ready_at > now:
                    again_at = ready_at if again_at is None else min(again_at, ready_at)
                    continue
                self._clock = max(self._clock, ledger.queue.served)
                self._waiting -= size
                queue = ledger.queue
                shape = ledger.shape(group[0].key)
                shape.crowd, shape.crowded_at = len(group) + queue.under_way, now
                queue.running += 1
                queue.under_way += size
                return (ledger, queue.take(group, size)), None
        return None, again_at


def _size(ledger: Ledger, group: Sequence[Request], lanes: int, free: int) -> int:
    """Return how many requests of a group to run together."""
    key = group[0].key
    if key is None or not ledger.batches:
        return 1
    # Free lanes share what waits.
    share = -(-len(group) // free)
    rows: list[int] = []
    total = 0
    for request in group[:share]:
        total += request.rows
        if rows and total > ledger.options.max_batch:
            break
        rows.append(request.rows)
    return ledger.shape(key).batches(lanes).choose(rows)


def _ready_at(ledger: Ledger, group: Sequence[Request], size: int, now: float) -> float:
    """Return until when a group waits for more; 0: not at all.

    Those who were there at the last run, and are neither here nor in a run, may come back. Who
    has no reason to expect anybody does not wait: a lone caller never does.
    """
    options = ledger.options
    if not options.max_wait or not ledger.batches or size < len(group):
        return 0.0
    if group[0].key is None or sum(request.rows for request in group) >= options.max_batch:
        return 0.0
    shape = ledger.shape(group[0].key)
    lull = options.max_wait + _HYSTERESIS_RUNS * (ledger.per_run.seconds or 0.0)
    expected = shape.crowd - ledger.queue.under_way
    if len(group) >= expected or now - shape.crowded_at > lull:
        return 0.0
    return max(group[0].arrived, ledger.queue.freed_at) + options.max_wait
