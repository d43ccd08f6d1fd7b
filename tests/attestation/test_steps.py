"""A failed verification says what passed, what failed, and what was never looked at."""

import pytest

from blindai.attestation.steps import StepName, Steps
from blindai.errors import SignatureError

PLAN = (StepName("one", "First"), StepName("two", "Second", "Manual §2"), StepName("three", "3rd"))


def states(steps):
    """Return name and status of each step."""
    return [(step.name, step.status) for step in steps.taken]


def test_passed():
    """A step that ends is passed; remarks and comparisons stay with it."""
    steps = Steps(PLAN)
    with steps.take("one") as step:
        step.note("remark")
        assert step.compare("bytes", expected=b"\x01", found=b"\x01")
        assert not step.compare("number", expected=1, found=2)
    assert states(steps) == [("one", "passed"), ("two", "skipped"), ("three", "skipped")]
    assert steps.taken[0].to_json() == {
        "name": "one",
        "title": "First",
        "reference": "",
        "status": "passed",
        "detail": "remark",
        "compared": [
            {"what": "bytes", "expected": "01", "found": "01"},
            {"what": "number", "expected": "1", "found": "2"},
        ],
    }


def test_failed():
    """An attestation error marks its step, carries all steps, and explains them."""
    steps = Steps(PLAN)
    with steps.take("one"):
        pass
    refusal = SignatureError("not signed")
    with pytest.raises(SignatureError) as error, steps.take("two"):
        raise refusal
    assert states(steps) == [("one", "passed"), ("two", "failed"), ("three", "skipped")]
    assert error.value.steps == steps.taken
    assert error.value.explain() == (
        "SignatureError: not signed\n"
        "   passed  one\n"
        "   failed  two: not signed\n"
        "  skipped  three: not reached"
    )


def test_a_bug_is_no_pass():
    """An error that is none of ours goes through, and its step did not pass."""
    steps = Steps(PLAN)
    with pytest.raises(ZeroDivisionError), steps.take("one"):
        _ = 1 / 0
    assert (steps.taken[0].status, steps.taken[0].detail) == ("failed", "ZeroDivisionError")


def test_skipped():
    """A step that is not needed says why."""
    steps = Steps(PLAN)
    steps.skip("two", "nothing attached")
    assert (steps.taken[1].status, steps.taken[1].detail) == ("skipped", "nothing attached")


def test_unplanned():
    """A step that was not planned cannot be taken: nothing happens that no plan shows."""
    with pytest.raises(KeyError):
        Steps(PLAN).take("four").__enter__()
