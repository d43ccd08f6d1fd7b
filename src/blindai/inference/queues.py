"""Requests that wait: in which order, and whose turn it is.

Always true: requests of a model run in the order of their arrival, except that each step of
priority counts as a second of waiting: an urgent request overtakes, and none waits for ever.
Models take turns by the time that their runs took, so that a model with many or with slow
requests takes from another no more than its share.

Nothing here has a lock: `Scheduler` holds its own around every call.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from enum import Enum
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from blindai.inference.batching import BatchKey
    from blindai.inference.engine import RunHandle
    from blindai.inference.ledger import Ledger
    from blindai.inference.records import LoadedModel
    from blindai.inference.tensors import Tensor

# Of waiting, that one step of priority is worth.
SECONDS_PER_STEP: Final = 1.0

_order: Final = attrgetter("order")


class Stage(Enum):
    """Where a request is."""

    ARRIVING = 0
    WAITING = 1
    RUNNING = 2
    ENDED = 3


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """One request, from its arrival to its end.

    Attributes:
        entry: The model, held so that it stays in memory.
        inputs: That fit the model.
        outputs: Wanted; none: all.
        key: Which others it may be batched with; `None`: with none.
        rows: On the first axis; 1 where there is no batch.
        arrived: In seconds of `time.monotonic()`.
        order: What the queue is ordered by: when it would have arrived with priority 0, and
            a number that no other request has.
        handle: Stops it from outside.
        deadline: In seconds of `time.monotonic()`.
        finish: Makes the result of the outputs.
        future: Gets the result.
        ledger: Of its model.
        stage: Where it is.
        batch: It runs in.
    """

    entry: LoadedModel
    inputs: Sequence[Tensor]
    outputs: tuple[str, ...]
    key: BatchKey | None
    rows: int
    arrived: float
    order: tuple[float, int]
    handle: RunHandle
    deadline: float | None
    finish: Callable[[list[Tensor]], Any]
    future: Future[Any]
    ledger: Ledger
    stage: Stage = Stage.ARRIVING
    batch: Batch | None = None


@dataclass(slots=True, eq=False)
class Batch:
    """Requests that run together.

    Attributes:
        members: All of them.
        handle: Stops the run; when nobody waits for it any more.
        present: Members that somebody still waits for.
    """

    members: list[Request]
    handle: RunHandle
    present: int

    @property
    def rows(self) -> int:
        """Of all members."""
        return sum(member.rows for member in self.members)


@dataclass(slots=True, eq=False)
class ModelQueue:
    """The requests of one model that wait.

    Attributes:
        served: Seconds of runs that the model had, or missed while it had no request.
        running: Its runs under way.
        under_way: Requests in them.
        freed_at: When the last run ended, in seconds of `time.monotonic()`.
    """

    served: float = 0.0
    running: int = 0
    under_way: int = 0
    freed_at: float = 0.0
    _groups: dict[BatchKey | None, list[Request]] = field(default_factory=dict)
    _length: int = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Request]:
        for group in self._groups.values():
            yield from group

    def add(self, request: Request) -> None:
        """Put a request where it belongs."""
        insort(self._groups.setdefault(request.key, []), request, key=_order)
        self._length += 1

    def remove(self, request: Request) -> None:
        """Take out a request that waits here."""
        group = self._groups[request.key]
        del group[bisect_left(group, request.order, key=_order)]
        self._shrink(request.key, 1)

    def groups(self) -> list[list[Request]]:
        """Return the groups that may run together, the one whose turn it is first."""
        return sorted(self._groups.values(), key=lambda group: group[0].order)

    def keys(self) -> list[BatchKey | None]:
        """Return the shapes that wait."""
        return list(self._groups)

    def turn(self) -> float:
        """Return when it is this model's turn, compared to others: the least is next.

        An urgent request lends its model as many seconds as it has overtaken by.
        """
        head = min((group[0] for group in self._groups.values()), key=_order)
        return self.served - (head.arrived - head.order[0])

    def take(self, group: list[Request], count: int) -> list[Request]:
        """Take out the first requests of a group."""
        key = group[0].key
        taken = group[:count]
        del group[:count]
        self._shrink(key, len(taken))
        return taken

    def _shrink(self, key: BatchKey | None, count: int) -> None:
        self._length -= count
        if not self._groups[key]:
            del self._groups[key]
