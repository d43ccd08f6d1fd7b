"""State between steps: who opens it, what it may take, and when it goes."""

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import BlindAIError, InvalidInput, LimitExceeded, Overloaded
from blindai.inference.records import ModelRecord
from blindai.inference.sequences import (
    SequenceLimits,
    Sequences,
    carry,
    missing_state,
    size_of,
    size_of_zeros,
    zeros,
)
from blindai.inference.tensors import DataType, Tensor, TensorSpec

FP32, INT64, BYTES = DataType.FP32, DataType.INT64, DataType.BYTES
LIMITS = SequenceLimits(count=3, per_caller=2, bytes_each=100, bytes_all=150, idle=10.0)
STATE = {"past": "present"}


class Clock:
    """Says what time it is told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def record(inputs=None, outputs=None, sha256="a" * 64) -> ModelRecord:
    """Return the record of a model, by default of a decoder."""
    inputs = inputs or {"ids": (INT64, ("batch", "new")), "past": (FP32, ("batch", "seen", 4))}
    outputs = outputs or {"scores": (FP32, ("batch", 9)), "present": (FP32, ("batch", None, 4))}

    def specs(described):
        return tuple(TensorSpec(name, *what) for name, what in described.items())

    now = datetime.now(UTC)
    return ModelRecord(("m",), sha256, 1, specs(inputs), specs(outputs), "engine", now)


def floats(name: str, count: int) -> Tensor:
    return Tensor(name, np.zeros(count, np.float32), FP32)


@pytest.fixture
def clock():
    """A clock that stands."""
    return Clock()


@pytest.fixture
def sequences(clock):
    """Room for three sequences."""
    return Sequences(LIMITS, clock=clock)


def begun(sequences, key="key", account="me", count=1):
    """Return a sequence that made a step and rests."""
    held = sequences.begin(account, record(), STATE, key)
    sequences.keep(held, [floats("past", count)])
    sequences.rest(held)
    return held


def test_the_next_step_finds_the_state(sequences):
    """What one step kept is what the next one finds, and it is counted."""
    held = begun(sequences, count=5)
    assert sequences.find("key", record(), 1) is held
    assert held.kept[0].shape == (5,)
    assert (len(sequences), sequences.size) == (1, 20)
    sequences.end(held)
    sequences.end(held)
    assert (len(sequences), sequences.size, held.kept) == (0, 0, ())


def test_unknown_is_all_that_is_said(sequences, clock):
    """A key of nobody, of something that ended, expired, or of another model: one message."""
    messages = set()

    def refuse(key, model=None):
        with pytest.raises(InvalidInput) as caught:
            sequences.find(key, model or record())
        messages.add(str(caught.value))

    refuse("never")
    begun(sequences)
    refuse("key", record(sha256="b" * 64))
    sequences.end_key("key")
    refuse("key")
    begun(sequences)
    clock.now = 10.0
    refuse("key")
    assert len(messages) == 1


def test_a_step_at_a_time(sequences):
    """While a step is under way there is no other, and no new beginning."""
    held = begun(sequences)
    sequences.find("key", record())
    with pytest.raises(InvalidInput, match="under way"):
        sequences.find("key", record())
    with pytest.raises(InvalidInput, match="under way"):
        sequences.begin("me", record(), STATE, "key")
    sequences.rest(held)
    assert sequences.find("key", record()) is held


def test_a_step_is_not_made_twice(sequences):
    """A step that says another number than its turn's is refused, and changes nothing."""
    begun(sequences)
    for number in (0, 2):
        with pytest.raises(InvalidInput, match=f"expected step 1 .* came step {number}"):
            sequences.find("key", record(), number)
    assert not sequences.find("key", record(), 1).is_over


def test_beginning_anew(sequences):
    """A key that begins again lets go of what it had."""
    before = begun(sequences, count=9)
    after = begun(sequences, count=1)
    assert before.is_over
    assert sequences.find("key", record()) is after
    assert (len(sequences), sequences.size) == (1, 4)


def test_a_first_step_that_failed(sequences):
    """A sequence that never made a step leaves nothing behind."""
    held = sequences.begin("me", record(), STATE, "key")
    sequences.hold(held, 50)
    sequences.rest(held)
    assert (len(sequences), sequences.size) == (0, 0)


def test_how_many(sequences):
    """One caller has as many as one may, and all together as many as all may."""
    begun(sequences, 1)
    begun(sequences, 2)
    with pytest.raises(Overloaded, match="yours"):
        begun(sequences, 3)
    begun(sequences, 4, account="other")
    with pytest.raises(Overloaded, match="all callers"):
        begun(sequences, 5, account="third")
    sequences.end_key(1)
    begun(sequences, 3)


def test_state_that_grows_too_large(sequences):
    """State above the limit of one ends the sequence."""
    first = begun(sequences, 1, count=25)
    assert sequences.size == 100
    sequences.find(1, record())
    with pytest.raises(LimitExceeded, match="at most 100 bytes"):
        sequences.keep(first, [floats("past", 26)])
    assert (first.is_over, sequences.size) == (True, 0)


