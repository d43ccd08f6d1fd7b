"""Counts are of bounded memory, and lose nothing between threads."""

import threading
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from blindai.inference.served import RunTimes, Served, Tally


def request(rows=1):
    return SimpleNamespace(rows=rows, arrived=0.0)


def test_a_new_model_has_served_nothing():
    """All counts are zero, also the time of the last run."""
    now = Served().statistics()
    assert (now.last_inference, now.inference_count, now.execution_count) == (0, 0, 0)
    assert now.success == now.fail == now.queue == now.compute_infer == Tally(0, 0)
    assert now.batch_stats == {}


def test_a_run_whose_callers_all_left_is_a_run_without_success():
    """The engine worked, and nobody got a result."""
    served = Served()
    served.add_run(3, [], began=0.0, times=RunTimes(1, 2, 3))
    now = served.statistics()
    assert (now.execution_count, now.inference_count) == (1, 0)
    assert now.success == Tally()
    assert now.batch_stats[3].compute_output == Tally(1, 3)


def test_each_request_of_a_batch_counts_the_time_of_the_batch():
    """As Triton has it: what a caller waited for."""
    served = Served()
    served.add_run(5, [request(2), request(3)], began=0.0, times=RunTimes(10, 20, 30))
    now = served.statistics()
    assert (now.inference_count, now.success.count) == (5, 2)
    assert now.compute_input == Tally(2, 20)
    assert now.compute_infer == Tally(2, 40)
    assert now.batch_stats[5].compute_infer == Tally(1, 20)


@given(st.lists(st.integers(1, 2**40), max_size=400))
def test_memory_is_bounded_whatever_sizes_come(sizes):
    """A peer chooses the number of rows; none is lost."""
    served = Served()
    for rows in sizes:
        served.add_run(rows, [request(rows)], began=0.0, times=RunTimes(1, 1, 1))
    now = served.statistics()
    assert len(now.batch_stats) <= 256 + 33
    assert now.inference_count == sum(sizes)
    assert sum(each.compute_infer.count for each in now.batch_stats.values()) == len(sizes)


def test_threads_lose_no_count():
    """Workers and the sweeper count at once."""
    served = Served()

    def work():
        for _ in range(500):
            served.add_run(1, [request()], began=0.0, times=RunTimes(1, 1, 1))
            served.add_failure(request())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    now = served.statistics()
    assert (now.success.count, now.fail.count, now.execution_count) == (2000, 2000, 2000)
