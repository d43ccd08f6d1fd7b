"""A model whose weights leave memory when others need the room, and come back when it runs.

Always true: a run has the weights from its beginning to its end, whatever rests meanwhile; who
runs a model that rests waits for it, and nobody else does. It comes back from where it lasts,
with the SHA-256 that it had, or the run fails.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from blindai.errors import InferenceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from blindai.inference.engine import Model, RunHandle
    from blindai.inference.tensors import Tensor, TensorSpec


class RestingModel:
    """A model that can rest; it is one itself, so that nobody who runs it has to know.

    Args:
        model: As it was loaded first.
        path: Of its file, which goes when it rests.
        wake: Loads it again, and its file; slow.
    """

    def __init__(self, model: Model, path: Path, wake: Callable[[], Model]) -> None:
        self.inputs: tuple[TensorSpec, ...] = model.inputs
        self.outputs: tuple[TensorSpec, ...] = model.outputs
        self._model: Model | None = model
        self._path: Path | None = path
        self._wake = wake
        self._closed = False
        self._used_at = time.monotonic()
        # Held while it wakes, rests, or must not rest.
        self._changing = threading.RLock()

    @property
    def is_steady(self) -> bool:
        """Never: a run may have to wait for the weights, which is for a thread to do."""
        return False

    @property
    def is_resting(self) -> bool:
        """Whether the next run has to wait for the weights."""
        return self._model is None

    @property
    def used_at(self) -> float:
        """When it last ran or woke, in seconds of `time.monotonic()`."""
        return self._used_at

    def run(
        self,
        inputs: Sequence[Tensor],
        outputs: Sequence[str] | None = None,
        *,
        deadline: float | None = None,
        handle: RunHandle | None = None,
    ) -> list[Tensor]:
        """Run it once, after it woke; see `blindai.inference.engine.Model.run`."""
        self._used_at = time.monotonic()
        # Looked at once: from here on the run has its own hold on the weights.
        model = self._model or self.wake()
        return model.run(inputs, outputs, deadline=deadline, handle=handle)

    def wake(self) -> Model:
        """Return the weights, from where they last if need be. Slow.

        Raises:
            Overloaded: There is no memory for it now.
            InferenceError: It is gone, or was closed.
            SealedDataError: What is sealed of it is not as it was.
        """
        with self._changing:
            if self._closed:
                msg = "the model was unloaded"
                raise InferenceError(msg)
            if self._model is None:
                self._model = self._wake()
            self._used_at = time.monotonic()
            return self._model

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Keep it, and its file, from resting until the end of the block.

        Raises:
            InferenceError: As `wake`.
        """
        with self._changing:
            self.wake()
            yield

    def rest(self) -> bool:
        """Let go of weights and file, unless somebody wakes it just now; runs under way end."""
        if not self._changing.acquire(blocking=False):
            return False
        try:
            if self._model is None:
                return False
            self._model = None
            if self._path is not None:
                self._path.unlink(missing_ok=True)
            return True
        finally:
            self._changing.release()

    def leave_file(self) -> None:
        """Leave the file alone from now on: it may be that of another model soon."""
        self._path = None

    def close(self) -> None:
        """Refuse further runs; those under way end as usual, then memory is freed."""
        self._closed = True
        self._model = None
