"""What the scheduler knows of each model: its queue, its costs, and what it has served.

Always true: bounded memory, whatever shapes come; and no reference to the model itself, so
that a deleted one is let go.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from blindai.errors import ConfigurationError
from blindai.inference.costs import CostModel, MovingAverage
from blindai.inference.queues import ModelQueue

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
        max_batch: Rows of one batch; 1: no batches. A request with more runs alone.
        max_wait: Seconds that a request waits for others before it runs in a batch that is
            not full. 0, and nothing else is for most: batches fill up while others run.
        threads: Threads of one run under load; 0: those that the model was loaded with. Other
            than 0 it takes a second copy of the weights.
        instances: Runs at the same time; 0: as many as the scheduler has workers.
    """

    max_batch: int = 16
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
class ModelStatistics:
    """What a model has served so far, and what it costs.

    Attributes:
        sha256: Of the model.
        waiting: Requests in the queue.
        running: Runs under way.
        requests: That have run.
        runs: They took.
        batches: Whether requests are batched; `None`: not known yet.
        reason: Why not; "" if they are.
        seconds_per_request: On one worker; `None` before the first.
        seconds_by_rows: Time of a run by its number of rows, under load, of the shape that
            was run last.
    """

    sha256: str
    waiting: int
    running: int
    requests: int
    runs: int
    batches: bool | None
    reason: str
    seconds_per_request: float | None
    seconds_by_rows: Mapping[int, float]


@dataclass(slots=True, eq=False)
class Ledger:
    """One model's page. Not for several threads at once."""

    sha256: str
    options: SchedulingOptions
    queue: ModelQueue = field(default_factory=ModelQueue)
    batches: bool | None = None
    reason: str = ""
    per_request: MovingAverage = field(default_factory=MovingAverage)
    per_run: MovingAverage = field(default_factory=MovingAverage)
    requests: int = 0
    runs: int = 0
    # For load, where `options.threads` asks for it.
    narrow: Model | None = None
    narrow_asked: bool = False
    _costs: OrderedDict[BatchKey, CostModel] = field(default_factory=OrderedDict)

    def costs(self, key: BatchKey) -> CostModel:
        """Return the costs of a shape."""
        found = self._costs.get(key)
        if found is None:
            found = self._costs[key] = CostModel()
            if len(self._costs) > _MAX_SHAPES:
                self._costs.popitem(last=False)
        else:
            self._costs.move_to_end(key)
        return found

    def record(self, requests: int, seconds: float) -> None:
        """Count a run that succeeded."""
        self.requests += requests
        self.runs += 1
        self.per_run.add(seconds)
        self.per_request.add(seconds / requests)

    def no_batches(self, reason: str) -> None:
        """Run requests one by one from now on."""
        self.batches = False
        self.reason = reason

    def backlog(self) -> float:
        """Return the seconds of one worker that the waiting requests will take."""
        return len(self.queue) * (self.per_request.seconds or 0.0)

    def statistics(self) -> ModelStatistics:
        """Return what is known, as of now."""
        latest = next(reversed(self._costs.values()), None)
        return ModelStatistics(
            sha256=self.sha256,
            waiting=len(self.queue),
            running=self.queue.running,
            requests=self.requests,
            runs=self.runs,
            batches=self.batches,
            reason=self.reason,
            seconds_per_request=self.per_request.seconds,
            seconds_by_rows=latest.seconds_by_rows() if latest is not None else {},
        )
