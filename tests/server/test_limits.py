"""How often, and how much at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import Overloaded
from blindai.server.limits import ByteBudget, TokenBucket


def test_bucket_allows_a_burst_and_then_the_rate():
    """A burst passes, then one event after each span of the rate; time asleep is capped."""
    now = [0.0]
    bucket = TokenBucket(2.0, 3, clock=lambda: now[0])
    assert [bucket.take() for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    now[0] = 0.5
    assert [bucket.take(), bucket.take()] == [0.0, 0.5]
    now[0] = 1000.0
    assert [bucket.take() > 0 for _ in range(4)] == [False, False, False, True]


@given(st.lists(st.floats(0, 0.3), max_size=60))
def test_bucket_never_gives_more_than_its_rate(pauses):
    """However events fall, no more than the burst and the rate allow pass."""
    now = [0.0]
    bucket = TokenBucket(5.0, 4, clock=lambda: now[0])
    passed = 0
    for pause in pauses:
        now[0] += pause
        passed += bucket.take() == 0.0
    assert passed <= 4 + 5.0 * now[0] + 1e-6


def test_budget_is_shared_and_given_back():
    """What does not fit is refused for that request; all of a share comes back at its end."""
    budget = ByteBudget(10)
    with budget.share() as one:
        one.grow(6)
        with budget.share() as two:
            two.grow(4)
            with pytest.raises(Overloaded):
                two.grow(1)
        assert budget.used == 6
        one.grow(4)
    assert budget.used == 0
