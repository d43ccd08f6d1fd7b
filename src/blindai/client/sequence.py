"""Sequences: steps of a model whose state stays inside the server between them.

Always true: a step is never made twice: it says its number, and the server refuses any other. A
step that fails leaves the state as it was, so it can be made again. The state is for the server's
keys of that time: after a change of keys there is no such sequence any more.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from blindai.errors import ConnectionFailed, InferenceError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from collections.abc import Sequence as Names

    from blindai.client.calls import Call, Calls
    from blindai.client.results import Result
    from blindai.client.streaming import Track

__all__ = ["AsyncSequence", "Sequence"]

T = TypeVar("T")


class _Drive(Protocol):
    def __call__(self, verb: Callable[[], Call[T]]) -> T: ...


class _AsyncDrive(Protocol):
    def __call__(self, verb: Callable[[], Call[T]]) -> Awaitable[T]: ...


class Sequence:
    """Steps of one model; `blindai.Client.sequence` makes one. For one thread at a time.

    Args:
        name: Of the model.
        track: What the state is.
        calls: The client's verbs.
        drive: Sends what a verb asks.
    """

    def __init__(self, name: str, track: Track, calls: Calls, drive: _Drive) -> None:
        self._name = name
        self._track = track
        self._calls = calls
        self._drive = drive

    @property
    def steps(self) -> int:
        """How many were made."""
        return self._track.steps

    def step(
        self,
        inputs: object,
        *,
        outputs: Names[str] | None = None,
        timeout: float | None = None,
    ) -> Result:
        """Make one step.

        Args:
            inputs: As in `Client.run_model`, without the state, which is inside. At the first step
                the state may be given; what is not begins as zeros, in the model's own shape: a
                named dimension as large as in the inputs, one that remains open 0.
            outputs: Names of the outputs to return; by default those that are no state, or all
                if there are no others.
            timeout: Seconds after which the server stops the step.

        Raises:
            InvalidInput: If the inputs do not fit, or the server has no such sequence any more:
                its time was over, its keys or the model were replaced, or a step whose answer
                never came was made after all.
            LimitExceeded: If the state became larger than the server keeps.
            InferenceError: As for any run; the step can be made again.
            ConnectionFailed: If the server cannot be reached.
        """
        return self._drive(
            lambda: self._calls.step(
                self._name, self._track, inputs, outputs=outputs, timeout=timeout
            )
        )

    def close(self) -> None:
        """Let the server forget the state; it does so by itself after some time."""
        if not self._track.is_over:
            self._track.is_over = True
            with contextlib.suppress(InferenceError, ConnectionFailed):
                self._drive(lambda: self._calls.end_sequence(self._name, self._track))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Sequence of {self._name} after {self.steps} steps>"


class AsyncSequence:
    """Steps of one model; `blindai.AsyncClient.sequence` makes one. See `Sequence`.

    Args:
        name: Of the model.
        track: What the state is.
        calls: The client's verbs.
        drive: Sends what a verb asks.
    """

    def __init__(self, name: str, track: Track, calls: Calls, drive: _AsyncDrive) -> None:
        self._name = name
        self._track = track
        self._calls = calls
        self._drive = drive

    @property
    def steps(self) -> int:
        """How many were made."""
        return self._track.steps

    async def step(
        self,
        inputs: object,
        *,
        outputs: Names[str] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the server's deadline, not the loop's
    ) -> Result:
        """Make one step; see `Sequence.step` for arguments and errors."""
        return await self._drive(
            lambda: self._calls.step(
                self._name, self._track, inputs, outputs=outputs, timeout=timeout
            )
        )

    async def close(self) -> None:
        """Let the server forget the state; it does so by itself after some time."""
        if not self._track.is_over:
            self._track.is_over = True
            with contextlib.suppress(InferenceError, ConnectionFailed):
                await self._drive(lambda: self._calls.end_sequence(self._name, self._track))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncSequence of {self._name} after {self.steps} steps>"
