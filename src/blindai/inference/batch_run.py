"""One run for several requests, and what each is told of it.

Always true: a request gets its own rows or an error of its own, once; a library's message,
which may carry elements of somebody's inputs, never.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blindai.errors import BlindAIError, InferenceError, InvalidModel, Overloaded
from blindai.inference.batching import join_inputs, part_outputs
from blindai.inference.engine import RunHandle
from blindai.inference.queues import Batch, Request, Stage

if TYPE_CHECKING:
    from blindai.inference.engine import Model
    from blindai.inference.tensors import Tensor


def begin_batch(members: list[Request]) -> Batch:
    """Make a batch of requests, which run from now on."""
    batch = Batch(members, RunHandle(), len(members))
    for member in members:
        member.stage = Stage.RUNNING
        member.batch = batch
    return batch


def run_batch(model: Model, batch: Batch) -> list[list[Tensor]]:
    """Return the outputs for each member.

    Raises:
        InvalidModel: The outputs have not one row for each row of the inputs.
        InferenceError: From `Model.run`.
    """
    members = batch.members
    inputs = join_inputs([member.inputs for member in members])
    outputs = model.run(inputs, members[0].outputs, handle=batch.handle)
    if len(members) == 1:
        return [outputs]
    return part_outputs(outputs, [member.rows for member in members])


def split_batch(batch: Batch, error: Exception) -> list[list[Request]]:
    """Return the members to run again, by batch, after theirs failed.

    Halves, and so on until the guilty one is alone; single ones at once where the model does
    not keep rows apart.
    """
    rest = [member for member in batch.members if member.stage is Stage.RUNNING]
    size = 1 if isinstance(error, InvalidModel) else max(1, -(-len(rest) // 2))
    return [rest[start : start + size] for start in range(0, len(rest), size)]


def finish_request(request: Request, outputs: list[Tensor]) -> None:
    """Give a request's caller the result."""
    try:
        result = request.finish(outputs)
    except Exception as error:  # noqa: BLE001 - of the caller's own code, and the caller is told
        fail_request(request, error)
        return
    request.handle.detach()
    request.future.set_result(result)


def fail_request(request: Request, error: Exception) -> None:
    """Give a request's caller the error."""
    request.handle.detach()
    request.future.set_exception(error)


def reported(error: Exception) -> Exception:
    """Return what a caller may see of an error: nothing of a library's own message."""
    if isinstance(error, BlindAIError):
        return error
    if isinstance(error, MemoryError):
        return Overloaded("no memory for this run: send a smaller batch, or try later")
    return InferenceError(f"the run failed: {type(error).__name__}")
