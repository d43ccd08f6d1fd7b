"""Durations end up below the bound that is theirs, and none is lost."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from blindai.inference.histogram import Histogram


@given(st.lists(st.integers(0, 2**63)))
def test_every_duration_is_counted(durations):
    """A bucket holds exactly what is shorter than its bound; all are in the number and the sum."""
    histogram = Histogram()
    for duration in durations[:3]:
        histogram.add(duration)
    histogram.add_all(durations[3:])
    buckets, count, seconds = histogram.read()
    assert count == len(durations)
    assert abs(seconds - sum(durations) / 1e9) <= seconds * 1e-9
    for bound, below in buckets:
        assert below == sum(duration < round(bound * 1e9) for duration in durations)


def test_bounds_span_what_happens():
    """The bounds go from microseconds to minutes, and rise."""
    bounds = [bound for bound, _ in Histogram().read()[0]]
    assert bounds == sorted(bounds)
    assert bounds[0] < 20e-6
    assert bounds[-1] > 120


def test_several_threads():
    """Nothing is lost where several threads count."""
    histogram = Histogram()
    threads = [
        threading.Thread(target=lambda: [histogram.add(50_000) for _ in range(2000)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert histogram.read()[1] == 8000
