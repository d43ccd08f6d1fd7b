"""The scheduler: order, bounds, deadlines, fairness, batches and failures."""

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import wait

import numpy as np
import pytest

from blindai.errors import (
    ConfigurationError,
    DeadlineExceeded,
    InferenceError,
    InvalidInput,
    InvalidModel,
    Overloaded,
)
from blindai.inference.engine import RunHandle
from blindai.inference.scheduler import Scheduler, SchedulingOptions
from blindai.inference.tensors import DataType, Tensor

from .fakes import GUILTY, FakeModel, entry, rows

SOON = 10.0
SINGLE = SchedulingOptions(max_batch=1)


def batched(_record):
    return SchedulingOptions(max_batch=16)


@pytest.fixture
def make():
    """Make schedulers that are closed at the end."""
    made = []

    def make(**options):
        made.append(Scheduler(**({"workers": 1, "options_for": batched} | options)))
        return made[-1]

    yield make
    for scheduler in made:
        scheduler.close()


def options(**values):
    return lambda _record: SchedulingOptions(**({"max_batch": 16} | values))


def ready(scheduler, loaded):
    """Probe a model, and teach the scheduler that its batches pay off."""
    found = scheduler.prepare(loaded).result(SOON)
    ledger = scheduler._ledgers[loaded.model]
    costs = ledger.shape(((), ((2,),))).batches(1)
    for size in (1, 2, 4, 8, 16):
        for _ in range(3):
            costs.record(size, 0.01 + 0.001 * size)
    loaded.model.runs.clear()
    return found


def values(future):
    return future.result(SOON)[0].array[:, 0].tolist()


def forget_entries(model):
    """Count entries into the model anew."""
    while model.entered.acquire(blocking=False):
        pass


def blocked(scheduler, loaded):
    """Occupy a worker with a run; to be used while the gate is shut."""
    forget_entries(loaded.model)
    future = scheduler.submit(loaded, rows(1))
    assert loaded.model.entered.acquire(timeout=SOON)
    return future


def test_a_lone_request_runs_at_once(make):
    """No wait for company, and the result is the model's own."""
    assert values(make().submit(entry(FakeModel()), rows(1, 2))) == [2, 4]


def test_the_result_is_finished_on_the_worker(make):
    """Encoding needs no thread of its own."""
    future = make().submit(
        entry(FakeModel()), rows(1), finish=lambda _: threading.current_thread().name
    )
    assert future.result(SOON).startswith("blindai-run")


def test_an_error_of_finish_reaches_the_caller_and_spares_the_worker(make):
    """The worker goes on."""
    scheduler = make()
    future = scheduler.submit(entry(FakeModel()), rows(1), finish=lambda _: {}["none"])
    with pytest.raises(KeyError):
        future.result(SOON)
    assert values(scheduler.submit(entry(FakeModel()), rows(1))) == [2]


def test_an_event_loop_can_await_it(make):
    """Through asyncio's own wrapper."""

    async def ask(scheduler):
        return await asyncio.wrap_future(scheduler.submit(entry(FakeModel()), rows(3)))

    assert asyncio.run(ask(make()))[0].array[0, 0] == 6


def test_what_waits_is_batched_and_each_gets_its_own_rows(make):
    """Also requests of several rows."""
    scheduler, model = make(), FakeModel()
    loaded = entry(model)
    assert ready(scheduler, loaded).batches
    with model.gate_shut():
        first = blocked(scheduler, loaded)
        others = [scheduler.submit(loaded, rows(*range(n, n + n))) for n in (2, 3, 4)]
    assert values(first) == [2]
    assert [values(future) for future in others] == [[4, 6], [6, 8, 10], [8, 10, 12, 14]]
    assert model.runs == [[1], [2, 3, 3, 4, 5, 4, 5, 6, 7]]


def test_a_batch_has_no_more_rows_than_the_model_may_have(make):
    """The options say how many; a larger request runs alone."""
    scheduler, model = make(options_for=options(max_batch=4)), FakeModel()
    loaded = entry(model)
    ready(scheduler, loaded)
    with model.gate_shut():
        blocked(scheduler, loaded)
        futures = [scheduler.submit(loaded, rows(*([7] * n))) for n in (2, 2, 1, 6)]
    wait(futures, SOON)
    assert [len(run) for run in model.runs] == [1, 4, 1, 6]


