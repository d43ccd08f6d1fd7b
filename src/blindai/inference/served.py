"""What each model has served: the counts and times that the statistics extension asks for.

Always true: a request is counted once, when it ends, as success or as failure; and before its
caller is told, so that whoever has an answer finds it counted. Bounded memory: sizes of batches
beyond the first few hundred share an entry with the next power of two.

Specification: Open Inference Protocol, statistics extension (`$duration_stat`, `$batch_stat`).
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from blindai.inference.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from blindai.inference.queues import Request

_NS: Final = 1_000_000_000
_NS_PER_MS: Final = 1_000_000
# Of batches; larger ones share an entry with all up to the next power of two.
_EXACT_SIZES: Final = 256


@dataclass(frozen=True, slots=True)
class Tally:
    """How often, and for how long altogether.

    Attributes:
        count: Of events.
        ns: That they took together, in nanoseconds.
    """

    count: int = 0
    ns: int = 0


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """Runs of one number of rows; each counts once, whatever the requests in it.

    Attributes:
        compute_input: Joining the inputs of a batch.
        compute_infer: The engine.
        compute_output: Parting the outputs, and encoding the answers.
    """

    compute_input: Tally = Tally()
    compute_infer: Tally = Tally()
    compute_output: Tally = Tally()


@dataclass(slots=True)
class RunTimes:
    """How long the parts of one run took, in nanoseconds; see `BatchStatistics`."""

    compute_input: int
    compute_infer: int
    compute_output: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedStatistics:
    """What a model has served so far. Tallies are of requests, except `batch_stats`.

    Attributes:
        last_inference: When the last run that succeeded ended, in milliseconds since 1970; 0:
            there was none.
        inference_count: Rows of the requests that succeeded.
        execution_count: Runs that succeeded.
        success: From the arrival of a request to its result.
        fail: From the arrival of a request to its error; also of those that were stopped.
        queue: From the arrival of a request that succeeded to its run.
        compute_input: Joining; each request of a batch counts the time of the whole batch.
        compute_infer: The engine, likewise.
        compute_output: Parting and encoding, likewise.
        batch_stats: Runs by their number of rows.
    """

    last_inference: int
    inference_count: int
    execution_count: int
    success: Tally
    fail: Tally
    queue: Tally
    compute_input: Tally
    compute_infer: Tally
    compute_output: Tally
    batch_stats: Mapping[int, BatchStatistics]


class _RunSums:
    """What `BatchStatistics` is made of. Plain numbers: this is in the way of every request."""

    __slots__ = ("infer", "input", "output", "runs")

    def __init__(self) -> None:
        self.runs = self.input = self.infer = self.output = 0

    def add(self, times: RunTimes, count: int) -> None:
        self.runs += count
        self.input += count * times.compute_input
        self.infer += count * times.compute_infer
        self.output += count * times.compute_output

    def statistics(self) -> BatchStatistics:
        return BatchStatistics(
            Tally(self.runs, self.input),
            Tally(self.runs, self.infer),
            Tally(self.runs, self.output),
        )


@dataclass(frozen=True, slots=True)
class Phases:
    """Times of requests that succeeded, of all models.

    Attributes:
        queue: From their arrival to their run.
        run: The engine; each request of a batch counts the time of the whole batch.
    """

    queue: Histogram = field(default_factory=Histogram)
    run: Histogram = field(default_factory=Histogram)


class Served:
    """Counts for one model; safe to use from any thread. Calls nothing while it is locked.

    Args:
        phases: Of all models, to be told too.
    """

    __slots__ = (
        "_batches",
        "_fail_ns",
        "_failures",
        "_last",
        "_lock",
        "_phases",
        "_queue_ns",
        "_requests",
        "_rows",
        "_success_ns",
    )

    def __init__(self, phases: Phases | None = None) -> None:
        self._phases = phases or Phases()
        self._lock = threading.Lock()
        self._last = self._rows = 0
        self._success_ns = self._queue_ns = 0
        self._failures = self._fail_ns = 0
        self._requests = _RunSums()
        self._batches: dict[int, _RunSums] = {}

    def add_run(
        self, batch_rows: int, succeeded: Sequence[Request], *, began: float, times: RunTimes
    ) -> None:
        """Count a run that succeeded, and those of its requests that get a result now.

        Args:
            batch_rows: Of all requests in the run.
            succeeded: Those that nobody left, and whose answer was made.
            began: When the run began, in seconds of `time.monotonic()`.
            times: Of the run's parts.
        """
        now = time.monotonic()
        last = time.time_ns() // _NS_PER_MS
        queued = [_ns(began - request.arrived) for request in succeeded]
        self._phases.queue.add_all(queued)
        self._phases.run.add_all([times.compute_infer] * len(queued))
        size = batch_rows if batch_rows <= _EXACT_SIZES else 1 << (batch_rows - 1).bit_length()
        with self._lock:
            self._last = last
            for request in succeeded:
                self._rows += request.rows
                self._success_ns += _ns(now - request.arrived)
            self._queue_ns += sum(queued)
            self._requests.add(times, len(succeeded))
            sums = self._batches.get(size)
            if sums is None:
                sums = self._batches[size] = _RunSums()
            sums.add(times, 1)

    def add_failure(self, request: Request) -> None:
        """Count a request that gets an error now."""
        ns = _ns(time.monotonic() - request.arrived)
        with self._lock:
            self._failures += 1
            self._fail_ns += ns

    def statistics(self) -> ServedStatistics:
        """Return the counts, as of now."""
        with self._lock:
            requests = self._requests.statistics()
            count = requests.compute_infer.count
            return ServedStatistics(
                last_inference=self._last,
                inference_count=self._rows,
                execution_count=sum(sums.runs for sums in self._batches.values()),
                success=Tally(count, self._success_ns),
                fail=Tally(self._failures, self._fail_ns),
                queue=Tally(count, self._queue_ns),
                compute_input=requests.compute_input,
                compute_infer=requests.compute_infer,
                compute_output=requests.compute_output,
                batch_stats={
                    size: sums.statistics() for size, sums in sorted(self._batches.items())
                },
            )


def _ns(seconds: float) -> int:
    return int(seconds * _NS)
