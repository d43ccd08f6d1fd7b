"""Short runs happen where they are asked for, once that is earned, and no longer than it lasts."""

import asyncio
import threading
import time

import numpy as np
import pytest

from blindai.errors import DeadlineExceeded, InferenceError, InvalidInput
from blindai.inference import sprints
from blindai.inference.engine import RunHandle
from blindai.inference.scheduler import Scheduler, SchedulingOptions
from blindai.inference.tensors import DataType, Tensor

from .fakes import GUILTY, FakeModel, entry, rows

SOON = 10.0
BUSY = 0.002


class Tiny(FakeModel):
    """Runs in no time, or in as much as it is told; remembers the threads.

    Attributes:
        seconds: Of a run.
        threads: Of all runs.
    """

    def __init__(self, *, steady=True):
        super().__init__(steady=steady)
        self.seconds = 0.0
        self.threads = []

    def run(self, inputs, outputs=None, *, deadline=None, handle=None):
        self.threads.append(threading.current_thread())
        ends = time.thread_time() + self.seconds
        while time.thread_time() < ends:
            if deadline is not None and time.monotonic() > deadline:
                handle.terminate(expired=True)
            if handle.terminated:
                raise handle.reason()
        return self.compute(inputs[0], outputs)


@pytest.fixture
def scheduler():
    """Give a scheduler with one worker."""
    with Scheduler(workers=1) as scheduler:
        yield scheduler


def ask(scheduler, loaded, *values, **more):
    return scheduler.submit(loaded, rows(*(values or (1.0,))), may_wait=True, **more)


def learned(scheduler, *values, model=None):
    """Return a model whose runs were measured; in spite of a busy machine, to be quick."""
    loaded = entry(model or Tiny())
    for _ in range(3):
        ask(scheduler, loaded, *values).result(SOON)
    for sprint in scheduler._ledgers[loaded.model].sprints._shapes.values():
        sprint._times.clear()
        for _ in range(3):
            sprint.add(sprints.QUICK / 2)
    loaded.model.threads.clear()
    return loaded


def is_here(loaded):
    return loaded.model.threads[-1] is threading.current_thread()


def test_a_run_that_is_known_to_be_short_happens_here(scheduler):
    """The first runs go to a worker; then the caller's thread runs, and what comes is done."""
    loaded = entry(Tiny())
    ask(scheduler, loaded).result(SOON)
    assert not is_here(loaded)
    loaded = learned(scheduler)
    future = ask(scheduler, loaded)
    assert future.done()
    assert is_here(loaded)
    assert future.result()[0].array.tolist() == [[2.0, 4.0]]


def test_who_cannot_wait_is_never_made_to(scheduler):
    """Without `may_wait` a run goes to a worker."""
    loaded = learned(scheduler)
    scheduler.submit(loaded, rows(1)).result(SOON)
    assert not is_here(loaded)


@pytest.mark.parametrize("steady", [False, True])
def test_a_graph_whose_time_depends_on_data_never_does(scheduler, steady):
    """However quick it was so far."""
    loaded = learned(scheduler, model=Tiny(steady=steady))
    ask(scheduler, loaded).result(SOON)
    assert is_here(loaded) is steady


def test_only_exactly_the_measured_shapes(scheduler):
    """Another number of rows is another run."""
    loaded = learned(scheduler)
    ask(scheduler, loaded, 1.0, 2.0).result(SOON)
    assert not is_here(loaded)


def test_slow_models_stay_with_the_workers(scheduler):
    """What was measured to take longer than a hop takes the hop."""
    loaded = entry(Tiny())
    loaded.model.seconds = 5 * sprints.QUICK
    for _ in range(10):
        ask(scheduler, loaded).result(SOON)
        assert not is_here(loaded)


def test_large_tensors_stay_with_the_workers(scheduler):
    """They take time before and after a run, too."""
    loaded = entry(Tiny())
    inputs = [Tensor("x", np.zeros((sprints.SMALL, 2), np.float32), DataType.FP32)]
    for _ in range(5):
        scheduler.submit(loaded, inputs, may_wait=True).result(SOON)
    assert not scheduler._ledgers[loaded.model].sprints._shapes
    assert not is_here(loaded)


def test_what_waits_for_company_is_not_run_alone():
    """An uploader who wants batches gets them."""
    with Scheduler(
        workers=1, options_for=lambda _: SchedulingOptions(max_batch=4, max_wait=0.001)
    ) as scheduler:
        loaded = entry(Tiny())
        for _ in range(5):
            ask(scheduler, loaded).result(SOON)
        assert not is_here(loaded)


def test_nobody_is_overtaken(scheduler):
    """While others run on all workers, or wait, a request queues behind them."""
    loaded, other = learned(scheduler), entry(FakeModel(), "other")
    with other.model.gate_shut():
        running = scheduler.submit(other, rows(1))
        assert other.model.entered.acquire(timeout=SOON)
        future = ask(scheduler, loaded)
        assert not future.done()
        assert scheduler.waiting == 1
    running.result(SOON)
    future.result(SOON)
    assert not is_here(loaded)


