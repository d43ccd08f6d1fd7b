"""What a loop feeds its model: tokens, masks, positions and state, from outputs."""

import ml_dtypes
import numpy as np
import pytest

from blindai.errors import InvalidInput
from blindai.inference.loops import Loop, Position, advance
from blindai.inference.tensors import DataType, Tensor

from .test_sequences import BYTES, FP32, INT64, record

INT8 = DataType.INT8
DECODER = {
    "ids": (INT64, ("batch", "new")),
    "mask": (INT64, ("batch", "all")),
    "place": (INT64, ("batch", "new")),
    "past": (FP32, ("batch", "seen", 4)),
    "words": (BYTES, ("n",)),
    "heat": (FP32, ("n",)),
}
SCORES = {
    "scores": (FP32, ("batch", "new", 9)),
    "present": (FP32, ("batch", "all", 4)),
    "text": (BYTES, ("n",)),
}


def tensor(name, array, datatype=None):
    array = np.asarray(array)
    return Tensor(name, array, datatype or DataType.from_numpy(array.dtype))


def step(loop, inputs, *outputs):
    """Return what follows on one step."""
    position = Position(tuple(inputs))
    return advance(loop, position, {output.name: output for output in outputs})


def greedy(scores, ids=((1, 2),), **more):
    """Return the tokens that scores give."""
    loop = Loop(max_steps=9, greedy={"ids": "scores"}, **more)
    position, (tokens,) = step(loop, [tensor("ids", np.array(ids))], tensor("scores", scores))
    assert tokens is position.inputs[0]
    return tokens.array


def test_a_decoder():
    """Tokens are the best scores of the last place; the rest follows on."""
    loop = Loop(
        max_steps=2,
        state={"past": "present"},
        greedy={"ids": "scores"},
        grow=("mask",),
        count=("place",),
    )
    scores = np.zeros((2, 3, 9), np.float32)
    scores[0, 2, 7] = scores[1, 2, 4] = scores[0, 1, 1] = 5
    fixed = tensor("heat", np.float32([1.5]))
    inputs = [
        tensor("ids", [[1, 2, 3], [4, 5, 6]]),
        tensor("mask", np.int8([[1, 1, 1], [0, 1, 1]])),
        tensor("place", [[0, 1, 2], [0, 0, 1]]),
        tensor("past", np.zeros((2, 0, 4), np.float32)),
        fixed,
    ]
    present = np.random.default_rng(0).random((2, 3, 4), np.float32)
    position, tokens = step(loop, inputs, tensor("scores", scores), tensor("present", present))
    found = {each.name: each.array for each in position.inputs}
    assert list(found) == ["ids", "mask", "place", "past", "heat"]
    np.testing.assert_array_equal(found["ids"], [[7], [4]])
    np.testing.assert_array_equal(found["mask"], [[1, 1, 1, 1], [0, 1, 1, 1]])
    assert found["mask"].dtype == np.int8
    np.testing.assert_array_equal(found["place"], [[3], [2]])
    np.testing.assert_array_equal(found["past"], present)
    assert position.inputs[4] is fixed
    assert [each.name for each in tokens] == ["ids"]
    assert (position.steps, position.why_over(loop)) == (1, None)


def test_shapes_of_scores_and_tokens():
    """Scores have one to three axes; tokens have the rank of their input."""
    row = np.float32([0, 3, 1])
    assert greedy(row).shape == (1, 1)
    assert greedy(row, ids=[5]).tolist() == [1]
    assert greedy(row, ids=5).tolist() == 1
    assert greedy(np.stack([row, row])).tolist() == [[1], [1]]
    assert greedy(row[None, None], ids=[[[5]]]).tolist() == [[[1]]]
    assert greedy(row.astype(ml_dtypes.bfloat16)).tolist() == [[1]]
    assert greedy(np.float32([1, np.inf, 2])).tolist() == [[1]]
    assert greedy(row, ids=np.int32([[1]])).dtype == np.int32


@pytest.mark.parametrize(
    ("scores", "ids", "what"),
    [
        (np.float32([1, np.nan]), [[1]], "NaN"),
        (np.array([np.nan], ml_dtypes.bfloat16), [[1]], "NaN"),
        (np.zeros((1, 0), np.float32), [[1]], "none of them empty"),
        (np.zeros((1, 1, 1, 2), np.float32), [[1]], "1 to 3 axes"),
        (np.float32(1), [[1]], "1 to 3 axes"),
        (np.arange(200, dtype=np.float32), np.int8([[1]]), "cannot hold"),
        (np.zeros((2, 3), np.float32), 5, "cannot hold"),
    ],
)
def test_scores_without_a_best(scores, ids, what):
    """Where no token follows, an error says so and shows no score."""
    with pytest.raises(InvalidInput, match=what):
        greedy(scores, ids)


def test_stopping():
    """A loop is over when each row has had a token that stops, or after its steps."""
    loop = Loop(max_steps=3, greedy={"ids": "scores"}, stop=frozenset({2, 7}))
    position = Position((tensor("ids", [[1], [1]]),))
    for tokens, why in (((2, 0), None), ((0, 1), None), ((3, 7), "stop")):
        scores = np.eye(9, dtype=np.float32)[list(tokens)]
        position, _ = advance(loop, position, {"scores": tensor("scores", scores)})
        assert position.why_over(loop) == why
    assert Position((), steps=3).why_over(loop) == "max_steps"


def test_what_cannot_follow():
    """An empty axis cannot grow, and the largest number is not counted beyond."""
    for loop in (Loop(max_steps=1, grow=("x",)), Loop(max_steps=1, count=("x",))):
        for array in (np.zeros((1, 0), np.int64), np.int64(1)):
            with pytest.raises(InvalidInput, match="last axis"):
                step(loop, [tensor("x", array)])
    with pytest.raises(InvalidInput, match="cannot count further"):
        step(Loop(max_steps=1, count=("x",)), [tensor("x", np.int8([127]))])


@pytest.mark.parametrize(
    ("loop", "what"),
    [
        (Loop(max_steps=1, state={"past": "scores"}), "never fits"),
        (Loop(max_steps=1, state={"past": "present"}, grow=("past",)), "once in"),
        (Loop(max_steps=1, greedy={"nope": "scores"}), "no input"),
        (Loop(max_steps=1, greedy={"heat": "scores"}), "input of integers"),
        (Loop(max_steps=1, greedy={"words": "scores"}), "input of integers"),
        (Loop(max_steps=1, greedy={"ids": "nope"}), "output of numbers"),
        (Loop(max_steps=1, greedy={"ids": "text"}), "output of numbers"),
        (Loop(max_steps=1, grow=("words",)), "input of integers"),
        (Loop(max_steps=1, count=("heat",)), "input of integers"),
        (Loop(max_steps=1, stop=frozenset({1})), "stop"),
    ],
)
def test_loops_that_do_not_fit(loop, what):
    """What a model has not, or cannot take, is refused before it runs."""
    with pytest.raises(InvalidInput, match=what):
        loop.check(record(DECODER, SCORES))


def test_a_loop_that_fits():
    """A float mask may grow, too."""
    Loop(max_steps=1, greedy={"ids": "scores"}, grow=("heat",), count=("place",)).check(
        record(DECODER, SCORES)
    )
