"""Answers that are sent while they are made: a model called in a loop, a part for each step.

Always true: each step is a run of its own in the queue, so that a long answer holds up nobody; the
next step is not made before there is room for its part in the connection; what the loop carries
from step to step never leaves, is bounded, and is gone with the answer, as soon as the client is.
An answer is complete only if its last part says so. What goes wrong before the first part is a
status of HTTP; afterwards it is the last part.

The request is one of the Open Inference Protocol, with what feeds what in `parameters.loop`
(`blindai.inference.loops.Loop`), for example
`{"state": {"past": "present"}, "greedy": {"tokens": "logits"}, "stop": [2], "max_steps": 50}`.
The answer is `text/event-stream`, an inference response in JSON as the data of each event; or,
with `binary_data_output`, frames: bytes of JSON (4 bytes, little-endian), bytes of tensors (8
bytes), the JSON, the tensors. The last part is `{"final": true, "reason": …, "steps": …}` or
`{"error": …, "type": …}`.

Specification: WHATWG HTML §9.2 (server-sent events); Open Inference Protocol (KServe v2).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blindai.errors import (
    BlindAIError,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
)
from blindai.inference.engine import RunHandle
from blindai.inference.loops import MAX_STOPS, Loop, Position, advance
from blindai.inference.sequences import missing_state, size_of, size_of_zeros, zeros
from blindai.server.access import Scope
from blindai.server.app import Response
from blindai.server.open_inference import build_answer, open_envelope, read_call
from blindai.server.service import SMALL
from blindai.server.stepping import MAX_STATE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from blindai.inference.sequences import Held
    from blindai.inference.store import ModelRecord
    from blindai.inference.tensors import Tensor
    from blindai.server.access import Access, Principal
    from blindai.server.config import Limits
    from blindai.server.limits import ByteBudget
    from blindai.server.open_inference import Answer, InferenceCall
    from blindai.server.request import Request
    from blindai.server.service import Service
    from blindai.server.stepping import Caller

Parts = list[bytes | memoryview]

EVENTS: Final = b"text/event-stream"
FRAMES: Final = b"application/x-blindai-frames"
_JSON_LENGTH: Final = 4
_TENSORS_LENGTH: Final = 8
# Where there is no room in the queue for a step, the answer waits rather than ends.
_MAX_TRIES: Final = 8
_FIRST_WAIT: Final = 0.05
_MAX_TOKEN: Final = 2**63


class _LoopParameter(msgspec.Struct, forbid_unknown_fields=True):
    max_steps: int
    state: dict[str, str] = {}
    greedy: dict[str, str] = {}
    grow: list[str] = []
    count: list[str] = []
    stop: list[int] = []


class Streams:
    """The handler; see `blindai.server.attested.attested_app` for the arguments."""

    def __init__(
        self, service: Service, access: Access, limits: Limits, bodies: ByteBudget
    ) -> None:
        self._service = service
        self._access = access
        self._limits = limits
        self._bodies = bodies

    async def stream(self, request: Request) -> Response:
        """Run a model in a loop, and answer while it runs."""
        who = self._access.admit(Scope.RUN, request)
        record = self._service.get(request.name, who).record
        if request.http_version != "1.1":
            msg = "expected HTTP/1.1 for a streamed answer, came 1.0"
            raise InvalidInput(msg)
        sequences = self._service.stepping.sequences
        with contextlib.ExitStack() as stack:
            share = stack.enter_context(self._bodies.share())
            body = await request.body(limit=self._limits.max_body_bytes, share=share)
            call, loop = await _decode(body, request.json_length(), self._limits.max_stream_steps)
            loop.check(record)
            caller = request.caller()
            held = sequences.begin(caller.account, record, loop.state)
            stack.callback(sequences.end, held)
            missing = missing_state(loop.state, call.inputs, record)
            sequences.hold(held, size_of_zeros(missing) + size_of(call.inputs))
            call = replace(call, inputs=(*call.inputs, *zeros(missing)))
            if who.account is not None:
                # One run of their tenant's, however many steps it has.
                stack.enter_context(who.account.run())
                who = replace(who, account=None)
            stream = _Loop(self._service, self._limits, request.name, held, call, loop, caller, who)
            request.watch(stream.stop)
            stack.callback(request.watch, None)
            await stream.begin()
            stream.close = stack.pop_all().close
            return Response(200, content_type=stream.content_type, stream=stream)


class _Loop:
    """One answer: a loop, and the parts of the answer that it makes."""

    close: Callable[[], None]

    def __init__(
        self,
        service: Service,
        limits: Limits,
        name: str,
        held: Held,
        call: InferenceCall,
        loop: Loop,
        caller: Caller,
        who: Principal,
    ) -> None:
        self._who = who
        self._service = service
        self._limits = limits
        self._name = name
        self._held = held
        self._call = call
        self._loop = loop
        self._caller = caller
        self._shown = _shown(call, loop, held.record)
        needed = (*self._shown, *loop.state.values(), *loop.greedy.values())
        self._wanted = tuple(dict.fromkeys(name for name in needed if name not in loop.greedy))
        self._position = Position(call.inputs)
        self._ends = time.monotonic() + limits.max_stream_time
        self._handle = RunHandle()
        self._first: Parts | None = None
        self._is_gone = self._is_over = False
        self.content_type = FRAMES if call.binary_default else EVENTS

    def stop(self) -> None:
        """Take note that the client went away."""
        self._is_gone = True
        self._handle.terminate()

    async def begin(self) -> None:
        """Make the first step; what it raises is the answer."""
        self._first = await self._step()

    async def next(self) -> Parts:
        """Return the next part; nothing after the last."""
        first, self._first = self._first, None
        if first is not None:
            return first
        if self._is_over:
            return []
        reason = self._position.why_over(self._loop)
        if reason is None:
            try:
                return await self._patient_step()
            except ConnectionFailed:
                raise
            except BlindAIError as error:
                self._is_over = True
                return self._pack({"error": str(error), "type": type(error).__name__})
        self._is_over = True
        return self._pack({"final": True, "reason": reason, "steps": self._position.steps})

    async def _patient_step(self) -> Parts:
        wait = _FIRST_WAIT
        for _ in range(_MAX_TRIES):
            with contextlib.suppress(Overloaded):
                return await self._step()
            await asyncio.sleep(wait)
            wait *= 2
        return await self._step()

    async def _step(self) -> Parts:
        left = self._ends - time.monotonic()
        if left <= 0:
            msg = f"the answer took longer than {self._limits.max_stream_time:g} seconds"
            raise DeadlineExceeded(msg)
        self._handle = RunHandle()
        if self._is_gone:
            msg = "the client went away"
            raise ConnectionFailed(msg)
        timeout = left if self._call.timeout is None else min(left, self._call.timeout)
        call = replace(
            self._call, inputs=self._position.inputs, outputs=self._wanted, timeout=timeout
        )
        part, following = await self._service.infer(
            # By what it is: a name that is moved to other weights leads nowhere from here.
            self._held.record.key,
            lambda: call,
            self._encode,
            who=self._who,
            work=0,
            handle=self._handle,
            caller=lambda: self._caller,
        )
        self._service.stepping.sequences.hold(self._held, size_of(following.inputs))
        self._position = following
        return part

    def _encode(
        self, call: InferenceCall, record: ModelRecord, outputs: list[Tensor]
    ) -> tuple[Parts, Position]:
        """Return the part of a step, and the position after it; on the run's thread."""
        named = {tensor.name: tensor for tensor in outputs}
        following, tokens = advance(self._loop, self._position, named)
        named |= {tensor.name: tensor for tensor in tokens}
        answer = build_answer(call, self._name, record, [named[name] for name in self._shown])
        return self._frame(answer), following

    def _frame(self, answer: Answer) -> Parts:
        if self.content_type is EVENTS:
            return [b"data: ", *answer.parts, b"\n\n"]
        document, *tensors = answer.parts
        return _frame(document, tensors)

    def _pack(self, document: dict[str, Any]) -> Parts:
        encoded = msgspec.json.encode(document)
        if self.content_type is EVENTS:
            return [b"data: ", encoded, b"\n\n"]
        return _frame(encoded, [])


