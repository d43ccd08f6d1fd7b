"""What each model has served: the counts and times that the statistics extension asks for.

Always true: a request is counted once, when it ends, as success or as failure; and before its
caller is told, so that whoever has an answer finds it counted. Bounded memory: sizes of batches
beyond the first few hundred share an entry with the next power of two.

Specification: Open Inference Protocol, statistics extension (`$duration_stat`, `$batch_stat`).
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

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

    def plus(self, ns: int, count: int = 1) -> Tally:
        """Return the tally with further events."""
        return Tally(self.count + count, self.ns + ns)


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


@dataclass(frozen=True, slots=True)
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


class Served:
    """Counts for one model; safe to use from any thread. Calls nothing while it is locked."""

    __slots__ = ("_batches", "_last", "_lock", "_rows", "_runs", "_tallies")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = self._rows = self._runs = 0
        names = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        self._tallies = dict.fromkeys(names, Tally())
        self._batches: dict[int, BatchStatistics] = {}

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
        success = sum(_ns(now - request.arrived) for request in succeeded)
        queue = sum(_ns(began - request.arrived) for request in succeeded)
        size = batch_rows if batch_rows <= _EXACT_SIZES else 1 << (batch_rows - 1).bit_length()
        count = len(succeeded)
        parts = {name: getattr(times, name) for name in RunTimes.__slots__}
        with self._lock:
            self._last = time.time_ns() // _NS_PER_MS
            self._rows += sum(request.rows for request in succeeded)
            self._runs += 1
            before = self._batches.get(size) or BatchStatistics()
            self._batches[size] = BatchStatistics(
                **{name: getattr(before, name).plus(ns) for name, ns in parts.items()}
            )
            added = {"success": success, "queue": queue}
            added |= {name: ns * count for name, ns in parts.items()}
            for name, ns in added.items():
                self._tallies[name] = self._tallies[name].plus(ns, count)

    def add_failure(self, request: Request) -> None:
        """Count a request that gets an error now."""
        ns = _ns(time.monotonic() - request.arrived)
        with self._lock:
            self._tallies["fail"] = self._tallies["fail"].plus(ns)

    def statistics(self) -> ServedStatistics:
        """Return the counts, as of now."""
        with self._lock:
            return ServedStatistics(
                last_inference=self._last,
                inference_count=self._rows,
                execution_count=self._runs,
                batch_stats=dict(sorted(self._batches.items())),
                **self._tallies,
            )


def _ns(seconds: float) -> int:
    return max(0, round(seconds * _NS))
