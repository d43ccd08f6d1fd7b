"""Several requests in one run: which may go together, how they are joined and parted again.

Always true: a batch is of one model, and of requests that agree in everything but the size of
the first axis, so that nothing is padded; a request gets back exactly its own rows.

A model can be batched if each of its inputs has a dynamic first axis, under one symbol if
under any, and so has each output. That the rows do not touch each other inside the model is
nothing that a graph says: `blindai.inference.probe` finds it out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from blindai.errors import InvalidModel
from blindai.inference.tensors import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blindai.inference.engine import Model
    from blindai.inference.tensors import TensorSpec

# What requests must have in common: wanted outputs, and the shape of each input's row.
BatchKey = tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]


def has_batch_axis(model: Model) -> bool:
    """Return whether the first axis of every input and output may be the batch."""
    if not model.inputs or not model.outputs:
        return False
    firsts = [_first_axis(spec) for spec in model.inputs]
    # `None` beside a symbol, or instead of it, says nothing: the probe will.
    symbols = {first for first in firsts if isinstance(first, str)}
    dynamic = not any(isinstance(first, int) for first in firsts) and len(symbols) <= 1
    return dynamic and not any(isinstance(_first_axis(spec), int) for spec in model.outputs)


def _first_axis(spec: TensorSpec) -> int | str | None:
    if spec.shape is None:
        return None
    # A scalar has no axis at all: as good as one of a fixed size.
    return spec.shape[0] if spec.shape else 0


def batch_key(
    inputs: Sequence[Tensor], outputs: Sequence[str], specs: Sequence[TensorSpec]
) -> tuple[BatchKey, int] | None:
    """Return what a request must share with others in its batch, and its own rows.

    Args:
        inputs: All inputs, that fit `specs`.
        outputs: The wanted outputs; none: all.
        specs: The model's inputs.

    Returns:
        `None` if the inputs have no first axis of one common size from 1 up.
    """
    by_name = {tensor.name: tensor.shape for tensor in inputs}
    shapes = [by_name[spec.name] for spec in specs]
    if not shapes or not all(shapes):
        return None
    rows = shapes[0][0]
    if rows < 1 or any(shape[0] != rows for shape in shapes):
        return None
    return (tuple(outputs), tuple(shape[1:] for shape in shapes)), rows


def join_inputs(members: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return the inputs of one run for all members.

    Args:
        members: The inputs of each; all with the same `BatchKey`, in any order of names.
    """
    if len(members) == 1:
        return list(members[0])
    by_name = [{tensor.name: tensor.array for tensor in inputs} for inputs in members]
    return [
        Tensor(
            tensor.name,
            np.concatenate([arrays[tensor.name] for arrays in by_name]),
            tensor.datatype,
        )
        for tensor in members[0]
    ]


def part_outputs(outputs: Sequence[Tensor], rows: Sequence[int]) -> list[list[Tensor]]:
    """Return each member's own rows of the outputs, without a copy.

    Args:
        outputs: Of the run for all members.
        rows: Of each member, in their order.

    Raises:
        InvalidModel: An output has not one row for each row of the inputs.
    """
    total = sum(rows)
    for tensor in outputs:
        if not tensor.shape or tensor.shape[0] != total:
            msg = f"{tensor.name}: expected {total} rows as the inputs have, came {tensor}"
            raise InvalidModel(msg)
    parts: list[list[Tensor]] = []
    start = 0
    for count in rows:
        end = start + count
        parts.append([Tensor(t.name, t.array[start:end], t.datatype) for t in outputs])
        start = end
    return parts
