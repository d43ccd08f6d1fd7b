"""Runs are stopped by deadlines and handles, whatever the engine."""

import threading
import time

import pytest

from blindai.errors import ConfigurationError, DeadlineExceeded, InferenceError
from blindai.inference.engine import DeadlineWatch, LoadOptions, RunHandle, stoppable
from blindai.inference.engines import ENGINES, load_engine


def test_a_handle_stops_its_run_once():
    """However often it is terminated."""
    stopped = []
    handle = RunHandle()
    with stoppable(lambda: stopped.append(1), deadline=None, handle=handle) as run:
        assert run is handle
        assert not run.terminated
        handle.terminate()
        handle.terminate()
        assert run.terminated
    assert stopped == [1]


def test_a_handle_does_nothing_after_its_run():
    """The engine's object is gone by then."""
    stopped = []
    handle = RunHandle()
    with stoppable(lambda: stopped.append(1), deadline=None, handle=handle):
        pass
    handle.terminate()
    assert stopped == []


def test_a_run_does_not_start_after_its_handle_was_terminated():
    """A client that went away while its request was in the queue costs nothing."""
    handle = RunHandle()
    handle.terminate()
    with (
        pytest.raises(InferenceError, match="stopped before its end"),
        stoppable(pytest.fail, deadline=None, handle=handle),
    ):
        pytest.fail("the run started")


def test_a_run_does_not_start_after_its_deadline():
    """Nor does a request whose time ran out in the queue."""
    with (
        pytest.raises(DeadlineExceeded),
        stoppable(pytest.fail, deadline=time.monotonic() - 1, handle=None),
    ):
        pytest.fail("the run started")


def test_a_handle_serves_one_run():
    """An engine's way to stop cannot be used twice."""
    handle = RunHandle()
    with stoppable(pytest.fail, deadline=None, handle=handle):
        pass
    with (
        pytest.raises(ConfigurationError, match="new RunHandle"),
        stoppable(pytest.fail, deadline=None, handle=handle),
    ):
        pytest.fail("the run started")


def test_without_deadline_and_handle_nothing_can_stop_a_run():
    """And nothing is spent on it."""
    with stoppable(pytest.fail, deadline=None, handle=None) as run:
        assert run is None


def test_deadlines_stop_runs_in_their_order_and_not_before():
    """Also a later run with an earlier deadline, which wakes the watch."""
    watch = DeadlineWatch()
    stopped: list[tuple[str, float]] = []
    done = threading.Event()
    start = time.monotonic()
    handles = {}
    for name, delay in (("late", 0.3), ("never", 60.0), ("early", 0.1), ("ended", 0.2)):
        handles[name] = RunHandle()

        def stop(name=name):
            stopped.append((name, time.monotonic() - start))
            if name == "late":
                done.set()

        handles[name].attach(stop)
        watch.add(handles[name], start + delay)
    watch.remove(handles["ended"])
    assert done.wait(10)
    assert [name for name, _ in stopped] == ["early", "late"]
    assert stopped[0][1] >= 0.1
    assert stopped[1][1] >= 0.3
    assert isinstance(handles["early"].reason(), DeadlineExceeded)
    assert not handles["never"].terminated
    watch.remove(handles["never"])


def test_a_watch_that_fell_asleep_wakes_for_a_new_deadline():
    """After the last deadline has passed it sleeps until there is another."""
    watch = DeadlineWatch()
    for _ in range(2):
        stopped = threading.Event()
        handle = RunHandle()
        handle.attach(stopped.set)
        watch.add(handle, time.monotonic() + 0.02)
        assert stopped.wait(10)


@pytest.mark.parametrize("options", [{"threads": -1}, {"shrink_above": -1}])
def test_impossible_options_are_refused(options):
    """There are no negative threads or bytes."""
    with pytest.raises(ConfigurationError, match="from 0 up"):
        LoadOptions(**options)


def test_engines_come_by_name():
    """An unknown name is answered with the list."""
    assert load_engine("onnx").name.startswith("onnxruntime ")
    assert load_engine().name == load_engine("onnx").name
    with pytest.raises(ConfigurationError, match=f"engine of {', '.join(ENGINES)}, came 'tf'"):
        load_engine("tf")
