"""Batches are made where they were measured to pay off, and nowhere else."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.inference.costs import CostModel, MovingAverage


def serve(costs, seconds, waiting, decisions=40):
    """Let the costs decide over and over on machines where a run takes `seconds(rows)`."""
    sizes = []
    for _ in range(decisions):
        size = costs.choose([1] * waiting)
        costs.record(size, seconds(size))
        sizes.append(size)
    return sizes


def test_nothing_is_batched_before_a_single_run_is_known():
    """There is nothing to compare with."""
    costs = CostModel()
    assert costs.choose([1] * 8) == 1
    costs.record(1, 1.0)
    costs.record(1, 1.0)
    assert costs.choose([1] * 8) == 1
    costs.record(1, 1.0)
    assert costs.choose([1] * 8) == 2


def test_where_a_run_costs_the_same_whatever_its_rows_all_are_batched():
    """Sizes double until all that wait go together."""
    sizes = serve(CostModel(), lambda _rows: 1.0, 16)
    assert sizes[-1] == 16
    assert all(after <= 2 * before for before, after in pairwise(sizes))


def test_where_batches_gain_nothing_requests_run_alone():
    """A batch would only make everyone wait for the last."""
    sizes = serve(CostModel(), lambda rows: rows * 1.0, 16)
    assert sizes[10:] == [1] * 30
    assert max(sizes) == 2


def test_the_best_size_is_kept_where_larger_ones_are_worse():
    """Caches have an end."""
    sizes = serve(CostModel(), lambda rows: (1 + rows / 4) * (1 if rows <= 8 else 3), 32)
    assert sizes[-10:] == [8] * 10


def test_a_small_gain_is_none():
    """Latency grows for sure."""
    sizes = serve(CostModel(), lambda rows: 0.97 * rows if rows > 1 else 1.0, 8)
    assert sizes[10:] == [1] * 30


def test_what_was_settled_is_tried_again():
    """Batches that gained nothing are found when they do."""
    costs = CostModel()
    serve(costs, lambda rows: rows * 1.0, 16)
    sizes = serve(costs, lambda _rows: 1.0, 16, decisions=2000)
    assert sizes[-1] == 16


def test_a_batch_that_no_longer_pays_off_is_given_up():
    """The same the other way round."""
    costs = CostModel()
    serve(costs, lambda _rows: 1.0, 16)
    sizes = serve(costs, lambda rows: rows * 1.0, 16, decisions=2000)
    assert sizes.count(1) > 1900


def test_requests_of_several_rows_count_by_rows():
    """Four of two rows are a batch of eight."""
    costs = CostModel()
    for rows in (2, 4, 8):
        for _ in range(3):
            costs.record(rows, 1.0)
    assert costs.choose([2, 2, 2, 2]) == 4
    assert costs.choose([8, 2]) == 2
    assert costs.choose([1, 2]) == 1


def test_estimates_lie_between_measurements():
    """And grow with the rows beyond them."""
    costs = CostModel()
    assert costs.estimate(1) is None
    costs.record(2, 2.0)
    costs.record(4, 3.0)
    assert [costs.estimate(rows) for rows in (1, 2, 3, 4, 8)] == [1.0, 2.0, 2.5, 3.0, 6.0]


def test_one_outlier_does_not_change_the_course():
    """A run that the system put off counts as at most twice as long."""
    average = MovingAverage()
    for _ in range(10):
        average.add(1.0)
    average.add(1000.0)
    assert average.seconds == pytest.approx(1.25)
    for _ in range(40):
        average.add(4.0)
    assert average.seconds == pytest.approx(4.0, rel=0.01)


@given(st.lists(st.integers(1, 2**40), min_size=1, max_size=300))
def test_memory_is_bounded_whatever_sizes_come(rows):
    """A peer chooses the number of rows."""
    costs = CostModel()
    for count in rows:
        costs.record(count, 1.0)
    assert len(costs.seconds_by_rows()) <= 64 + 34


@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=40),
    st.lists(st.tuples(st.integers(1, 200), st.floats(1e-6, 1e3)), max_size=60),
)
def test_a_choice_is_always_possible(rows, measured):
    """At least one request, at most all, whatever was measured before."""
    costs = CostModel()
    for count, seconds in measured:
        costs.record(count, seconds)
    for _ in range(60):
        assert 1 <= costs.choose(rows) <= len(rows)
