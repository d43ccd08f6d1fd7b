"""Small charts: what they draw is what the numbers say, and they say it in words too."""

import re

import pytest

from blindai.server.charts import bars, number
from blindai.server.load_history import LENGTH

BAR = re.compile(r"M(\d+) 40v-([\d.]+)h")


def drawn(values):
    """Return the position and height of each bar."""
    return [(int(x), float(height)) for x, height in BAR.findall(bars("t", values, ""))]


def test_newest_is_at_the_right_and_the_highest_fills():
    """Bars end at the right edge; the highest one is as high as the chart, others in proportion."""
    assert drawn([5.0, 10.0]) == [(LENGTH - 2, 20.0), (LENGTH - 1, 40.0)]


def test_nothing_is_not_drawn_and_little_is_seen():
    """Zero and gaps have no bar; what is there at all has one that can be seen."""
    assert drawn([0.0, None, 1e-9, 100.0]) == [(LENGTH - 2, 1.0), (LENGTH - 1, 40.0)]
    assert drawn([]) == []


def test_says_what_it_shows():
    """Somebody who cannot see the chart is told its last and its highest value."""
    chart = bars("requests per second", [3.0, 12.0, 2.0, None], " x")
    assert 'role="img"' in chart
    assert "requests per second: latest 2 x, at most 12 x, over 4 intervals" in chart
    assert "latest none yet" in bars("t", [None], "")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0001, "<0.001"), (0.0123, "0.0123"), (1.5, "1.5"), (99.94, "99.9"),
     (99.96, "100"), (100, "100"), (1234567.8, "1,234,568")],
)  # fmt: skip
def test_numbers_are_for_people(value, text):
    """Three digits, thousands apart, no exponents."""
    assert number(value) == text