def test_shapes_and_outputs_are_never_mixed(make):
    """Each group has runs of its own."""

    class Wide(FakeModel):
        def __init__(self):
            super().__init__(width="width", outputs=("y", "z"))

    scheduler, model = make(), Wide()
    loaded = entry(model)
    assert scheduler.prepare(loaded).result(SOON).batches
    for key in ((("y",), ((2,),)), (("z",), ((2,),)), (("y",), ((3,),))):
        for size in (1, 2, 4, 8):
            for _ in range(3):
                scheduler._ledgers[model].shape(key).batches(1).record(size, 0.01)
    model.runs.clear()
    three = [Tensor("x", np.full((1, 3), 5, np.float32), DataType.FP32)]
    with model.gate_shut():
        blocked(scheduler, loaded)
        asked = [(rows(2), "y"), (rows(3), "z"), (three, "y"), (rows(4), "y"), (three, "y")]
        futures = [scheduler.submit(loaded, inputs, [name]) for inputs, name in asked]
    results = [future.result(SOON)[0] for future in futures]
    assert [result.name for result in results] == ["y", "z", "y", "y", "y"]
    assert [result.array[0, 0] for result in results] == [4, 6, 10, 8, 10]
    assert model.runs[1:] == [[2, 4], [3], [5, 5]]


def test_models_are_never_mixed(make):
    """Even if they take the same inputs."""
    scheduler = make()
    models = [FakeModel(), FakeModel()]
    entries = [entry(model, name) for model, name in zip(models, "ab", strict=True)]
    for loaded in entries:
        ready(scheduler, loaded)
    with models[0].gate_shut():
        blocked(scheduler, entries[0])
        futures = [scheduler.submit(entries[n % 2], rows(n)) for n in range(8)]
    wait(futures, SOON)
    assert models[0].runs[1:] == [[0, 2, 4, 6]]
    assert models[1].runs == [[1, 3, 5, 7]]


def test_a_model_that_mixes_rows_is_not_batched(make):
    """The probe finds that a row depends on the others."""

    class Mean(FakeModel):
        def compute(self, tensor, outputs):
            return super().compute(
                Tensor("x", tensor.array - tensor.array.mean(0), DataType.FP32), outputs
            )

    scheduler, model = make(), Mean()
    loaded = entry(model)
    found = ready(scheduler, loaded)
    assert not found.batches
    assert "depends on the other rows" in found.reason
    with model.gate_shut():
        blocked(scheduler, loaded)
        futures = [scheduler.submit(loaded, rows(n)) for n in range(3)]
    wait(futures, SOON)
    assert model.runs == [[1], [0], [1], [2]]


def test_only_the_guilty_request_of_a_batch_fails(make):
    """The batch is halved until it is alone."""
    scheduler, model = make(), FakeModel()
    loaded = entry(model)
    ready(scheduler, loaded)
    with model.gate_shut():
        blocked(scheduler, loaded)
        futures = [scheduler.submit(loaded, rows(n)) for n in (1, 2, GUILTY, 4, 5, 6)]
    with pytest.raises(InvalidInput, match="refuses"):
        futures[2].result(SOON)
    innocent = [values(future) for future in futures if future is not futures[2]]
    assert innocent == [[2], [4], [8], [10], [12]]
    assert model.runs[1] == [1, 2, GUILTY, 4, 5, 6]


def test_a_model_that_loses_rows_is_not_batched_again(make):
    """Its requests run singly, and so do all later ones."""

    class Forgetful(FakeModel):
        forgets = False

        def compute(self, tensor, outputs):
            (result,) = super().compute(tensor, outputs)
            lost = self.forgets and len(tensor.array) > 1
            return [Tensor(result.name, result.array[: 1 if lost else None], DataType.FP32)]

    scheduler, model = make(), Forgetful()
    loaded = entry(model)
    ready(scheduler, loaded)
    model.forgets = True
    with model.gate_shut():
        blocked(scheduler, loaded)
        futures = [scheduler.submit(loaded, rows(n)) for n in range(3)]
    assert [values(future) for future in futures] == [[0], [2], [4]]
    assert model.runs == [[1], [0, 1, 2], [0], [1], [2]]
    (statistics,) = scheduler.statistics()
    assert statistics.batches is False
    assert "expected 3 rows" in statistics.reason


