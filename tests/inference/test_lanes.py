"""How many runs go side by side follows what was measured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.inference.lanes import Lanes


def serve(lanes, seconds, runs):
    """Let the lanes decide on a machine where a run beside others takes `seconds(lanes)`."""
    used = []
    for _ in range(runs):
        used.append(lanes.current)
        lanes.record(used[-1], 1, seconds(used[-1]))
    return used


def test_without_measurements_there_are_as_many_as_workers():
    """And one worker has nothing to find out."""
    assert Lanes(6).current == 6
    single = Lanes(1)
    assert serve(single, lambda _: 1.0, 300) == [1] * 300


def test_runs_that_get_into_each_others_way_go_one_by_one():
    """Two that take 2.3 times as long as one are worse than one after another."""
    lanes = Lanes(2)
    used = serve(lanes, lambda side: 1.0 if side == 1 else 2.3, 2000)
    assert used[30:].count(1) > 1850


def test_runs_that_fill_each_others_gaps_go_side_by_side():
    """Trials of the other way become rare."""
    used = serve(Lanes(2), lambda side: 1.0 if side == 1 else 1.8, 4000)
    assert used.count(1) < 100


def test_a_difference_within_noise_changes_nothing():
    """Or it would go back and forth."""
    used = serve(Lanes(2), lambda side: 0.98 if side == 1 else 2.0, 3000)
    assert used[-200:].count(2) > 180


@pytest.mark.parametrize("best", [1, 2, 4, 8, 12])
def test_the_best_number_is_found_step_by_step(best):
    """On machines with many cores."""
    lanes = Lanes(12)
    serve(lanes, lambda side: side * (1 + abs(side - best) / 12), 6000)
    used = serve(lanes, lambda side: side * (1 + abs(side - best) / 12), 1000)
    assert used.count(best) > 900


def test_what_was_settled_is_found_out_anew():
    """Machines change, and loads."""
    lanes = Lanes(2)
    used = serve(lanes, lambda side: 1.0 if side == 1 else 2.3, 500)
    assert used[-100:].count(1) > 80
    used = serve(lanes, lambda side: 1.0 if side == 1 else 1.5, 3000)
    assert used[-500:].count(2) > 450


def test_a_run_that_the_system_put_off_changes_nothing():
    """One outlier counts as twice what was expected at most."""
    lanes = Lanes(2)
    serve(lanes, lambda side: 1.0 if side == 1 else 1.8, 300)
    lanes.record(2, 1, 1000.0)
    used = serve(lanes, lambda side: 1.0 if side == 1 else 1.8, 1500)
    assert used.count(1) < 60


def test_a_trial_that_cannot_be_made_ends():
    """Another model may always be running beside."""
    lanes = Lanes(2)
    wanted = []
    for _ in range(1000):
        wanted.append(lanes.current)
        lanes.record(2, 1, 2.0)
    assert 1 in wanted
    assert wanted.count(1) < 100


@given(
    st.integers(1, 200),
    st.lists(st.tuples(st.integers(1, 250), st.integers(1, 99), st.floats(0, 1e6)), max_size=300),
)
def test_there_is_always_a_lane_and_never_more_than_workers(most, runs):
    """Whatever was measured."""
    lanes = Lanes(most)
    for side, rows, seconds in runs:
        lanes.record(side, rows, seconds)
        assert 1 <= lanes.current <= most
