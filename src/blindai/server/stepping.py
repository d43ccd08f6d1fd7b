"""Steps of a sequence: one request each, with state that stays inside between them.

Always true: a step is a run like any other, with its place in the queue, its deadline and its
count; state is taken from the answer where the answer is made, on the run's thread. A sequence is
of the caller who began it. An identifier that nobody can guess, 32 or more hexadecimal digits,
opens it from any connection, with the token or certificate that it was begun with; any other is a
name within its connection, so that the numbers of Triton's clients harm nobody.

Specification: Triton's extension of the Open Inference Protocol for sequences: `sequence_id`,
`sequence_start`, `sequence_end`. `sequence_state` (which input takes which output, as an object or
as JSON in a string) and `sequence_step` (from 0, so that a step sent twice is not made twice) are
ours. A last step without inputs ends a sequence and runs nothing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from blindai.errors import InvalidInput
from blindai.inference.sequences import (
    SequenceLimits,
    Sequences,
    Step,
    carry,
    missing_state,
    size_of_zeros,
    zeros,
)

if TYPE_CHECKING:
    from blindai.inference.records import LoadedModel, ModelRecord
    from blindai.inference.sequences import Held
    from blindai.inference.tensors import Tensor
    from blindai.server.config import Limits
    from blindai.server.service import Call

AnswerT = TypeVar("AnswerT")
CallT = TypeVar("CallT", bound="Call")

_SECRET: Final = re.compile("[0-9a-f]{32,128}")
_MAX_ID: Final = 128
_MAX_NUMBER: Final = 2**64 - 1
MAX_STATE: Final = 1024
_STATE: Final = msgspec.json.Decoder(dict[str, str])


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as far as that is known.

    Attributes:
        token: SHA-256 of what they presented, a token or a certificate; empty: nothing.
        address: Where they, or a proxy on the way, connect from.
        connection: That they ask on.
    """

    token: bytes
    address: str
    connection: object = field(repr=False)

    @property
    def account(self) -> Hashable:
        """What their sequences are counted by."""
        return self.token or self.address

    def key(self, identifier: str) -> Hashable:
        """Return what a sequence is found by; see the module."""
        if _SECRET.fullmatch(identifier):
            return self.token, identifier
        return self.connection, identifier


@dataclass(frozen=True, slots=True)
class FilledCall:
    """A step with its state: what the model runs on."""

    inputs: Sequence[Tensor]
    outputs: Sequence[str]
    timeout: float | None
    priority: int
    sequence: None = None


# Puts a call into the queue: with its model, and what makes the answer of its outputs.
Submit = Callable[
    ["LoadedModel", FilledCall, "Callable[[Any, ModelRecord, list[Tensor]], Any]"], Future[Any]
]


def parse_step(parameters: Mapping[str, Any]) -> Step | None:
    """Return what a request's parameters say of a sequence; `None`: it is of none.

    Raises:
        InvalidInput: If they cannot be understood.
    """
    identifier = parameters.get("sequence_id", 0)
    start = _flag(parameters, "sequence_start")
    end = _flag(parameters, "sequence_end")
    if identifier in (0, "") and type(identifier) is not bool:
        if start or end:
            msg = "parameters.sequence_id: expected one with sequence_start or sequence_end"
            raise InvalidInput(msg)
        return None
    is_number = type(identifier) is int and 0 < identifier <= _MAX_NUMBER
    if not is_number and not (isinstance(identifier, str) and len(identifier) <= _MAX_ID):
        msg = f"parameters.sequence_id: expected a number or at most {_MAX_ID} characters"
        raise InvalidInput(msg)
    number = parameters.get("sequence_step")
    if number is not None and (type(number) is not int or not 0 <= number <= _MAX_NUMBER):
        msg = "parameters.sequence_step: expected a whole number from 0 up"
        raise InvalidInput(msg)
    state = parse_state(parameters.get("sequence_state", {}), "parameters.sequence_state")
    if start != bool(state):
        msg = (
            "parameters.sequence_state: expected with sequence_start, and only there: which input "
            "takes the value of which output in the next step"
        )
        raise InvalidInput(msg)
    if start and number:
        msg = f"expected step 0 with sequence_start, came step {number}"
        raise InvalidInput(msg)
    return Step(id=str(identifier), is_start=start, is_end=end, state=state, number=number)