def test_other_peoples_exceptions_are_reported_without_their_words(make):
    """A library's message may carry elements of the inputs; a worker survives it."""

    class Broken(FakeModel):
        def compute(self, tensor, outputs):
            raise RuntimeError(str(tensor.array))

    scheduler = make(options_for=lambda _: SINGLE)
    with pytest.raises(InferenceError, match="the run failed: RuntimeError") as caught:
        scheduler.submit(entry(Broken()), rows(123)).result(SOON)
    assert "123" not in str(caught.value)
    assert values(scheduler.submit(entry(FakeModel()), rows(1))) == [2]


def test_no_memory_for_a_run_is_overload(make):
    """To be tried again, not the caller's fault."""

    class Huge(FakeModel):
        def compute(self, tensor, outputs):
            raise MemoryError

    with pytest.raises(Overloaded, match="no memory"):
        make(options_for=lambda _: SINGLE).submit(entry(Huge()), rows(1)).result(SOON)


def test_inputs_that_do_not_fit_are_refused_before_the_queue(make):
    """And never get into a batch."""
    model = FakeModel()
    with pytest.raises(InvalidInput, match="no input of the model"):
        make(options_for=lambda _: SINGLE).submit(entry(model), rows(1, name="other"))
    assert model.runs == []


def test_a_deadline_ends_a_request_in_the_queue_without_a_run(make):
    """While the worker is still busy with another."""
    scheduler, model = make(options_for=lambda _: SINGLE), FakeModel()
    loaded = entry(model)
    with model.gate_shut():
        first = blocked(scheduler, loaded)
        late = scheduler.submit(loaded, rows(5), deadline=time.monotonic() + 0.05)
        with pytest.raises(DeadlineExceeded):
            late.result(SOON)
        assert scheduler.waiting == 0
        assert not first.done()
    assert values(first) == [2]
    assert model.runs == [[1]]


def test_an_earlier_deadline_wakes_the_sweeper(make):
    """Which sleeps until the earliest that it knew."""
    scheduler, model = make(options_for=lambda _: SINGLE), FakeModel()
    loaded = entry(model)
    with model.gate_shut():
        scheduler.submit(loaded, rows(1), deadline=time.monotonic() + 60)
        time.sleep(0.02)
        began = time.monotonic()
        early = scheduler.submit(loaded, rows(2), deadline=began + 0.05)
        with pytest.raises(DeadlineExceeded):
            early.result(SOON)
        assert 0.04 < time.monotonic() - began < 5


def test_a_deadline_that_has_passed_is_refused_at_once(make):
    """Nothing is queued."""
    with pytest.raises(DeadlineExceeded):
        make(options_for=lambda _: SINGLE).submit(
            entry(FakeModel()), rows(1), deadline=time.monotonic() - 1
        )


def test_a_deadline_stops_a_run(make):
    """Of a request that runs alone."""
    scheduler, model = make(options_for=lambda _: SINGLE), FakeModel()
    with model.gate_shut():
        future = scheduler.submit(entry(model), rows(1), deadline=time.monotonic() + 0.05)
        with pytest.raises(DeadlineExceeded):
            future.result(SOON)
        # The worker is free for the next although the gate is shut.
        assert values(scheduler.submit(entry(FakeModel()), rows(1))) == [2]
    assert model.stopped == 1


def test_the_last_to_leave_a_batch_stops_it(make):
    """Nobody waits for it any more."""
    scheduler, model = make(), FakeModel()
    loaded = entry(model)
    ready(scheduler, loaded)
    forget_entries(model)
    blocker = FakeModel()
    handles = [RunHandle() for _ in range(3)]
    with model.gate_shut():
        with blocker.gate_shut():
            blocked(scheduler, entry(blocker, "blocker"))
            futures = [scheduler.submit(loaded, rows(n), handle=h) for n, h in enumerate(handles)]
        assert model.entered.acquire(timeout=SOON)
        assert model.runs == [[0, 1, 2]]
        for handle, future in zip(handles[:2], futures[:2], strict=True):
            handle.terminate()
            with pytest.raises(InferenceError, match="stopped before its end"):
                future.result(SOON)
        assert model.stopped == 0
        handles[2].terminate()
        with pytest.raises(InferenceError, match="stopped before its end"):
            futures[2].result(SOON)
        assert values(scheduler.submit(entry(FakeModel(), "next"), rows(1))) == [2]
    assert model.stopped == 1


