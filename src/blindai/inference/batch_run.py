"""One run for several requests, and what each is told of it.

Always true: a request gets its own rows or an error of its own, once; a library's message,
which may carry elements of somebody's inputs, never.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from blindai.errors import BlindAIError, InferenceError, InvalidModel, Overloaded
from blindai.inference.batching import join_inputs, part_outputs
from blindai.inference.engine import RunHandle
from blindai.inference.queues import Batch, Request, Stage
from blindai.inference.served import RunTimes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blindai.inference.engine import Model
    from blindai.inference.tensors import Tensor


def begin_batch(members: list[Request]) -> Batch:
    """Make a batch of requests, which run from now on."""
    batch = Batch(members, RunHandle(), len(members))
    for member in members:
        member.stage = Stage.RUNNING
        member.batch = batch
    return batch


def run_batch(
    model: Model, batch: Batch, *, deadline: float | None = None
) -> tuple[list[list[Tensor]], RunTimes]:
    """Return the outputs for each member, and how long what took.

    Args:
        model: To run.
        batch: Its inputs.
        deadline: When to stop the run, in seconds of `time.monotonic()`.

    Raises:
        InvalidModel: The outputs have not one row for each row of the inputs.
        InferenceError: From `Model.run`.
    """
    members = batch.members
    began = time.perf_counter_ns()
    inputs = join_inputs([member.inputs for member in members])
    joined = time.perf_counter_ns()
    outputs = model.run(inputs, members[0].outputs, deadline=deadline, handle=batch.handle)
    ran = time.perf_counter_ns()
    parts = [outputs]
    if len(members) > 1:
        parts = part_outputs(outputs, [member.rows for member in members])
    return parts, RunTimes(joined - began, ran - joined, time.perf_counter_ns() - ran)


def split_batch(batch: Batch, error: Exception) -> list[list[Request]]:
    """Return the members to run again, by batch, after theirs failed.

    Halves, and so on until the guilty one is alone; single ones at once where the model does
    not keep rows apart.
    """
    rest = [member for member in batch.members if member.stage is Stage.RUNNING]
    size = 1 if isinstance(error, InvalidModel) else max(1, -(-len(rest) // 2))
    return [rest[start : start + size] for start in range(0, len(rest), size)]


def finish_batch(
    batch: Batch, wanted: Sequence[tuple[Request, list[Tensor]]], *, began: float, times: RunTimes
) -> None:
    """Give the callers their results.

    Args:
        batch: That has run.
        wanted: The members that nobody left, with their outputs.
        began: When the run did, in seconds of `time.monotonic()`.
        times: Of the run.
    """
    start = time.perf_counter_ns()
    answers: list[tuple[Request, Any]] = []
    for request, outputs in wanted:
        try:
            answers.append((request, request.finish(outputs)))
        except Exception as error:  # noqa: BLE001 - of the caller's own code, and the caller is told
            fail_request(request, error)
    times.compute_output += time.perf_counter_ns() - start
    served = batch.members[0].ledger.served
    served.add_run(batch.rows, [request for request, _ in answers], began=began, times=times)
    for request, answer in answers:
        timing = request.handle.timing
        if timing is not None:
            timing.arrived, timing.began = request.arrived, began
            timing.run_ns = times.compute_input + times.compute_infer
        request.handle.detach()
        request.future.set_result(answer)


def fail_request(request: Request, error: Exception) -> None:
    """Give a request's caller the error."""
    request.handle.detach()
    request.ledger.served.add_failure(request)
    request.future.set_exception(error)


def reported(error: Exception) -> Exception:
    """Return what a caller may see of an error: nothing of a library's own message."""
    if isinstance(error, BlindAIError):
        return error
    if isinstance(error, MemoryError):
        return Overloaded("no memory for this run: send a smaller batch, or try later")
    return InferenceError(f"the run failed: {type(error).__name__}")
