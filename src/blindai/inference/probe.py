"""Find out whether a model keeps the rows of a batch apart.

Always true: a model is batched only if random rows gave the same results alone and beside
others, among them rows a thousand times as large, rows of NaN, and of the largest integers of
a few that the model takes: of the tokens 0 and 1 all rows look alike. What one caller sends must
not show in what another gets: not in value, and not as a failure. Dynamically quantised
models, which take one scale for the whole batch, fail here, and so do means over the batch.

This is a sample, not a proof: a model that was made to mix rows for one magic token passes. Where
callers do not trust whoever made the model, its options must say `max_batch=1`.

No request data is used. A run here is bounded in time, like every other.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from blindai.errors import InferenceError, InvalidInput, InvalidModel
from blindai.inference.batching import has_batch_axis, join_inputs, part_outputs
from blindai.inference.tensors import DataType, Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from blindai.inference.engine import Model
    from blindai.inference.tensors import TensorSpec

# Sizes to try for dynamic axes that are no batch: text and features, small and usual images.
_SIZES: Final = (8, 32, 224)
# A rank for inputs of any rank.
_RANK: Final = 2
# Difference that is still the same result, of the largest element: engines choose other
# kernels for other sizes, and those add in another order.
_TOLERANCES: Final[Mapping[DataType, float]] = {
    DataType.FP64: 1e-9,
    DataType.FP32: 1e-4,
    DataType.FP16: 1e-2,
    DataType.BF16: 5e-2,
}
_LOUD: Final = 1e3
# Bounds of integers, the first that the model does not refuse is used.
_LOUD_INTEGERS: Final = (1000, 100, 10)
# In names of inputs whose integers say yes or no.
_FLAGS: Final = ("mask", "type")
_ROWS: Final = (1, 1, 2, 1, 1)
_LOUD_MEMBER: Final = 3


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a probe found.

    Attributes:
        batches: Whether the model keeps the rows of a batch apart.
        reason: Why not; "" if it does.
    """

    batches: bool
    reason: str = ""


def probe_model(model: Model, *, seconds: float = 2.0) -> ProbeResult:
    """Compare runs of a batch with runs of its members. Slow: to be called in a worker.

    Args:
        model: To look at.
        seconds: For all runs together. A model for which that is not enough gains nothing
            from batches anyway: they save what a run costs beside its arithmetic.
    """
    if not has_batch_axis(model):
        return ProbeResult(batches=False, reason="no dynamic first axis of all inputs and outputs")
    for spec in (*model.inputs, *model.outputs):
        if spec.datatype.is_float and spec.datatype not in _TOLERANCES:
            return ProbeResult(batches=False, reason=f"{spec.datatype} is too coarse to compare")
    run = partial(model.run, deadline=time.monotonic() + seconds)
    rng = np.random.default_rng(0)
    failure: InferenceError | None = None
    for size in _SIZES:
        members = [[_random(spec, rows, size, rng) for spec in model.inputs] for rows in _ROWS]
        try:
            alone = [run(member) for member in members[:_LOUD_MEMBER]]
        except InferenceError as error:
            failure = error
            continue
        reason = _compare(run, members, alone)
        return ProbeResult(batches=not reason, reason=reason)
    reason = type(failure).__name__
    return ProbeResult(batches=False, reason=f"random inputs fail: {reason}")


def random_inputs(model: Model, *, count: int, seconds: float) -> list[list[Tensor]] | None:
    """Return random inputs of one row that a model takes; `None`: none were found in time.

    Integers are as large as the model takes them, but in masks: 0 and 1 are two tokens of many.

    Args:
        model: To look at.
        count: How many.
        seconds: For all runs together.
    """
    rng = np.random.default_rng(0)
    run = partial(model.run, deadline=time.monotonic() + seconds)
    try:
        for size in _SIZES:
            draws = [[_random(spec, 1, size, rng) for spec in model.inputs] for _ in range(count)]
            with contextlib.suppress(InvalidInput):
                run(draws[0])
                return [_loud_integers(run, draw, rng, but=_FLAGS) for draw in draws]
    except InferenceError:
        return None
    return None