def test_others_of_a_batch_get_their_results_after_one_left(make):
    """And only the one that left has none."""
    scheduler, model, blocker = make(), FakeModel(), FakeModel()
    loaded = entry(model)
    ready(scheduler, loaded)
    forget_entries(model)
    handle = RunHandle()
    with model.gate_shut():
        with blocker.gate_shut():
            blocked(scheduler, entry(blocker, "blocker"))
            leaving = scheduler.submit(loaded, rows(1), handle=handle)
            staying = scheduler.submit(loaded, rows(2))
        assert model.entered.acquire(timeout=SOON)
        handle.terminate()
        with pytest.raises(InferenceError, match="stopped before its end"):
            leaving.result(SOON)
    assert values(staying) == [4]


def test_a_client_that_left_makes_room_in_the_queue(make):
    """Its request never runs."""
    scheduler, model = make(max_queue=5, options_for=lambda _: SINGLE), FakeModel()
    loaded = entry(model)
    handles = [RunHandle() for _ in range(5)]
    with model.gate_shut():
        blocked(scheduler, loaded)
        futures = [scheduler.submit(loaded, rows(9), handle=handle) for handle in handles]
        with pytest.raises(Overloaded):
            scheduler.submit(loaded, rows(9))
        for handle in handles:
            handle.terminate()
        wait(futures, SOON)
        last = scheduler.submit(loaded, rows(3))
    assert values(last) == [6]
    assert model.runs == [[1], [3]]


def test_a_handle_that_was_terminated_is_refused(make):
    """The client left before its request was read."""
    handle = RunHandle()
    handle.terminate()
    with pytest.raises(InferenceError, match="stopped before its end"):
        make(options_for=lambda _: SINGLE).submit(entry(FakeModel()), rows(1), handle=handle)


def test_the_queue_is_bounded_and_says_when_to_come_back(make):
    """By what the waiting requests will cost."""
    scheduler, model = make(max_queue=10, options_for=lambda _: SINGLE), FakeModel()
    loaded = entry(model)
    with model.gate_shut():
        blocked(scheduler, loaded)
        for _ in range(3):
            scheduler._ledgers[model].record(None, 1, 1, 0.5, lanes=1)
        futures = [scheduler.submit(loaded, rows(1)) for _ in range(10)]
        with pytest.raises(Overloaded, match="10 requests wait") as caught:
            scheduler.submit(loaded, rows(1))
        assert caught.value.retry_after == pytest.approx(5.0)
    wait(futures, SOON)


def test_a_crowd_at_one_model_does_not_shut_out_another(make):
    """A model with nothing in the full queue still gets in, a few times."""
    scheduler = make(max_queue=10, options_for=lambda _: SINGLE)
    model, other = FakeModel(), FakeModel()
    loaded, quiet = entry(model, "a"), entry(other, "b")
    with model.gate_shut():
        blocked(scheduler, loaded)
        for _ in range(10):
            scheduler.submit(loaded, rows(1))
        admitted = [scheduler.submit(quiet, rows(n)) for n in range(4)]
        with pytest.raises(Overloaded):
            scheduler.submit(quiet, rows(1))
    assert [values(future) for future in admitted] == [[0], [2], [4], [6]]


def test_models_take_turns_whatever_their_crowds(make):
    """Ten requests of one do not delay the first of another by ten runs."""
    scheduler, finished = make(options_for=lambda _: SINGLE), []

    class Steady(FakeModel):
        def compute(self, tensor, outputs):
            time.sleep(0.005)
            finished.append(self)
            return super().compute(tensor, outputs)

    model, other = Steady(), Steady()
    with model.gate_shut():
        blocked(scheduler, entry(model, "a"))
        crowd = [scheduler.submit(entry(model, "a"), rows(1)) for _ in range(10)]
        few = [scheduler.submit(entry(other, "b"), rows(1)) for _ in range(3)]
    wait(crowd + few, SOON)
    # The gate and the first run count for the model of the crowd.
    assert finished.index(other) <= 2
    assert max(index for index, who in enumerate(finished) if who is other) <= 8


