"""What was done lately: counts of each interval, bounded, whatever happens to the models."""

import asyncio
from types import SimpleNamespace

import pytest

from blindai.inference.served import Tally
from blindai.server.load_history import LENGTH, LoadHistory


class Scene:
    """Models whose counts a test sets, and a clock that it turns."""

    def __init__(self):
        self.models, self.now, self.running = {}, 0.0, 0
        self.history = LoadHistory(self.counts, clock=lambda: self.now)

    def counts(self):
        return [
            SimpleNamespace(
                sha256=sha256,
                success=Tally(count, ns),
                fail=Tally(failed, 0),
                waiting=self.running,
                running=0,
            )
            for sha256, count, ns, failed in self.models.values()
        ]

    def after(self, seconds, **models):
        """Record an interval in which the models came to these counts; return its entry."""
        self.models |= models
        self.now += seconds
        self.history.record()
        return self.history.entries[-1]


def test_counts_what_was_added():
    """An entry has what came since the one before, and how long that was."""
    scene = Scene()
    first = scene.after(10, a=("a", 5, 50_000_000, 1))
    assert (first.seconds, first.succeeded, first.failed) == (10, 5, 1)
    assert first.mean == pytest.approx(0.01)
    scene.running = 3
    second = scene.after(20, a=("a", 7, 90_000_000, 1))
    assert (second.seconds, second.succeeded, second.failed, second.running) == (20, 2, 0, 3)
    assert second.mean == pytest.approx(0.02)


def test_what_was_before_is_not_counted():
    """Counts from before the history began are in no entry."""
    scene = Scene()
    scene.models = {"a": ("a", 100, 10, 4)}
    scene.history = LoadHistory(scene.counts, clock=lambda: scene.now)
    assert scene.after(10).succeeded == 0


def test_an_idle_interval_has_no_mean():
    """Where nothing succeeded there is no time to show, and not a time of zero."""
    assert Scene().after(10).mean is None


def test_models_come_and_go():
    """A deleted model takes nothing away; one that came back begins anew; twins are added up."""
    scene = Scene()
    scene.after(10, a=("a", 50, 50, 0), twin=("a", 50, 50, 0))
    del scene.models["a"], scene.models["twin"]
    assert scene.after(10, b=("b", 3, 3, 0)).succeeded == 3
    assert scene.after(10, a=("a", 2, 2, 0)).succeeded == 2
    assert scene.after(10, twin=("a", 4, 4, 0)).succeeded == 4


def test_bounded():
    """Only the last entries are kept."""
    scene = Scene()
    for count in range(LENGTH + 10):
        scene.after(10, a=("a", count, 0, 0))
    assert len(scene.history.entries) == LENGTH


async def test_records_until_cancelled():
    """The task records by itself, one interval after another."""
    twice = asyncio.Event()

    def counts():
        calls.append(1)
        if len(calls) > 2:
            twice.set()
        return []

    calls = []
    history = LoadHistory(counts, interval=0.01)
    task = asyncio.create_task(history.record_for_ever())
    await asyncio.wait_for(twice.wait(), 10)
    assert len(history.entries) >= 1
    task.cancel()
