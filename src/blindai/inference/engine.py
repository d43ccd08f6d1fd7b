"""What an engine is: it loads a model file, and the model turns tensors into tensors.

Always true: a model checks its inputs itself, runs from several threads at once, and every
run can be stopped from outside: by a deadline or through its `RunHandle`.
"""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from blindai.errors import ConfigurationError, DeadlineExceeded, InferenceError, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from blindai.inference.tensors import Tensor, TensorSpec

_FOREVER: Final = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a model is to run.

    Attributes:
        threads: Threads that one run uses; 0: one for each core.
        shrink_above: Bytes of inputs from which on a run gives its memory back to the
            system when it ends, so that one large batch does not stay resident.
    """

    threads: int = 0
    shrink_above: int = 4 * 2**20

    def __post_init__(self) -> None:
        if self.threads < 0 or self.shrink_above < 0:
            msg = (
                "expected threads and shrink_above from 0 up, "
                f"came {self.threads} and {self.shrink_above}"
            )
            raise ConfigurationError(msg)


class Model(Protocol):
    """A model in memory."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes; all of it has to be given."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it returns, in its order."""
        ...

    @property
    def is_steady(self) -> bool:
        """Whether runs are known to take as long for all inputs of the same shapes."""
        ...

    def run(
        self,
        inputs: Sequence[Tensor],
        outputs: Sequence[str] | None = None,
        *,
        deadline: float | None = None,
        handle: RunHandle | None = None,
    ) -> list[Tensor]:
        """Run the model once. May be called from several threads at once.

        Args:
            inputs: All inputs, in any order.
            outputs: Names of the outputs that are wanted, in this order; none: all.
            deadline: When to give up, in seconds of `time.monotonic()`.
            handle: Stops this run from another thread; one handle for one run.

        Returns:
            The wanted outputs.

        Raises:
            InvalidInput: Inputs that do not fit, an unknown output, or inputs that the
                model refuses while it runs.
            DeadlineExceeded: The deadline passed.
            Overloaded: No memory for this run.
            InferenceError: The run was stopped, or failed for another reason.
        """
        ...

    def close(self) -> None:
        """Refuse further runs; those under way end as usual, then memory is freed."""
        ...


class Engine(Protocol):
    """Loads models of one file format."""

    @property
    def name(self) -> str:
        """What records and receipts call it, with its version."""
        ...

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load a model. Slow; to be called where nothing waits for it.

        Args:
            path: The file. Only its bytes matter: nothing beside it is read.
            options: How it is to run.

        Raises:
            InvalidModel: No model that this engine can serve.
            Overloaded: No memory for it.
        """
        ...


@dataclass(slots=True)
class RunTiming:
    """When a run happened; filled in by the scheduler if the run succeeds.

    Attributes:
        arrived: When its request did, in seconds of `time.monotonic()`.
        began: When it did; 0: it did not.
        run_ns: How long it took, in nanoseconds.
    """

    arrived: float = 0.0
    began: float = 0.0
    run_ns: int = 0


class RunHandle:
    """Stops one run from another thread.

    May be terminated before the run starts, which then never does, and after it has ended,
    which does nothing. Not to be used for a second run.

    Attributes:
        timing: To be filled in; `None`: nobody wants to know.
    """

    __slots__ = ("_expired", "_lock", "_stop", "_terminated", "_used", "timing")

    def __init__(self, timing: RunTiming | None = None) -> None:
        self.timing = timing
        self._lock = threading.Lock()
        self._stop: Callable[[], None] | None = None
        self._terminated = False
        self._expired = False
        self._used = False

    @property
    def terminated(self) -> bool:
        """Whether the run was told to stop."""
        return self._terminated

    def terminate(self, *, expired: bool = False) -> None:
        """Tell the run to stop; returns at once.

        Args:
            expired: A deadline is the reason, and `DeadlineExceeded` what the run raises.
        """
        with self._lock:
            if self._terminated:
                return
            self._terminated = True
            self._expired = expired
            if self._stop is not None:
                self._stop()

    def attach(self, stop: Callable[[], None]) -> None:
        """Say how to stop the run, which starts now; for engines.

        Args:
            stop: Called at most once, from another thread. Must return at once.

        Raises:
            ConfigurationError: The handle served a run before.
            DeadlineExceeded: It was terminated already by a deadline.
            InferenceError: It was terminated already.
        """
        with self._lock:
            if self._used:
                msg = "expected a new RunHandle for each run, came one that was used before"
                raise ConfigurationError(msg)
            self._used = True
            if not self._terminated:
                self._stop = stop
                return
        raise self.reason()

    def detach(self) -> None:
        """Say that the run has ended; for engines."""
        with self._lock:
            self._stop = None

    def reason(self) -> InferenceError:
        """Return the error of a run that was stopped; for engines."""
        if self._expired:
            return DeadlineExceeded("the run did not end before its deadline, and was stopped")
        return InferenceError("the run was stopped before its end")