def test_urgent_requests_overtake(make):
    """By as many seconds as their priority has steps."""
    scheduler, model = make(options_for=lambda _: SINGLE), FakeModel()
    loaded = entry(model)
    with model.gate_shut():
        blocked(scheduler, loaded)
        futures = [
            scheduler.submit(loaded, rows(n), priority=priority)
            for n, priority in ((1, -1), (2, 0), (3, 5), (4, 0), (5, 1))
        ]
    wait(futures, SOON)
    assert model.runs == [[1], [3], [5], [2], [4], [1]]


@pytest.mark.parametrize("priority", [-61, 61])
def test_priorities_have_bounds(make, priority):
    """Or one could starve all others for ever."""
    with pytest.raises(InvalidInput, match="expected a priority of -60 to 60"):
        make(options_for=lambda _: SINGLE).submit(entry(FakeModel()), rows(1), priority=priority)


def test_a_model_may_have_fewer_instances_than_there_are_workers(make):
    """Its runs go one after another; other models are not held up."""
    scheduler, model = make(workers=3, options_for=options(max_batch=1, instances=1)), FakeModel()
    loaded = entry(model)
    with model.gate_shut():
        first = blocked(scheduler, loaded)
        second = scheduler.submit(loaded, rows(2))
        assert values(scheduler.submit(entry(FakeModel(), "other"), rows(3))) == [6]
        assert model.runs == [[1]]
    assert [values(first), values(second)] == [[2], [4]]


def test_a_model_may_wait_for_those_who_may_come_back(make):
    """Up to its time, or until they are there."""
    scheduler, model = make(options_for=options(max_wait=0.3)), FakeModel()
    loaded = entry(model)
    ready(scheduler, loaded)
    with model.gate_shut():
        blocked(scheduler, loaded)
        together = [scheduler.submit(loaded, rows(n)) for n in range(3)]
    wait(together, SOON)
    began = time.monotonic()
    wait([scheduler.submit(loaded, rows(n)) for n in range(4, 7)], SOON)
    assert time.monotonic() - began < 0.25
    assert values(scheduler.submit(loaded, rows(9))) == [18]
    assert time.monotonic() - began >= 0.3
    assert model.runs == [[1], [0, 1, 2], [4, 5, 6], [9]]


def test_close_drains(make):
    """What waits may still run; nothing new comes in."""
    scheduler, model = make(options_for=options(max_batch=1, max_wait=60)), FakeModel()
    loaded = entry(model)
    with model.gate_shut():
        first = blocked(scheduler, loaded)
        second = scheduler.submit(loaded, rows(2))
        closing = threading.Thread(target=scheduler.close, kwargs={"drain": SOON})
        closing.start()
        while not scheduler._closing:
            time.sleep(0.001)
        with pytest.raises(Overloaded, match="stopping"):
            scheduler.submit(loaded, rows(3))
    closing.join(SOON)
    assert [values(first), values(second)] == [[2], [4]]


def test_close_stops_what_does_not_end(make):
    """Everyone is told to come back later, and no thread is left."""
    scheduler, model = make(options_for=lambda _: SINGLE), FakeModel()
    loaded = entry(model)
    with model.gate_shut():
        futures = [blocked(scheduler, loaded), *(scheduler.submit(loaded, rows(2)) for _ in "ab")]
        scheduler.close(drain=0.01)
    for future in futures:
        with pytest.raises(Overloaded, match="stopping"):
            future.result(SOON)
    assert not any(
        thread.is_alive() for thread in (*scheduler._workers, scheduler._sweeper._thread)
    )


def test_close_can_be_called_twice(make):
    """By the end of a `with` statement, for one."""
    scheduler = make()
    with scheduler:
        scheduler.close()
    with pytest.raises(Overloaded):
        scheduler.submit(entry(FakeModel()), rows(1))


def test_a_deleted_model_is_let_go(make):
    """The scheduler holds no model, nor anybody's inputs, once nothing runs."""
    scheduler, model = make(), FakeModel()
    loaded = entry(model)
    ready(scheduler, loaded)
    inputs = rows(1)
    array = weakref.ref(inputs[0].array)
    assert values(scheduler.submit(loaded, inputs, deadline=time.monotonic() + 60)) == [2]
    gone = weakref.ref(model)
    del model, loaded, inputs
    until = time.monotonic() + SOON
    while (gone() or array()) and time.monotonic() < until:
        gc.collect()
        time.sleep(0.01)
    assert gone() is None
    assert array() is None
    assert scheduler.statistics() == []


