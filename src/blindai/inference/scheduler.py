"""Decide which requests run when, on which worker, and which of them together.

One policy for every load. A request that finds a free worker runs at once, and alone on the
machine it has all cores. Under load runs go side by side, one on each worker; what piles up
meanwhile is batched as soon as a worker is free, if that was measured to be faster for this
model and this shape. Nothing waits for company unless a model's options say so.

Always true:

- Every queue is bounded. A crowd at one model neither shuts out nor slows down another beyond
  its share (`blindai.inference.queues`).
- A request whose deadline passes or whose handle is terminated ends at once: in the queue it
  never runs; in a batch the others go on, and the run is stopped only if nobody is left.
- A batch is of one model and one shape, and of a model that keeps rows apart
  (`blindai.inference.probe`). If it fails it is halved until only the guilty request fails.
- No thread is made for a request, and locks are held for moments: never while a model runs,
  nor while a caller is told.

Lock order: a request's `RunHandle` (which calls `_leave`), then the scheduler's lock.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload

from blindai.errors import (
    ConfigurationError,
    InferenceError,
    InvalidInput,
    InvalidModel,
    Overloaded,
)
from blindai.inference.batch_run import (
    begin_batch,
    fail_request,
    finish_batch,
    reported,
    run_batch,
    split_batch,
)
from blindai.inference.batching import batch_key
from blindai.inference.bell import Bell
from blindai.inference.copies import Copies
from blindai.inference.engine import RunHandle
from blindai.inference.ledger import Ledger, ModelStatistics, SchedulingOptions
from blindai.inference.probe import ProbeResult, probe_model
from blindai.inference.queues import SECONDS_PER_STEP, Batch, Request, Stage
from blindai.inference.roster import Roster
from blindai.inference.served import Phases, Served
from blindai.inference.sprints import LONGEST, Signature, Sprint, Sprints, sign
from blindai.inference.sweeper import Sweeper
from blindai.inference.tensors import check_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from blindai.inference.engine import Model
    from blindai.inference.records import LoadedModel, ModelRecord
    from blindai.inference.served import RunTimes
    from blindai.inference.tensors import Tensor

__all__ = ["MAX_PRIORITY", "ModelStatistics", "Scheduler", "SchedulingOptions"]

MAX_PRIORITY: Final = 60
# A full queue still takes so many of each model.
_GUARANTEED: Final = 4
_RETRY_BOUNDS: Final = (0.1, 60.0)

ResultT = TypeVar("ResultT")


class Scheduler:
    """Runs requests on a fixed number of workers; safe to use from any thread.

    Args:
        workers: Runs at the same time; 0: one for each core.
        max_queue: Requests that wait, of all models together; a model that has none waiting
            may always add a few.
        options_for: Says how a model's requests are scheduled.
        load_again: Loads a model once more with other threads, for `SchedulingOptions.threads`.

    Attributes:
        phases: Times of the requests of all models.
    """

    def __init__(
        self,
        *,
        workers: int = 0,
        max_queue: int = 256,
        options_for: Callable[[ModelRecord], SchedulingOptions] = lambda _: SchedulingOptions(),
        load_again: Callable[[LoadedModel, int], Model] | None = None,
    ) -> None:
        if workers < 0 or max_queue < 1:
            msg = f"expected workers from 0 and max_queue from 1 up, came {workers} and {max_queue}"
            raise ConfigurationError(msg)
        self._max_queue = max_queue
        self._options_for = options_for
        self._load_again = load_again
        self.phases = Phases()
        self._lock = threading.Lock()
        self._bell = Bell()
        self._drained = threading.Condition(self._lock)
        self._ledgers: weakref.WeakKeyDictionary[Model, Ledger] = weakref.WeakKeyDictionary()
        self._roster = Roster()
        # What each worker runs.
        self._running: dict[int, Batch] = {}
        # Runs under way on the threads that asked for them.
        self._sprinting = 0
        self._numbers = count()
        self._closing = self._stopping = False
        self._aside = ThreadPoolExecutor(1, "blindai-probe")
        self._copies = Copies(load_again, self._aside)
        self._sweeper = Sweeper()
        self._workers = [
            threading.Thread(
                target=self._serve, args=(index,), name=f"blindai-run-{index}", daemon=True
            )
            for index in range(workers or len(os.sched_getaffinity(0)))
        ]
        for thread in self._workers:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._roster)

    @property
    def running(self) -> int:
        """Runs under way."""
        return len(self._running) + self._sprinting

    def prepare(self, entry: LoadedModel) -> Future[ProbeResult] | None:
        """Find out in the background how a model is best run; best called after its load.

        Returns:
            What was found, once it is; `None` if that was asked before, or there is no need.
        """
        with self._lock:
            if self._closing or entry.model in self._ledgers:
                return None
            options = self._options_for(entry.record)
            # Who waits for company wants batches.
            sprints = Sprints(allowed=entry.model.is_steady and not options.max_wait)
            served = Served(self.phases)
            key = entry.record.key
            ledger = Ledger(key, options, len(self._workers), served=served, sprints=sprints)
            self._ledgers[entry.model] = ledger
            if ledger.options.max_batch == 1:
                ledger.no_batches("the model's options say so")
                return None
            return self._aside.submit(self._probe, entry.model, ledger)

    @overload
    def submit(
        self,
        entry: LoadedModel,
        inputs: Sequence[Tensor],
        outputs: Sequence[str] = (),
        *,
        deadline: float | None = None,
        handle: RunHandle | None = None,
        priority: int = 0,
        behind: int = 0,
        may_wait: bool = False,
    ) -> Future[list[Tensor]]: ...

    @overload
    def submit(
        self,
        entry: LoadedModel,
        inputs: Sequence[Tensor],
        outputs: Sequence[str] = (),
        *,
        deadline: float | None = None,
        handle: RunHandle | None = None,
        priority: int = 0,
        behind: int = 0,
        may_wait: bool = False,
        finish: Callable[[list[Tensor]], ResultT],
    ) -> Future[ResultT]: ...

    def submit(
        self,
        entry: LoadedModel,
        inputs: Sequence[Tensor],
        outputs: Sequence[str] = (),
        *,
        deadline: float | None = None,
        handle: RunHandle | None = None,
        priority: int = 0,
        behind: int = 0,
        may_wait: bool = False,
        finish: Callable[[list[Tensor]], Any] = lambda outputs: outputs,
    ) -> Future[Any]:
        """Put a request into the queue. Returns soon: may be called by an event loop.

        Args:
            entry: The model.
            inputs: All inputs, in any order. Not to be changed until the end.
            outputs: Names of the outputs that are wanted; none: all.
            deadline: When to give up, in seconds of `time.monotonic()`.
            handle: Stops this request from outside; of this request alone.
            priority: From -60 to 60; each step counts like a second of waiting.
            behind: Requests of the same party that wait or run: this one counts as if it came
                so many runs later, so that many of one do not hold up the few of another.
            may_wait: Whether the caller can wait as long as a hop to a worker takes: then a run
                that is known to be shorter happens here (`blindai.inference.sprints`), and what
                is returned is done.
            finish: Makes the result of the outputs, on the worker's thread: saves a hop.

        Returns:
            The result, to be awaited with `asyncio.wrap_future`. Its `cancel` does nothing:
            `handle` does. Its error is one of those that `Model.run` raises.

        Raises:
            InvalidInput: Inputs that do not fit, or a priority out of bounds.
            Overloaded: The queue is full, or the server is stopping.
            DeadlineExceeded: The deadline has passed already.
            InferenceError: The handle was terminated already.
        """
        handle = handle or RunHandle()
        if may_wait and (
            future := self._sprint(entry, inputs, outputs, deadline, handle, priority, finish)
        ):
            return future
        check_inputs(inputs, entry.model.inputs)
        if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
            msg = f"expected a priority of -{MAX_PRIORITY} to {MAX_PRIORITY}, came {priority}"
            raise InvalidInput(msg)
        now = time.monotonic()
        if deadline is not None and deadline <= now:
            handle.terminate(expired=True)
        self.prepare(entry)
        ledger = self._ledgers.get(entry.model)
        if ledger is None:
            raise _stopping()
        later = behind * (ledger.per_run.seconds or 0.0)
        key, rows = batch_key(inputs, outputs, entry.model.inputs) or (None, 1)
        request = Request(
            entry=entry,
            inputs=inputs,
            outputs=tuple(outputs),
            key=key,
            rows=rows,
            arrived=now,
            order=(now + later - priority * SECONDS_PER_STEP, next(self._numbers)),
            handle=handle,
            deadline=deadline,
            finish=finish,
            future=Future(),
            ledger=ledger,
        )
        request.future.set_running_or_notify_cancel()
        handle.attach(partial(self._leave, request))
        try:
            self._admit(request)
        except InferenceError:
            handle.detach()
            raise
        return request.future

    def statistics(self) -> list[ModelStatistics]:
        """Return what each model has served and costs; for metrics."""
        with self._lock:
            return [ledger.statistics() for ledger in self._ledgers.values()]

    def statistics_of(self, model: Model) -> ModelStatistics | None:
        """Return what one model has served and costs; `None`: nothing yet."""
        with self._lock:
            ledger = self._ledgers.get(model)
            return None if ledger is None else ledger.statistics()

    def close(self, *, drain: float = 0.0) -> None:
        """Take no more requests, and end.

        Args:
            drain: Seconds that those in the queue and under way have to end as usual; the
                others get `Overloaded`.
        """
        with self._lock:
            self._closing = True
            # Nothing waits for company any more.
            self._ring_for_all()
            self._drained.wait_for(self._is_drained, timeout=max(0.0, drain))
            self._stopping = True
            dropped = list(self._roster)
            for request in dropped:
                self._withdraw(request)
            running = list(self._running.values())
            self._ring_for_all()
        for request in dropped:
            fail_request(request, _stopping())
        for batch in running:
            batch.handle.terminate()
        for thread in self._workers:
            thread.join()
        self._aside.shutdown(cancel_futures=True)
        self._sweeper.close()

    # Arriving and leaving.

    def _probe(self, model: Model, ledger: Ledger) -> ProbeResult:
        result = probe_model(model)
        with self._lock:
            ledger.batches, ledger.reason = result.batches, result.reason
        return result

    def _admit(self, request: Request) -> None:
        ledger = request.ledger
        with self._lock:
            if request.stage is Stage.ENDED:
                raise request.handle.reason()
            if self._closing:
                raise _stopping()
            if len(self._roster) >= self._max_queue and len(ledger.queue) >= _GUARANTEED:
                low, high = _RETRY_BOUNDS
                after = min(high, max(low, self._roster.backlog() / len(self._workers)))
                msg = f"{len(self._roster)} requests wait, which is the limit"
                raise Overloaded(msg, retry_after=after)
            if self._running or self._roster:
                self._copies.overlapped(request.arrived)
            self._roster.add(request)
            request.stage = Stage.WAITING
            self._sweeper.watch(request)
            # Or the end of a run will find it.
            if ledger.queue.running < ledger.lanes(request.key):
                self._bell.ring()

    def _leave(self, request: Request) -> None:
        """Let a request go that nobody waits for; called by its handle, in any thread."""
        stop = None
        with self._lock:
            stage = request.stage
            if stage is Stage.WAITING:
                self._withdraw(request)
            elif stage is Stage.RUNNING and request.batch is not None:
                request.batch.present -= 1
                stop = None if request.batch.present else request.batch.handle
            request.stage = Stage.ENDED
            if stage in {Stage.WAITING, Stage.RUNNING}:
                # The sweeper tells the caller: here its handle is locked.
                self._sweeper.tell(request)
        if stop is not None:
            stop.terminate()

    def _withdraw(self, request: Request) -> None:
        """Take a request out of the queue; the lock must be held."""
        self._roster.withdraw(request)
        request.stage = Stage.ENDED
        self._sweeper.forget(request)
        if self._closing:
            self._drained.notify()

    def _ring_for_all(self) -> None:
        for _ in self._workers:
            self._bell.ring_anyway()

    def _is_drained(self) -> bool:
        return not self._roster and not self._running and not self._sprinting

    # Running.

    def _serve(self, worker: int) -> None:
        """Run batches until `close`; a worker's whole life."""
        while self._serve_one(worker):
            pass

    def _serve_one(self, worker: int) -> bool:
        # A frame of its own: an idle worker keeps nobody's data.
        chosen = self._wait_for_work(worker)
        if chosen is None:
            return False
        ledger, batch, model = chosen
        began = time.monotonic()
        self._run(worker, model, ledger, batch)
        with self._lock:
            del self._running[worker]
            now = time.monotonic()
            self._roster.ended(ledger, len(batch.members), now=now, seconds=now - began)
            if self._closing:
                self._drained.notify()
        return True

    def _wait_for_work(self, worker: int) -> tuple[Ledger, Batch, Model] | None:
        newly_idle, rang = 1, False
        while True:
            with self._lock:
                self._bell.idle += newly_idle
                newly_idle = 0
                if rang:
                    self._bell.answered()
                now = time.monotonic()
                chosen, again_at = self._roster.choose(
                    now, idle=self._bell.idle, hurry=self._closing
                )
                if chosen is not None or self._stopping:
                    self._bell.idle -= 1
                    return None if chosen is None else self._begin(worker, *chosen, now=now)
                seconds = None if again_at is None else max(0.0, again_at - now)
            rang = self._bell.wait(seconds)

    def _begin(
        self, worker: int, ledger: Ledger, members: list[Request], *, now: float
    ) -> tuple[Ledger, Batch, Model]:
        """Start the clock of what was chosen; the lock must be held."""
        batch = self._running[worker] = begin_batch(members)
        if self._roster.may_have_more(ledger):
            self._bell.ring()
        model = self._copies.choose(members[0].entry, ledger, now=now, closing=self._closing)
        return ledger, batch, model

    def _run(self, worker: int, model: Model, ledger: Ledger, batch: Batch) -> None:
        """Run a batch; what fails is halved, and its halves run, until single ones fail."""
        pending = [batch]
        while pending:
            part = pending.pop()
            with self._lock:
                self._running[worker] = part
                stopping = self._stopping
                lanes = len(self._running)
            began, cpu = time.monotonic(), time.thread_time()
            try:
                if stopping:
                    raise _stopping()  # noqa: TRY301 - ends like any run that fails
                results, times = run_batch(model, part)
            except Exception as error:  # noqa: BLE001 - a worker survives whatever an engine does
                pending += self._again(ledger, part, error)
                continue
            seconds, cpu = time.monotonic() - began, time.thread_time() - cpu
            with self._lock:
                lanes = lanes if lanes == len(self._running) else 0
                key, size = part.members[0].key, len(part.members)
                ledger.record(key, size, part.rows, seconds, lanes=lanes)
                for member, outputs in zip(part.members, results, strict=True):
                    ledger.sprints.learn(member, outputs, cpu)
                waited_for = [self._claim(member) for member in part.members]
            answers = zip(part.members, results, strict=True)
            wanted = [
                answer for answer, claimed in zip(answers, waited_for, strict=True) if claimed
            ]
            finish_batch(part, wanted, began=began, times=times)

    def _sprint(
        self,
        entry: LoadedModel,
        inputs: Sequence[Tensor],
        outputs: Sequence[str],
        deadline: float | None,
        handle: RunHandle,
        priority: int,
        finish: Callable[[list[Tensor]], Any],
    ) -> Future[Any] | None:
        """Run a request here and now if that is known to be over in no time; else `None`.

        What is out of the ordinary, and every error but the model's own, is left to the queue.
        """
        now = time.monotonic()
        ends = now + LONGEST
        ledger = self._ledgers.get(entry.model)
        if ledger is None or not ledger.sprints.allowed or handle.terminated:
            return None
        if not -MAX_PRIORITY <= priority <= 0 or (deadline is not None and deadline < ends):
            return None
        sprint = self._begin_sprint(ledger, sign(inputs, outputs), now)
        if sprint is None:
            return None
        request = Request(
            entry=entry,
            inputs=inputs,
            outputs=tuple(outputs),
            key=sprint.key,
            rows=sprint.rows,
            arrived=now,
            order=(now, 0),
            handle=handle,
            deadline=deadline,
            finish=finish,
            future=Future(),
            ledger=ledger,
        )
        batch = begin_batch([request])
        times: RunTimes | None = None
        cpu = time.thread_time()
        try:
            results, times = run_batch(entry.model, batch, deadline=ends)
            finish_batch(batch, [(request, results[0])], began=now, times=times)
        except Exception as error:  # noqa: BLE001 - whatever an engine does, the caller is told
            if batch.handle.terminated:
                # It broke its word. A worker has all the time that the caller gives it.
                ledger.sprints.end()
                return None
            fail_request(request, reported(error))
        finally:
            self._end_sprint(sprint, request, times, time.thread_time() - cpu)
        return request.future

    def _begin_sprint(self, ledger: Ledger, signature: Signature, now: float) -> Sprint | None:
        with self._lock:
            sprint = ledger.sprints.find(signature, now)
            busy = len(self._running) + self._sprinting
            if sprint is None or self._closing or self._roster or busy >= len(self._workers):
                return None
            if ledger.queue.running >= ledger.lanes(sprint.key):
                return None
            self._sprinting += 1
            self._roster.enter(ledger)
            return sprint

    def _end_sprint(
        self, sprint: Sprint, request: Request, times: RunTimes | None, cpu: float
    ) -> None:
        """Enter a run into the books, and its times if it succeeded."""
        ledger = request.ledger
        now = time.monotonic()
        with self._lock:
            self._sprinting -= 1
            self._roster.ended(ledger, 1, now=now, seconds=now - request.arrived)
            ledger.sprints.charge(cpu)
            if times is not None:
                sprint.add(cpu)
                lanes = 0 if self._running else 1
                seconds = times.compute_infer * 1e-9
                ledger.record(request.key, 1, request.rows, seconds, lanes=lanes)
            if self._roster:
                self._bell.ring()
            if self._closing:
                self._drained.notify()

    def _claim(self, member: Request) -> bool:
        """Return whether somebody still waits for a request, which ends with that.

        The lock must be held.
        """
        waited_for = member.stage is Stage.RUNNING
        member.stage = Stage.ENDED
        self._sweeper.forget(member)
        return waited_for

    def _again(self, ledger: Ledger, part: Batch, error: Exception) -> list[Batch]:
        """Return what to run instead of a batch that failed: nothing for a single request."""
        with self._lock:
            error = _stopping() if self._stopping else error
            if len(part.members) > 1 and not self._stopping:
                if isinstance(error, InvalidModel):
                    ledger.no_batches(str(error))
                # Backwards, because the last is run first.
                return [begin_batch(members) for members in split_batch(part, error)[::-1]]
            rest = [member for member in part.members if self._claim(member)]
        for member in rest:
            fail_request(member, reported(error))
        return []


def _stopping() -> Overloaded:
    return Overloaded("the server is stopping")
