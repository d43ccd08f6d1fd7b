"""What the scheduler knows of each model: its queue, its costs, and what it has served.

Always true: bounded memory, whatever shapes come; and no reference to the model itself, so
that a deleted one is let go.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Final

from blindai.errors import ConfigurationError
from blindai.inference.costs import CostModel, MovingAverage
from blindai.inference.lanes import Lanes
from blindai.inference.queues import ModelQueue
from blindai.inference.served import Served, ServedStatistics
from blindai.inference.sprints import Sprints

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blindai.inference.batching import BatchKey
    from blindai.inference.engine import Model

# Shapes whose costs are remembered; the one not seen for longest is forgotten.
_MAX_SHAPES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulingOptions:
    """How the requests of one model are scheduled.

    Attributes:
        max_batch: Rows of one batch; 1: no batches, because a model that was made to could
            carry one caller's data into another's rows. A request with more runs alone.
        max_wait: Seconds that a request waits at most for those that were answered with the
            last run and may come back, so that all go in one batch. 0: not at all, as batches
            fill up while others run. A lone caller never waits.
        threads: Threads of one run under load; 0: those that the model was loaded with. Other
            than 0 it takes a second copy of the weights.
        instances: Runs at the same time at most; 0: as many as the scheduler has workers.
            Fewer where that was measured to be faster (`blindai.inference.lanes`).
    """

    max_batch: int = 1
    max_wait: float = 0.0
    threads: int = 0
    instances: int = 0

    def __post_init__(self) -> None:
        if self.max_batch < 1 or not self.max_wait >= 0 or self.threads < 0 or self.instances < 0:
            msg = (
                "expected max_batch from 1 up, and max_wait, threads and instances from 0 up, "
                f"came {self}"
            )
            raise ConfigurationError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatistics(ServedStatistics):
    """What a model has served so far, and what it costs.

    Attributes:
        sha256: Of the model, with its form; see `ModelRecord.key`.
        waiting: Requests in the queue.
        running: Runs under way.
        batches: Whether requests are batched; `None`: not known yet.
        reason: Why not; "" if they are.
        lanes: Runs that go side by side under load, for the shape that was run last.
        seconds_per_request: On one worker; `None` before the first.
        seconds_by_rows: Time of a run by its number of rows, for the shape that was run last:
            with as many lanes, or with others where that is not known.
    """

    sha256: str
    waiting: int
    running: int
    batches: bool | None
    reason: str
    lanes: int
    seconds_per_request: float | None
    seconds_by_rows: Mapping[int, float]


class ShapeCosts:
    """What runs for inputs of one shape cost. Not for several threads at once.

    Attributes:
        lanes: How many go side by side.
        crowd: Requests that were there, waiting or in runs, when one began last.
        crowded_at: When that was, in seconds of `time.monotonic()`.
    """

    __slots__ = ("_by_lanes", "crowd", "crowded_at", "lanes")

    def __init__(self, most_lanes: int) -> None:
        self.lanes = Lanes(most_lanes)
        self.crowd = 0
        self.crowded_at = 0.0
        # A run beside others takes longer: times are compared within one number of lanes.
        self._by_lanes: dict[int, CostModel] = {}

    def seconds_by_rows(self, lanes: int) -> Mapping[int, float]:
        """Return the time of a run by its number of rows, rather for so many lanes."""
        known: dict[int, float] = {}
        for other in sorted(self._by_lanes, key=lambda each: each == lanes):
            known |= self._by_lanes[other].seconds_by_rows()
        return known

    def batches(self, lanes: int) -> CostModel:
        """Return what a batch costs while so many runs go side by side."""
        found = self._by_lanes.get(lanes)
        if found is None:
            found = self._by_lanes[lanes] = CostModel()
        return found


@dataclass(slots=True, eq=False)
class Ledger:
    """One model's page. Not for several threads at once, but for `served`.

    Attributes:
        sha256: Of the model.
        options: How its requests are scheduled.
        workers: Of the scheduler.
        queue: Of requests that wait.
        served: Counts.
        batches: Whether requests are batched; `None`: not known yet.
        reason: Why not; "" if they are.
        per_request: Seconds.
        per_run: Seconds.
        narrow: The copy for load, where `options.threads` asks for it, once it is loaded.
        narrow_asked: Whether its load has begun.
        sprints: Runs that are over in no time.
    """

    sha256: str
    options: SchedulingOptions
    workers: int = 1
    queue: ModelQueue = field(default_factory=ModelQueue)
    served: Served = field(default_factory=Served)
    batches: bool | None = None
    reason: str = ""
    per_request: MovingAverage = field(default_factory=MovingAverage)
    per_run: MovingAverage = field(default_factory=MovingAverage)
    narrow: Model | None = None
    narrow_asked: bool = False
    sprints: Sprints = field(default_factory=lambda: Sprints(allowed=False))
    _shapes: OrderedDict[BatchKey | None, ShapeCosts] = field(default_factory=OrderedDict)

    @property
    def most_lanes(self) -> int:
        """How many runs may go side by side at all."""
        return min(self.workers, self.options.instances or self.workers)

    def shape(self, key: BatchKey | None) -> ShapeCosts:
        """Return the costs of a shape; `None`: of all that are not batched."""
        found = self._shapes.get(key)
        if found is None:
            found = self._shapes[key] = ShapeCosts(self.most_lanes)
            if len(self._shapes) > _MAX_SHAPES:
                self._shapes.popitem(last=False)
        else:
            self._shapes.move_to_end(key)
        return found

    def lanes(self, key: BatchKey | None) -> int:
        """Return how many runs of a shape may go side by side now."""
        # The narrow copy has no pool of threads that its runs would have to share.
        return self.most_lanes if self.narrow is not None else self.shape(key).lanes.current

    def record(
        self, key: BatchKey | None, requests: int, rows: int, seconds: float, *, lanes: int
    ) -> None:
        """Add a run that succeeded.

        Args:
            key: Of its shape.
            requests: In it.
            rows: Of all of them.
            seconds: That it took.
            lanes: Runs of all models that were under way during it; 0: that changed.
        """
        self.per_run.add(seconds)
        self.per_request.add(seconds / requests)
        if not lanes:
            return
        shape = self.shape(key)
        shape.batches(lanes).record(rows, seconds)
        if requests > 1 or lanes > 1 or self.queue:
            # Not of lone runs, which are no load: nothing would go beside them.
            shape.lanes.record(lanes, rows, seconds)

    def no_batches(self, reason: str) -> None:
        """Run requests one by one from now on."""
        self.batches = False
        self.reason = reason

    def backlog(self) -> float:
        """Return the seconds of one worker that the waiting requests will take."""
        return len(self.queue) * (self.per_request.seconds or 0.0)

    def statistics(self) -> ModelStatistics:
        """Return what is known, as of now."""
        served = self.served.statistics()
        latest = next(reversed(self._shapes.values()), None)
        lanes = self.most_lanes if latest is None else latest.lanes.current
        return ModelStatistics(
            sha256=self.sha256,
            waiting=len(self.queue),
            running=self.queue.running,
            batches=self.batches,
            reason=self.reason,
            lanes=lanes,
            seconds_per_request=self.per_request.seconds,
            seconds_by_rows={} if latest is None else latest.seconds_by_rows(lanes),
            **{each.name: getattr(served, each.name) for each in fields(served)},
        )