def test_statistics_say_what_was_served(make):
    """For metrics."""
    scheduler, model = make(), FakeModel()
    loaded = entry(model)
    ready(scheduler, loaded)
    with model.gate_shut():
        blocked(scheduler, loaded)
        futures = [scheduler.submit(loaded, rows(n)) for n in range(4)]
        (now,) = scheduler.statistics()
        assert (now.waiting, now.running) == (4, 1)
        assert (scheduler.waiting, scheduler.running) == (4, 1)
    wait(futures, SOON)
    (after,) = scheduler.statistics()
    assert after.sha256 == loaded.record.sha256
    assert (after.success.count, after.execution_count) == (5, 2)
    assert (after.batches, after.reason) == (True, "")
    assert after.seconds_per_request > 0
    assert set(after.seconds_by_rows) == {1, 2, 4, 8, 16}


def test_statistics_have_what_the_protocol_asks_for(make):
    """Times of each part, by request and by size of batch; rows count as inferences."""

    class Slow(FakeModel):
        def compute(self, tensor, outputs):
            time.sleep(0.02)
            return super().compute(tensor, outputs)

    scheduler, model = make(), Slow()
    loaded = entry(model)
    ready(scheduler, loaded)
    before = time.time_ns() // 1_000_000
    with model.gate_shut():
        blocked(scheduler, loaded)
        asked = [scheduler.submit(loaded, rows(*values)) for values in ([1], [2, 3], [GUILTY])]
        time.sleep(0.03)
    wait(asked, SOON)
    encoded = scheduler.submit(loaded, rows(4), finish=lambda _: time.sleep(0.01))
    encoded.result(SOON)
    (now,) = scheduler.statistics()
    # The first alone; three in a batch that fails; two of them; the guilty one; the last.
    assert now.execution_count == 3
    assert now.inference_count == 5
    assert (now.success.count, now.fail.count) == (4, 1)
    assert before <= now.last_inference <= time.time_ns() // 1_000_000
    assert {size: each.compute_infer.count for size, each in now.batch_stats.items()} == {
        1: 2,
        3: 1,
    }
    assert now.batch_stats[3].compute_infer.ns >= 20e6
    assert now.batch_stats[3].compute_input.ns > 0
    assert now.batch_stats[1].compute_output.ns >= 10e6
    assert now.queue.ns >= 2 * 30e6
    assert now.compute_infer.ns >= 4 * 20e6
    parts = (now.queue, now.compute_input, now.compute_infer, now.compute_output)
    assert {part.count for part in parts} == {4}
    assert sum(part.ns for part in parts) <= now.success.ns
    assert now.fail.ns >= 50e6


def test_what_leaves_or_comes_too_late_counts_as_failed(make):
    """Once each, and before the caller is told."""
    scheduler, model, handle = make(options_for=lambda _: SINGLE), FakeModel(), RunHandle()
    loaded = entry(model)
    with model.gate_shut():
        first = blocked(scheduler, loaded)
        late = scheduler.submit(loaded, rows(2), deadline=time.monotonic() + 0.01)
        gone = scheduler.submit(loaded, rows(3), handle=handle)
        handle.terminate()
        wait([late, gone], SOON)
        (now,) = scheduler.statistics()
        assert (now.success.count, now.fail.count) == (0, 2)
    assert values(first) == [2]
    (now,) = scheduler.statistics()
    assert (now.success.count, now.fail.count, now.execution_count) == (1, 2, 1)


def test_runs_that_get_into_each_others_way_go_one_after_another(make):
    """Found out under load, for as long as it is so."""

    class Jealous(FakeModel):
        beside = 0

        def compute(self, tensor, outputs):
            self.beside += 1
            time.sleep(0.001 if self.beside == 1 else 0.008)
            self.beside -= 1
            return super().compute(tensor, outputs)

    scheduler, model = make(workers=2, options_for=lambda _: SINGLE), Jealous()
    loaded = entry(model)
    wait([scheduler.submit(loaded, rows(n)) for n in range(80)], SOON)
    (now,) = scheduler.statistics()
    assert now.lanes == 1
    assert now.success.count == 80