def _compare(
    run: Callable[[Sequence[Tensor]], list[Tensor]],
    members: list[list[Tensor]],
    alone: list[list[Tensor]],
) -> str:
    """Return why the members may not be batched; "" if they may."""
    quiet = members[:_LOUD_MEMBER]
    loud = [_scaled(tensor, _LOUD) for tensor in members[_LOUD_MEMBER]]
    broken = [_scaled(tensor, float("nan")) for tensor in members[_LOUD_MEMBER + 1]]
    rows = _ROWS[:_LOUD_MEMBER]
    try:
        for outputs, count in zip(alone, rows, strict=True):
            part_outputs(outputs, [count])
        together = part_outputs(run(join_inputs(quiet)), rows)
        reason = _difference(alone, together)
        if not reason:
            loud = _loud_integers(run, loud, np.random.default_rng(1))
            # Before and behind the others: nothing may come from either side.
            crowd = run(join_inputs([loud, *quiet, broken]))
            reason = _difference(alone, part_outputs(crowd, (1, *rows, 1))[1:-1])
    except InvalidModel as error:
        return str(error)
    except InferenceError as error:
        return f"a batch fails: {type(error).__name__}"
    return reason


def _loud_integers(
    run: Callable[[Sequence[Tensor]], list[Tensor]],
    member: list[Tensor],
    rng: np.random.Generator,
    *,
    but: Sequence[str] = (),
) -> list[Tensor]:
    """Return the member with larger integers where the model takes them, input by input."""
    for index, tensor in enumerate(member):
        if not tensor.datatype.is_integer or any(word in tensor.name.lower() for word in but):
            continue
        for bound in _LOUD_INTEGERS:
            high = min(bound, tensor.datatype.limits[1])
            larger = rng.integers(0, high, tensor.shape).astype(tensor.datatype.numpy)
            other = Tensor(tensor.name, larger, tensor.datatype)
            candidate = [*member[:index], other, *member[index + 1 :]]
            # Not DeadlineExceeded: then the batch itself has no time left, and says so.
            with contextlib.suppress(InvalidInput):
                run(candidate)
                member = candidate
                break
    return member


def _difference(alone: Sequence[Sequence[Tensor]], together: Sequence[Sequence[Tensor]]) -> str:
    for one, other in zip(chain(*alone), chain(*together), strict=True):
        if not same_result(one, other):
            return f"output {one.name!r} depends on the other rows of the batch"
    return ""


def same_result(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are the same within what their datatype allows."""
    if one.shape != other.shape or one.datatype is not other.datatype:
        return False
    if not one.datatype.is_float:
        return bool(np.array_equal(one.array, other.array))
    left, right = (np.asarray(tensor.array, dtype=np.float64) for tensor in (one, other))
    finite = np.isfinite(left)
    if not np.array_equal(finite, np.isfinite(right)):
        return False
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return False
    scale = float(np.abs(left[finite]).max(initial=0.0))
    difference = float(np.abs(left[finite] - right[finite]).max(initial=0.0))
    return difference <= _TOLERANCES[one.datatype] * scale


def _random(spec: TensorSpec, rows: int, size: int, rng: np.random.Generator) -> Tensor:
    shape = spec.shape if spec.shape is not None else (None,) * _RANK
    first = tuple(dim if isinstance(dim, int) else rows for dim in shape[:1])
    dims = (*first, *(dim if isinstance(dim, int) else size for dim in shape[1:]))
    array: np.ndarray[Any, np.dtype[Any]]
    if spec.datatype.is_float:
        array = rng.standard_normal(dims).astype(spec.datatype.numpy)
    else:
        # 0 and 1 are an index, a mask, a token and a flag alike.
        bits = rng.integers(0, 2, dims)
        if spec.datatype is DataType.BYTES:
            array = np.where(bits, b"1", b"0").astype(object)
        else:
            array = bits.astype(spec.datatype.numpy)
    return Tensor(spec.name, array, spec.datatype)


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    if not tensor.datatype.is_float:
        return tensor
    scaled = (tensor.array.astype(np.float64) * factor).astype(tensor.datatype.numpy)
    return Tensor(tensor.name, scaled, tensor.datatype)