def _frame(document: bytes | memoryview, tensors: Sequence[bytes | memoryview]) -> Parts:
    size = sum(map(len, tensors))
    lengths = len(document).to_bytes(_JSON_LENGTH, "little")
    return [lengths + size.to_bytes(_TENSORS_LENGTH, "little"), document, *tensors]


def _shown(call: InferenceCall, loop: Loop, record: ModelRecord) -> tuple[str, ...]:
    """Return what the client sees of each step: names of outputs, or of inputs that get tokens."""
    if call.outputs:
        return call.outputs
    if loop.greedy:
        return tuple(loop.greedy)
    inside = set(loop.state.values())
    every = tuple(spec.name for spec in record.outputs)
    # State stays inside, unless it is all that there is.
    return tuple(name for name in every if name not in inside) or every


async def _decode(
    body: bytes | memoryview, json_length: int | None, max_steps: int
) -> tuple[InferenceCall, Loop]:
    def decode() -> tuple[InferenceCall, Loop]:
        envelope = open_envelope(body, json_length)
        loop = parse_loop(envelope.document.parameters.get("loop"), max_steps)
        return read_call(envelope), loop

    # Behind the JSON there may be strings, which are looked at one by one.
    call, loop = decode() if len(body) <= SMALL else await asyncio.to_thread(decode)
    if call.receipt is not None:
        msg = "parameters.receipt: a streamed answer has none, its state is not in the request"
        raise InvalidInput(msg)
    if call.sequence is not None:
        msg = "parameters.sequence_id: a streamed answer is of no sequence, its state is its own"
        raise InvalidInput(msg)
    if not call.binary_default and any(call.binary.values()):
        msg = "parameters.binary_data_output: expected true where an output is to be binary"
        raise InvalidInput(msg)
    return call, loop


def parse_loop(value: object, max_steps: int) -> Loop:
    """Return what feeds what.

    Args:
        value: Of the parameter `loop`.
        max_steps: As many as there may be.

    Raises:
        InvalidInput: Anything else than the fields of a `Loop`, within bounds.
    """
    try:
        found = msgspec.convert(value, type=_LoopParameter)
    except (msgspec.MsgspecError, RecursionError) as error:
        msg = f"parameters.loop: {error}"
        raise InvalidInput(msg) from None
    if not 1 <= found.max_steps <= max_steps:
        msg = f"parameters.loop.max_steps: expected 1 to {max_steps}, came {found.max_steps}"
        raise InvalidInput(msg)
    if not all(0 <= token < _MAX_TOKEN for token in found.stop):
        msg = "parameters.loop.stop: expected tokens from 0 up"
        raise InvalidInput(msg)
    fed = len(found.state) + len(found.greedy) + len(found.grow) + len(found.count)
    if fed > MAX_STATE or len(found.stop) > MAX_STOPS:
        msg = f"parameters.loop: expected at most {MAX_STATE} inputs and {MAX_STOPS} stops"
        raise InvalidInput(msg)
    return Loop(
        max_steps=found.max_steps,
        state=found.state,
        greedy=found.greedy,
        grow=tuple(found.grow),
        count=tuple(found.count),
        stop=frozenset(found.stop),
    )
