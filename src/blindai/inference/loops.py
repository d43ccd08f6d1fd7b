"""A model called again and again, its outputs feeding its inputs: decoders, WaveNets, cells.

Always true: `advance` is a function of what it gets, changes nothing and takes no model, so that
a loop here gives bit for bit what the same loop around the bare engine gives. Nothing is guessed:
an input that a loop does not mention is the same in each step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from blindai.errors import InvalidInput
from blindai.inference.sequences import carry, check_state
from blindai.inference.tensors import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blindai.inference.records import ModelRecord
    from blindai.inference.tensors import TensorSpec

MAX_STOPS: Final = 256
_MAX_SCORE_RANK: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """What feeds what.

    Attributes:
        state: Input → output that it takes the value of.
        greedy: Input → output of scores: it takes the position of the greatest one on the last
            axis, for the last place of the axis before where there are three.
        grow: Inputs that become longer by a one at the end of their last axis.
        count: Inputs that become one more than the last element on their last axis.
        max_steps: At the most.
        stop: Tokens: the loop is over when each row has had one of them.
    """

    max_steps: int
    state: Mapping[str, str] = field(default_factory=dict)
    greedy: Mapping[str, str] = field(default_factory=dict)
    grow: tuple[str, ...] = ()
    count: tuple[str, ...] = ()
    stop: frozenset[int] = frozenset()

    def check(self, record: ModelRecord) -> None:
        """Refuse what does not fit a model.

        Args:
            record: Of the model.

        Raises:
            InvalidInput: An input or output that it has not, that is fed twice, or of a type
                that cannot be fed so.
        """
        check_state(self.state, record)
        inputs = {spec.name: spec for spec in record.inputs}
        outputs = {spec.name: spec for spec in record.outputs}
        fed = [*self.state, *self.greedy, *self.grow, *self.count]
        if len(set(fed)) != len(fed):
            msg = "expected each input once in state, greedy, grow and count"
            raise InvalidInput(msg)
        for name in (*self.greedy, *self.grow, *self.count):
            spec = inputs.get(name)
            if spec is None or not _takes(spec, any_number=name in self.grow):
                what = "no input" if spec is None else f"{spec}"
                msg = f"{name[:100]}: expected an input of integers, came {what}"
                raise InvalidInput(msg)
        for source in self.greedy.values():
            if source not in outputs or not _is_number(outputs[source]):
                msg = f"greedy: expected an output of numbers, came {source[:100]!r}"
                raise InvalidInput(msg)
        if self.stop and not self.greedy:
            msg = "stop: expected an input in greedy whose tokens can end the loop"
            raise InvalidInput(msg)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a loop is.

    Attributes:
        inputs: Of the next step.
        steps: That were made.
        finished: One flag for each row: whether it had a token that stops; `None`: no step yet,
            or there are no tokens.
    """

    inputs: tuple[Tensor, ...]
    steps: int = 0
    finished: np.ndarray[Any, np.dtype[Any]] | None = None

    def why_over(self, loop: Loop) -> str | None:
        """Return why there is no next step; `None`: there is one."""
        if self.finished is not None and bool(self.finished.all()):
            return "stop"
        return "max_steps" if self.steps >= loop.max_steps else None


def advance(
    loop: Loop, position: Position, outputs: Mapping[str, Tensor]
) -> tuple[Position, list[Tensor]]:
    """Return the next position, and the tokens that were chosen.

    Args:
        loop: What feeds what.
        position: Whose inputs gave the outputs.
        outputs: All that the loop needs, by name.

    Returns:
        The position, and one tensor for each input in `Loop.greedy`, under its name.

    Raises:
        InvalidInput: Scores of which none is the greatest, a token that its input cannot hold, or
            an input that cannot be fed as the loop says.
    """
    fed = {tensor.name: tensor for tensor in carry(loop.state, outputs)}
    tokens = []
    finished = position.finished
    given = {tensor.name: tensor for tensor in position.inputs}
    for name, source in loop.greedy.items():
        best = _choose(outputs[source])
        fed[name] = _as_input(best, given[name])
        tokens.append(fed[name])
        if loop.stop:
            stopped = np.isin(best, list(loop.stop))
            finished = stopped if finished is None else finished | stopped
    for name in (*loop.grow, *loop.count):
        fed[name] = _next(given[name], grows=name in loop.grow)
    inputs = tuple(fed.get(tensor.name, tensor) for tensor in position.inputs)
    return Position(inputs, position.steps + 1, finished), tokens


def _takes(spec: TensorSpec, *, any_number: bool) -> bool:
    if any_number and _is_number(spec):
        return True
    return spec.datatype.is_integer and not spec.datatype.is_packed


def _is_number(spec: TensorSpec) -> bool:
    return (spec.datatype.is_integer or spec.datatype.is_float) and not spec.datatype.is_packed


def _choose(scores: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the positions of the greatest scores, one for each row."""
    array = scores.array
    if not 1 <= array.ndim <= _MAX_SCORE_RANK or not array.size:
        msg = (
            f"{scores.name}: expected scores on 1 to {_MAX_SCORE_RANK} axes, none of them empty, "
            f"came {scores}"
        )
        raise InvalidInput(msg)
    if array.ndim == _MAX_SCORE_RANK:
        array = array[:, -1, :]
    if not scores.datatype.is_native:
        array = array.astype(np.float32)
    if scores.datatype.is_float and bool(np.isnan(array).any()):
        msg = f"{scores.name}: has NaN, so no score is the greatest"
        raise InvalidInput(msg)
    return np.atleast_1d(array.argmax(axis=-1))


def _as_input(best: np.ndarray[Any, np.dtype[Any]], before: Tensor) -> Tensor:
    rank = len(before.shape)
    largest = before.datatype.limits[1]
    if int(best.max()) > largest or (rank == 0 and best.size != 1):
        msg = f"{before.name}: {before} cannot hold the tokens of {best.size} rows"
        raise InvalidInput(msg)
    shape = (best.size, *(1,) * (rank - 1)) if rank else ()
    return Tensor(before.name, best.reshape(shape).astype(before.datatype.numpy), before.datatype)


def _next(before: Tensor, *, grows: bool) -> Tensor:
    array = before.array
    if not array.ndim or not array.shape[-1]:
        msg = f"{before.name}: expected a last axis with an element on it, came {before}"
        raise InvalidInput(msg)
    last = array[..., -1:]
    if grows:
        array = np.concatenate([array, np.ones_like(last)], axis=-1)
        return Tensor(before.name, array, before.datatype)
    if int(last.max()) >= before.datatype.limits[1]:
        msg = f"{before.name}: {before.datatype} cannot count further"
        raise InvalidInput(msg)
    return Tensor(before.name, last + np.ones_like(last), before.datatype)