def choose_outputs(
    specs: Sequence[TensorSpec], names: Sequence[str] | None
) -> Sequence[TensorSpec]:
    """Return the outputs that a caller wants, in the caller's order; for engines.

    Args:
        specs: All that the model has.
        names: Of those that are wanted; none: all.

    Raises:
        InvalidInput: A name that the model has not, or the same twice.
    """
    if not names:
        return specs
    known = {spec.name: spec for spec in specs}
    unknown = [name for name in names if name not in known]
    if unknown or len(set(names)) != len(names):
        came = ", ".join(repr(name[:100]) for name in unknown or names)
        msg = f"expected outputs of {', '.join(known)}, each at most once; came {came}"
        raise InvalidInput(msg)
    return [known[name] for name in names]


class DeadlineWatch:
    """Terminates runs whose deadline has passed.

    One thread, started by the first deadline, for any number of runs: it sleeps until the
    earliest deadline it knew when it fell asleep, so that starting and ending a run costs
    two dictionary operations and no wake-up.
    """

    def __init__(self) -> None:
        # Entered by itself where nobody is to be woken: a condition is slower to enter.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._deadlines: dict[RunHandle, float] = {}
        self._wakes_at = _FOREVER
        self._thread: threading.Thread | None = None

    def add(self, handle: RunHandle, deadline: float) -> None:
        """Terminate a run at `deadline`, in seconds of `time.monotonic()`."""
        with self._lock:
            self._deadlines[handle] = deadline
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._watch, name="blindai-deadlines", daemon=True
                )
                self._thread.start()
            elif deadline < self._wakes_at:
                self._changed.notify()

    def remove(self, handle: RunHandle) -> None:
        """Forget a run that has ended."""
        with self._lock:
            self._deadlines.pop(handle, None)

    def _watch(self) -> None:
        with self._lock:
            while True:
                now = time.monotonic()
                expired = [run for run, deadline in self._deadlines.items() if deadline <= now]
                for handle in expired:
                    del self._deadlines[handle]
                    handle.terminate(expired=True)
                self._wakes_at = min(self._deadlines.values(), default=_FOREVER)
                self._changed.wait(
                    None if self._wakes_at == _FOREVER else max(0.0, self._wakes_at - now)
                )


_WATCH: Final = DeadlineWatch()


def stoppable(
    stop: Callable[[], None], *, deadline: float | None, handle: RunHandle | None
) -> AbstractContextManager[RunHandle | None]:
    """Let a deadline and a handle stop the run inside the `with` block; for engines.

    The block's value is the handle that says whether the run was stopped; `None` if nothing
    can stop it.

    Args:
        stop: Makes the run end soon. Called at most once, from another thread.
        deadline: When to stop, in seconds of `time.monotonic()`.
        handle: Who else may stop it.

    Raises:
        DeadlineExceeded: On entering: the deadline had passed already.
        InferenceError: On entering: the handle was terminated already.
    """
    if handle is None and deadline is None:
        return _UNSTOPPABLE
    return _Stoppable(stop, deadline, handle or RunHandle())


class _Stoppable:
    """The block of `stoppable`. No generator: that would cost as much as a tiny model."""

    __slots__ = ("_deadline", "_handle", "_stop")

    def __init__(self, stop: Callable[[], None], deadline: float | None, handle: RunHandle) -> None:
        self._stop = stop
        self._deadline = deadline
        self._handle = handle

    def __enter__(self) -> RunHandle:
        if self._deadline is not None and self._deadline <= time.monotonic():
            self._handle.terminate(expired=True)
        self._handle.attach(self._stop)
        if self._deadline is not None:
            _WATCH.add(self._handle, self._deadline)
        return self._handle

    def __exit__(self, *_: object) -> None:
        if self._deadline is not None:
            _WATCH.remove(self._handle)
        self._handle.detach()


_UNSTOPPABLE: Final[AbstractContextManager[None]] = nullcontext()