def test_no_room_leaves_the_state_as_it_was(sequences):
    """A step whose state finds no room can be made again."""
    begun(sequences, 1, count=25)
    small = begun(sequences, 2, count=10)
    sequences.find(2, record())
    with pytest.raises(Overloaded):
        sequences.keep(small, [floats("past", 20)])
    assert (small.kept[0].shape, small.steps, sequences.size) == ((10,), 1, 140)


def test_expiry(sequences, clock):
    """What nobody goes on with is let go of in time; a step under way is waited for."""
    first = begun(sequences, 1)
    clock.now = 4.0
    begun(sequences, 2)
    assert sequences.sweep() == 6.0
    sequences.find(1, record())
    clock.now = 30.0
    assert sequences.sweep() is None
    assert len(sequences) == 1
    sequences.rest(first)
    assert sequences.sweep() == 10.0


def test_all_keys_at_once(sequences):
    """When keys are renewed, what a later request could open is gone; what runs goes on."""
    held = begun(sequences, 1)
    running = sequences.begin("me", record(), STATE)
    sequences.find(1, record())
    sequences.end_keyed()
    assert (held.is_over, running.is_over) == (True, False)
    with pytest.raises(InvalidInput, match="no such sequence"):
        sequences.keep(held, [floats("past", 1)])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["begin", "find", "keep", "rest", "end", "tick", "sweep"]),
            st.integers(0, 3),
            st.integers(0, 30),
        ),
        max_size=60,
    )
)
def test_accounts_always_balance(steps):
    """Whatever happens in whatever order, what is counted is what is held, within the limits."""
    clock = Clock()
    sequences = Sequences(LIMITS, clock=clock)
    every = []
    for action, key, amount in steps:
        held = every[key % len(every)] if every else None
        try:
            if action == "begin":
                every.append(sequences.begin(key % 2, record(), STATE, key))
            elif action == "find":
                sequences.find(key, record())
            elif action == "tick":
                clock.now += amount
            elif action == "sweep":
                sequences.sweep()
            elif held is not None and action == "keep":
                sequences.keep(held, [floats("past", amount)])
            elif held is not None:
                getattr(sequences, action)(held)
        except BlindAIError:
            pass
        alive = [held for held in every if not held.is_over]
        assert len(sequences) == len(alive) <= LIMITS.count
        assert sequences.size == sum(held.size for held in alive) <= LIMITS.bytes_all
        assert all(held.size <= LIMITS.bytes_each for held in alive)
        assert not any(held.kept for held in every if held.is_over)


@pytest.mark.parametrize(
    ("state", "what"),
    [
        ({"nope": "present"}, "'nope'"),
        ({"past": "nope"}, "'nope'"),
        ({"ids": "present"}, "never fits"),
        ({"past": "scores"}, "never fits"),
        ({"other": "present"}, "never fits"),
    ],
)
def test_state_that_does_not_fit(sequences, state, what):
    """State of no such input or output, of another type, rank or fixed size is refused."""
    inputs = {
        "ids": (INT64, ("batch", "new")),
        "past": (FP32, ("batch", "seen", 4)),
        "other": (FP32, ("batch", "seen", 5)),
    }
    with pytest.raises(InvalidInput, match=what):
        sequences.begin("me", record(inputs), state)


def test_state_of_any_rank(sequences):
    """A model that says nothing of shapes is left to find out."""
    sequences.begin("me", record({"past": (FP32, None)}), STATE)


def test_state_that_was_left_out():
    """Named dimensions come from the inputs, fixed ones from the model; open ones are 0."""
    inputs = {
        "ids": (INT64, ("batch", "new")),
        "past": (FP32, ("batch", "seen", 4)),
        "words": (BYTES, ("batch", 2)),
        "scalar": (FP32, None),
    }
    state = {"past": "present", "words": "w", "scalar": "s"}
    given_inputs = [Tensor("ids", np.zeros((3, 7), np.int64), INT64)]
    missing = missing_state(state, given_inputs, record(inputs))
    assert [shape for _, shape in missing] == [(3, 0, 4), (3, 2), ()]
    made = zeros(missing)
    assert [tensor.shape for tensor in made] == [(3, 0, 4), (3, 2), ()]
    assert made[1].array[0, 0] == b""
    assert size_of_zeros(missing) == size_of(made)
    past = Tensor("past", np.zeros((3, 1, 4), np.float32), FP32)
    missing = missing_state(state, [*given_inputs, past], record(inputs))
    assert [spec.name for spec, _ in missing] == ["words", "scalar"]


def test_the_size_of_what_is_missing_needs_no_memory():
    """Shapes that no memory could hold are counted without making them."""
    model = record({"past": (FP32, (2**40, 2**20))})
    assert size_of_zeros(missing_state(STATE, [], model)) == 2**62


def test_state_is_memory_of_its_own():
    """State that was a row of a batch does not keep the batch."""
    batch = np.arange(1000, dtype=np.float32).reshape(10, 100)
    (kept,) = carry({"past": "present"}, {"present": Tensor("present", batch[3:4], FP32)})
    assert kept.name == "past"
    assert kept.array.base is None
    np.testing.assert_array_equal(kept.array, batch[3:4])


def test_strings_count():
    """Strings take what they are long, and more."""
    array = np.array([b"x" * 100, b""], dtype=object)
    assert size_of([Tensor("s", array, BYTES)]) > 100