def test_its_time_counts_among_models(scheduler):
    """A model that runs here has had its share when the queue asks whose turn it is."""
    loaded = learned(scheduler)
    queue = scheduler._ledgers[loaded.model].queue
    before = queue.served
    loaded.model.seconds = BUSY
    ask(scheduler, loaded)
    assert queue.served >= before + BUSY
    assert (queue.running, queue.under_way, scheduler.running) == (0, 0, 0)


def test_statistics_count_it_as_any_other(scheduler):
    """Requests, rows, runs and times."""
    loaded = learned(scheduler, 1.0, 2.0)
    (before,) = scheduler.statistics()
    loaded.model.seconds = BUSY
    ask(scheduler, loaded, 1.0, 2.0)
    (after,) = scheduler.statistics()
    assert after.success.count == before.success.count + 1
    assert after.inference_count == before.inference_count + 2
    assert after.execution_count == before.execution_count + 1
    assert after.compute_infer.ns - before.compute_infer.ns >= BUSY * 1e9
    assert after.queue.count == after.success.count
    assert after.batch_stats[2].compute_infer.count == before.execution_count + 1


def test_errors_are_the_same(scheduler):
    """What the model refuses, what `finish` raises, and other libraries' words."""
    loaded = learned(scheduler)
    with pytest.raises(InvalidInput, match="refuses"):
        ask(scheduler, loaded, GUILTY).result()
    assert is_here(loaded)

    def finish(_outputs):
        msg = "no such form"
        raise InvalidInput(msg)

    with pytest.raises(InvalidInput, match="no such form"):
        ask(scheduler, loaded, finish=finish).result()

    def compute(_tensor, _outputs):
        msg = "secret 42"
        raise RuntimeError(msg)

    loaded.model.compute = compute
    with pytest.raises(InferenceError, match="the run failed: RuntimeError") as caught:
        ask(scheduler, loaded).result()
    assert is_here(loaded)
    assert "42" not in str(caught.value)
    (counts,) = scheduler.statistics()
    assert counts.fail.count == 3


def test_what_is_out_of_the_ordinary_is_refused_as_ever(scheduler):
    """Handles that were terminated, deadlines that have passed, priorities out of bounds."""
    loaded = learned(scheduler)
    handle = RunHandle()
    handle.terminate()
    with pytest.raises(InferenceError, match="stopped"):
        ask(scheduler, loaded, handle=handle)
    with pytest.raises(DeadlineExceeded):
        ask(scheduler, loaded, deadline=time.monotonic() - 1)
    with pytest.raises(InvalidInput, match="priority"):
        ask(scheduler, loaded, priority=61)
    with pytest.raises(InvalidInput, match="another datatype"):
        scheduler.submit(loaded, [Tensor("x", np.zeros((1, 2)), DataType.FP64)], may_wait=True)
    assert not loaded.model.threads


def test_a_model_that_breaks_its_word_sprints_no_more(scheduler):
    """The first run that does not end is stopped, and goes on on a worker; so do all others."""
    loaded = learned(scheduler)
    loaded.model.seconds = 3 * sprints.LONGEST
    began = time.monotonic()
    future = ask(scheduler, loaded)
    assert time.monotonic() - began < 2.5 * sprints.LONGEST
    assert not future.done()
    assert future.result(SOON)[0].array.tolist() == [[2.0, 4.0]]
    loaded.model.seconds = 0.0
    for _ in range(10):
        ask(scheduler, loaded).result(SOON)
        assert not is_here(loaded)
    (counts,) = scheduler.statistics()
    assert (counts.fail.count, counts.success.count) == (0, 14)


def test_a_model_that_is_fast_and_then_slow_cannot_stall_a_loop_again_and_again(scheduler):
    """Runs just short of the limit, between quick ones, take the loop a small part of its time."""
    model = Tiny()
    loaded = learned(scheduler, model=model)
    stalled = 0.0

    async def attack() -> float:
        nonlocal stalled
        began = time.monotonic()
        turn = 0
        while time.monotonic() - began < 1.0:
            turn += 1
            model.seconds = 0.8 * sprints.LONGEST if turn % 4 == 0 else 0.0
            asked = time.thread_time()
            future = ask(scheduler, loaded)
            stalled += time.thread_time() - asked if model.seconds else 0.0
            await asyncio.wrap_future(future)
        return time.monotonic() - began

    took = asyncio.run(attack())
    # Savings, the one run that overdraws them, and the share of the time that has passed.
    assert stalled < 0.05 + sprints.LONGEST + 0.05 * took + 0.05


def test_threads_that_sprint_at_the_same_time_keep_to_the_workers_number():
    """As many runs at once as there are workers, wherever they are; the rest queue."""
    with Scheduler(workers=2) as scheduler:
        loaded = learned(scheduler)
        loaded.model.seconds = 0.02
        most, lock, under_way = [0], threading.Lock(), [0]
        compute = FakeModel.compute

        def counted(inputs, outputs=None, **more):
            with lock:
                under_way[0] += 1
                most[0] = max(most[0], under_way[0])
            try:
                time.sleep(0.01)
                return compute(loaded.model, inputs[0], outputs)
            finally:
                with lock:
                    under_way[0] -= 1

        loaded.model.run = counted
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(ask(scheduler, loaded).result(SOON)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
        assert len(results) == 8
        assert most[0] <= 2
