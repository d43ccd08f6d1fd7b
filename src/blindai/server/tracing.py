"""Traces: how long the parts of one request took, for whoever the operator sends them to.

Always true: nothing is traced unless the operator named an endpoint; of a request there is how
long it was read, waited, ran and was written, how it ended, and the trace that it says to
belong to; the name of a model only where it is public. Who asks to be traced decides that for
their own requests; of the others a share is.

Specification: W3C Trace Context, §3.2 (traceparent). Its tracestate is not looked at.
"""

from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit

from blindai.errors import BlindAIError, ConfigurationError
from blindai.inference.engine import RunTiming

if TYPE_CHECKING:
    from collections.abc import Callable

_TRACEPARENT: Final = re.compile(
    rb"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[ -~]*)?"
)
_MAX_TRACEPARENT: Final = 256
_SAMPLED: Final = 1
_PATH: Final = "/v1/traces"
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Parent:
    """The span that a request belongs to.

    Attributes:
        trace_id: Of the trace; not 0.
        span_id: Of the span; not 0.
        is_sampled: Whether whoever began the trace keeps it.
    """

    trace_id: int
    span_id: int
    is_sampled: bool


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a request's life, in nanoseconds since 1970.

    Attributes:
        name: "read", "queue", "run" or "write".
        began: When.
        ended: When.
    """

    name: str
    began: int
    ended: int


@dataclass(frozen=True, slots=True)
class FinishedTrace:
    """One request, after its end.

    Attributes:
        protocol: "rest" or "grpc".
        parent: It belongs to; `None`: to none.
        began: When its head had come, in nanoseconds since 1970.
        ended: When its answer was on its way.
        phases: That it went through.
        model: Name of the model, if it is public.
        error: Class of the error that it ended with.
    """

    protocol: str
    parent: Parent | None
    began: int
    ended: int
    phases: tuple[Phase, ...]
    model: str | None
    error: str | None


def parse_traceparent(value: bytes | None) -> Parent | None:
    """Read a traceparent header; `None`: there is none that can be understood.

    As the specification has it, a header that is wrong begins a new trace and is no error.
    """
    if value is None or len(value) > _MAX_TRACEPARENT:
        return None
    match = _TRACEPARENT.fullmatch(value)
    if match is None or (match[1] == b"00" and match[5] is not None):
        return None
    trace_id, span_id = int(match[2], 16), int(match[3], 16)
    if not trace_id or not span_id:
        return None
    return Parent(trace_id, span_id, bool(int(match[4], 16) & _SAMPLED))


def traces_address(endpoint: str) -> str:
    """Return where traces are sent to.

    Args:
        endpoint: http or https; without a path, the usual one is added.

    Raises:
        ConfigurationError: An address that is none, or with a password in it.
    """
    parts = _split(endpoint)
    return endpoint if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}{_PATH}"


def port_of(endpoint: str) -> int:
    """Return the port of an address.

    Raises:
        ConfigurationError: As `traces_address`.
    """
    parts = _split(endpoint)
    return parts.port or _PORTS[parts.scheme]


def _split(endpoint: str) -> SplitResult:
    parts = urlsplit(endpoint)
    try:
        is_one = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        is_one = False
    if not is_one or parts.username is not None or parts.query or parts.fragment:
        msg = "otlp_endpoint: expected http://HOST:PORT or https://HOST:PORT, no user or query"
        raise ConfigurationError(msg)
    return parts


class Trace:
    """One request while it lives; for one event loop. Made by `Tracing.begin`.

    Attributes:
        model: Name of the model, to be set if it is public.
        timing: For `RunHandle.timing`: what the scheduler says of the run.
    """

    __slots__ = ("_began", "_is_ended", "_offset", "_parent", "_phases", "_protocol", "_sink",
                 "model", "timing")  # fmt: skip

    def __init__(
        self, sink: Callable[[FinishedTrace], None], protocol: str, parent: Parent | None
    ) -> None:
        self.model: str | None = None
        self.timing = RunTiming()
        self._sink = sink
        self._protocol = protocol
        self._parent = parent
        self._phases: list[Phase] = []
        self._began = time.time_ns()
        # Of what `add` is told to times since 1970.
        self._offset = self._began - time.perf_counter_ns()
        self._is_ended = False

    def add(self, phase: str, began: int, ended: int) -> None:
        """Add a part, in nanoseconds of `time.perf_counter_ns()`."""
        began, ended = began + self._offset, ended + self._offset
        self._began = min(self._began, began)
        self._phases.append(Phase(phase, began, ended))

    def end(self, error: BaseException | None = None) -> None:
        """Hand the trace over; does nothing the second time.

        Args:
            error: That the request ended with. Only the class of one of ours is told.
        """
        if self._is_ended:
            return
        self._is_ended = True
        now = time.time_ns()
        timing = self.timing
        if timing.began:
            # As `time.monotonic()` has it.
            offset = now - time.monotonic_ns()
            arrived, began = (int(each * 1e9) + offset for each in (timing.arrived, timing.began))
            self._phases.append(Phase("queue", arrived, began))
            self._phases.append(Phase("run", began, began + timing.run_ns))
        name = None
        if error is not None:
            name = type(error).__name__ if isinstance(error, BlindAIError) else "error"
        self._phases.sort(key=lambda phase: phase.began)
        phases = tuple(self._phases)
        self._sink(
            FinishedTrace(self._protocol, self._parent, self._began, now, phases, self.model, name)
        )


class Tracing:
    """Decides which requests are traced.

    Args:
        sink: Is handed each trace that has ended; must return at once.
        ratio: Share of the requests without a traceparent that is traced.
        chance: Returns a number from 0 up to 1.
    """

    __slots__ = ("_chance", "_ratio", "_sink")

    def __init__(
        self,
        sink: Callable[[FinishedTrace], None],
        ratio: float,
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._sink = sink
        self._ratio = ratio
        self._chance = chance

    def begin(self, traceparent: bytes | None, protocol: str) -> Trace | None:
        """Begin to trace a request; `None`: it is not traced.

        Args:
            traceparent: As the request has it.
            protocol: "rest" or "grpc".
        """
        parent = parse_traceparent(traceparent)
        if not (self._chance() < self._ratio if parent is None else parent.is_sampled):
            return None
        return Trace(self._sink, protocol, parent)