def parse_state(value: object, name: str) -> dict[str, str]:
    """Return which input takes which output.

    Args:
        value: An object of strings, or its JSON in a string.
        name: Of the parameter.

    Raises:
        InvalidInput: Neither, or of more entries than a model has.
    """
    try:
        state = (
            _STATE.decode(value)
            if isinstance(value, str)
            else msgspec.convert(value, type=dict[str, str])
        )
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        state = None
    if state is None or len(state) > MAX_STATE:
        msg = f"{name}: expected an object of at most {MAX_STATE} entries, input: output"
        raise InvalidInput(msg)
    return state


def _flag(parameters: Mapping[str, Any], name: str) -> bool:
    flag = parameters.get(name, False)
    if type(flag) is not bool:
        msg = f"parameters.{name}: expected true or false"
        raise InvalidInput(msg)
    return flag


class Stepping:
    """The sequences of a server, for one event loop.

    Args:
        limits: Of the server.

    Attributes:
        sequences: What is held.
    """

    def __init__(self, limits: Limits) -> None:
        self.sequences = Sequences(
            SequenceLimits(
                count=limits.max_sequences,
                per_caller=limits.max_sequences_per_caller,
                bytes_each=limits.max_sequence_bytes,
                bytes_all=limits.max_state_bytes,
                idle=limits.sequence_timeout,
            )
        )
        self._timer: asyncio.TimerHandle | None = None

    async def step(
        self,
        caller: Caller,
        step: Step,
        model: LoadedModel,
        call: CallT,
        encode: Callable[[CallT, ModelRecord, list[Tensor]], AnswerT],
        submit: Submit,
    ) -> AnswerT:
        """Make one step.

        Args:
            caller: Who asks.
            step: What the call says of its sequence.
            model: That is to run.
            call: As it came, without the state.
            encode: Makes the answer of the call and its outputs; runs on the run's thread.
            submit: Puts a call into the queue.

        Raises:
            InvalidInput: No such sequence, or inputs that do not fit.
            LimitExceeded: The state is larger than a sequence may hold.
            Overloaded: No room, in the queue or for the state.
            InferenceError: As for any run; the state is then what it was.
        """
        sequences = self.sequences
        key = caller.key(step.id)
        if step.is_end and not step.is_start and not call.inputs:
            sequences.end_key(key)
            return encode(call, model.record, [])
        if step.is_start:
            held = sequences.begin(caller.account, model.record, step.state, key)
        else:
            held = sequences.find(key, model.record, step.number)
        try:
            shown, wanted = _outputs(held, call.outputs, is_end=step.is_end)
            filled = FilledCall(self._fill(held, call.inputs), wanted, call.timeout, call.priority)

            def finish(
                _: FilledCall, record: ModelRecord, outputs: list[Tensor]
            ) -> tuple[AnswerT, list[Tensor]]:
                answer = encode(call, record, outputs[: len(shown)])
                state = {} if step.is_end else held.state
                return answer, carry(state, {tensor.name: tensor for tensor in outputs})

            run = submit(model, filled, finish)
            answer: AnswerT
            answer, kept = run.result() if run.done() else await asyncio.wrap_future(run)
            sequences.keep(held, kept)
            if step.is_end:
                sequences.end(held)
        finally:
            sequences.rest(held)
            self._watch()
        return answer

    def close(self) -> None:
        """Let all state go that a later request could ask for."""
        self.sequences.end_keyed()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fill(self, held: Held, given: Sequence[Tensor]) -> list[Tensor]:
        """Return all inputs of a step."""
        if held.steps:
            for tensor in given:
                if tensor.name in held.state:
                    msg = f"{tensor.name}: expected no state after the first step, it is inside"
                    raise InvalidInput(msg)
            return [*given, *held.kept]
        missing = missing_state(held.state, given, held.record)
        # Before there is memory for it: a few bytes may ask for much.
        self.sequences.hold(held, size_of_zeros(missing))
        return [*given, *zeros(missing)]

    def _watch(self) -> None:
        """Look after what nobody goes on with, for as long as there is anything."""
        if self._timer is None:
            again = self.sequences.sweep()
            if again is not None:
                self._timer = asyncio.get_running_loop().call_later(again, self._look)

    def _look(self) -> None:
        self._timer = None
        self._watch()


def _outputs(
    held: Held, named: Sequence[str], *, is_end: bool
) -> tuple[Sequence[str], Sequence[str]]:
    """Return the outputs that the caller gets, and those that the model has to give."""
    inside = dict.fromkeys(held.state.values())
    every = [spec.name for spec in held.record.outputs]
    # State stays inside, unless it is all that there is.
    shown = named or [name for name in every if name not in inside] or every
    return shown, [*shown, *(() if is_end else (name for name in inside if name not in shown))]