def test_rows_of_nan_change_nothing_for_their_neighbours(make):
    """One sends nothing but NaN, another nothing but infinities."""
    scheduler, model = make(), FakeModel()
    loaded = entry(model)
    ready(scheduler, loaded)
    with model.gate_shut():
        blocked(scheduler, loaded)
        sent = (1.0, float("nan"), 2.0, float("inf"), 3.0)
        futures = [scheduler.submit(loaded, rows(value)) for value in sent]
    results = [values(future)[0] for future in futures]
    assert len(model.runs) == 2
    assert results[::2] == [2, 4, 6]
    assert np.isnan(results[1])
    assert results[3] == float("inf")


def test_by_default_nothing_is_batched(make):
    """Rows of different callers go through a model together only where somebody asked."""
    scheduler, model = Scheduler(workers=1), FakeModel()
    loaded = entry(model)
    with scheduler:
        assert scheduler.prepare(loaded) is None
        with model.gate_shut():
            blocked(scheduler, loaded)
            futures = [scheduler.submit(loaded, rows(n)) for n in range(3)]
        wait(futures, SOON)
    assert model.runs == [[1], [0], [1], [2]]


def test_under_load_a_model_may_have_a_copy_with_other_threads(make):
    """Loaded when requests first overlap, and used while they do."""
    model, narrow, loads = FakeModel(), FakeModel(), []

    def load_again(loaded, threads):
        loads.append((loaded.record.sha256, threads))
        return narrow

    scheduler = make(options_for=options(max_batch=1, threads=1), load_again=load_again)
    loaded = entry(model)
    assert values(scheduler.submit(loaded, rows(1))) == [2]
    assert loads == []
    with model.gate_shut():
        blocked(scheduler, loaded)
        futures = [scheduler.submit(loaded, rows(n)) for n in range(2)]
    wait(futures, SOON)
    # Load counts as such for four runs: long enough for a slow machine to see it.
    scheduler._ledgers[model].per_run.seconds = 100.0
    scheduler._aside.submit(int).result(SOON)
    assert loads == [(loaded.record.sha256, 1)]
    assert values(scheduler.submit(loaded, rows(7))) == [14]
    assert narrow.runs[-1] == [7]
    assert [7] not in model.runs
    scheduler._copies.overlapped(time.monotonic() - 1000)
    assert values(scheduler.submit(loaded, rows(8))) == [16]
    assert model.runs[-1] == [8]


def test_a_copy_that_cannot_be_loaded_is_done_without(make):
    """Under load, memory may be short."""

    def load_again(_loaded, _threads):
        raise InvalidModel

    scheduler = make(options_for=options(max_batch=1, threads=1), load_again=load_again)
    model = FakeModel()
    loaded = entry(model)
    with model.gate_shut():
        blocked(scheduler, loaded)
        future = scheduler.submit(loaded, rows(2))
        other = scheduler.submit(loaded, rows(3))
    assert [values(future), values(other)] == [[4], [6]]


def test_many_threads_and_leavers_lose_no_request(make):
    """Each future ends exactly once, with its own rows or with its own error."""
    scheduler, model = make(workers=2, max_queue=10_000), FakeModel()
    loaded = entry(model)
    ready(scheduler, loaded)
    outcomes = []

    def client(seed):
        rng = np.random.default_rng(seed)
        for number in range(60):
            value = float(seed * 1000 + number)
            guilty = rng.random() < 0.05
            handle = RunHandle()
            deadline = time.monotonic() + (0.0005 if rng.random() < 0.05 else 60)
            try:
                future = scheduler.submit(
                    loaded, rows(GUILTY if guilty else value), deadline=deadline, handle=handle
                )
                if rng.random() < 0.1:
                    handle.terminate()
                outcomes.append(values(future) == [value * 2])
            except InferenceError:
                outcomes.append(True)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert outcomes == [True] * 480
    assert scheduler.waiting == scheduler.running == 0
    assert len(scheduler._sweeper) == 0


@pytest.mark.parametrize("bad", [{"workers": -1}, {"max_queue": 0}])
def test_settings_that_cannot_be_used_are_refused(bad):
    """Before any thread is started."""
    with pytest.raises(ConfigurationError, match="expected workers from 0"):
        Scheduler(**bad)


@pytest.mark.parametrize(
    "bad", [{"max_batch": 0}, {"max_wait": -1}, {"max_wait": float("nan")}, {"threads": -1}]
)
def test_options_that_cannot_be_used_are_refused(bad):
    """Where they are made."""
    with pytest.raises(ConfigurationError, match="expected max_batch from 1 up"):
        SchedulingOptions(**bad)
