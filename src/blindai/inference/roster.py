"""Whose turn it is: the model that had the least, its oldest requests, as many as pay off.

Always true: a model that asked for nothing for a while has no credit for that, and no debt;
whoever is next runs as soon as a worker asks, unless its model's options make it wait.

Nothing here has a lock: `Scheduler` holds its own around every call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from blindai.inference.ledger import Ledger
    from blindai.inference.queues import Request


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

    def add(self, request: Request, ledger: Ledger) -> None:
        """Let a request wait."""
        queue = ledger.queue
        if not queue and not queue.running:
            queue.served = max(queue.served, self._clock)
        queue.add(request)
        self._active.add(ledger)
        self._waiting += 1

    def withdraw(self, request: Request) -> None:
        """Take a request out that shall not run."""
        request.queue.remove(request)
        self._waiting -= 1

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
            limit = ledger.options.instances
            if limit and ledger.queue.running >= limit:
                continue
            for group in ledger.queue.groups():
                size = _size(ledger, group, idle)
                ready_at = 0.0 if hurry else _ready_at(ledger, group, size)
                if ready_at > now:
                    again_at = ready_at if again_at is None else min(again_at, ready_at)
                    continue
                self._clock = max(self._clock, ledger.queue.served)
                self._waiting -= size
                return (ledger, ledger.queue.take(group, size)), None
        return None, again_at


def _size(ledger: Ledger, group: Sequence[Request], idle: int) -> int:
    """Return how many requests of a group to run together."""
    key = group[0].key
    if key is None or not ledger.batches:
        return 1
    # Idle workers share what waits: two small batches side by side beat one large one.
    share = -(-len(group) // idle)
    rows: list[int] = []
    total = 0
    for request in group[:share]:
        total += request.rows
        if rows and total > ledger.options.max_batch:
            break
        rows.append(request.rows)
    return ledger.costs(key).choose(rows)


def _ready_at(ledger: Ledger, group: Sequence[Request], size: int) -> float:
    """Return until when a group that is no full batch waits for more; 0: not at all."""
    options = ledger.options
    if not options.max_wait or not ledger.batches or size < len(group):
        return 0.0
    if group[0].key is None or sum(request.rows for request in group) >= options.max_batch:
        return 0.0
    return group[0].arrived + options.max_wait
