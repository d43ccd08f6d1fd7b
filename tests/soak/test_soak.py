"""The arithmetic of a soak, and a very short one."""

import numpy as np
import pytest

from tests.served import serving
from tests.soak.__main__ import report, soak
from tests.soak.actors import ACTORS, EXPLAINED
from tests.soak.slope import slope_of

MINUTES = list(np.linspace(0, 30, 1800))


def noise(seed, *, alike):
    """Return noise of size 1 whose neighbours are as alike as that."""
    dice = np.random.default_rng(seed)
    found = [0.0]
    for step in dice.standard_normal(len(MINUTES) - 1):
        found.append(alike * found[-1] + (1 - alike**2) ** 0.5 * step)
    return np.array(found)


@pytest.mark.parametrize("alike", [0.0, 0.9])
@pytest.mark.parametrize("true", [0.0, 0.5, -2.0])
def test_slope(true, alike):
    """The interval holds the true slope about as often as it says, also where samples are alike."""
    found = [
        slope_of(MINUTES, list(true * np.array(MINUTES) + noise(seed, alike=alike)))
        for seed in range(100)
    ]
    assert np.mean([each.value for each in found]) == pytest.approx(true, abs=0.02)
    assert sum(each.low <= true <= each.high for each in found) >= 85


def test_growth_is_seen():
    """A leak that is small beside the noise is told from none after half an hour."""
    assert slope_of(MINUTES, list(0.2 * np.array(MINUTES) + noise(1, alike=0.9))).low > 0


def test_too_few_points():
    """A handful of samples says nothing, and is refused."""
    with pytest.raises(ValueError, match="expected 30 points"):
        slope_of([1.0] * 5, [1.0] * 5)


@pytest.mark.slow
def test_a_short_soak(tmp_path):
    """Every role gets what it has to get, and every outcome has a reason."""
    with serving("--sealed-models", tmp_path / "vault") as server:
        samples, record = soak(server, 0.75)
        ended = server.stop()
    text, faults = report(0.75, samples, record, ended)
    # Memory has not settled after ten seconds: that is the long run's to judge.
    assert [fault for fault in faults if "grow" not in fault] == []
    assert set(record.outcomes) == {actor.__name__ for actor in ACTORS}
    assert set(record.kinds) <= set(EXPLAINED)
    assert "unexplained: 0" in text
