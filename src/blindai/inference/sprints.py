"""Which runs are so short that a hop to a worker and back would cost more than they do.

Such a run may go on the thread that asks for it, which waits meanwhile: an event loop, with all
its connections. So this has to be earned, and is lost again:

- The model's graph says that the time of a run does not depend on data
  (`blindai.inference.steadiness`).
- Runs for inputs of exactly these shapes were measured on workers; the last ones took less than
  `QUICK`. Inputs and outputs are small, so what comes before and after a run is short too.
- Whatever a run takes beyond what it promised is paid from an account that fills by
  `_SHARE` of the time, up to `_SAVINGS`. While it is overdrawn, runs go to the workers.
- Both are the processor time of the thread that waits: that another process had the processor
  meanwhile is not the model's doing.
- A run that has not ended after `LONGEST` is stopped, and its model never sprints again.

Not for several threads at once: the scheduler's lock is held.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blindai.inference.batching import BatchKey
    from blindai.inference.datatype import DataType
    from blindai.inference.queues import Request
    from blindai.inference.tensors import Tensor

# Wanted outputs, and of each input name, datatype and shape.
Signature = tuple[tuple[str, ...], tuple[tuple[str, "DataType", tuple[int, ...]], ...]]

# Seconds of processor time of a run and its answer up to which a hop is not worth it: the hop takes
# about as much (measured: 170 µs on a machine of which a tiny run took 60).
QUICK: Final = 200e-6
# Seconds after which a run is stopped: nobody notices one such pause.
LONGEST: Final = 0.05
# Of inputs, and of outputs.
SMALL: Final = 4096
# What a run may take without being called to account: twice what it promised.
_TOLERATED: Final = 2 * QUICK
_SHARE: Final = 0.05
_SAVINGS: Final = 0.05
# The fastest of the last runs counts: others were put off by the system, or by other threads.
_LAST: Final = 8
_ENOUGH: Final = 3
# Shapes that are remembered; the one not seen for longest is forgotten.
_MAX_SHAPES: Final = 64


def sign(inputs: Sequence[Tensor], outputs: Sequence[str]) -> Signature:
    """Return what a run's time depends on."""
    return (
        tuple(outputs),
        tuple([(tensor.name, tensor.datatype, tensor.array.shape) for tensor in inputs]),
    )


def is_small(tensors: Sequence[Tensor]) -> bool:
    """Return whether tensors are so small that to read or to write them takes no time."""
    return sum([tensor.array.nbytes for tensor in tensors]) <= SMALL


class Sprint:
    """The runs of one model for inputs of one signature.

    Args:
        key: Of the batch that they could be in.
        rows: Of one.
    """

    __slots__ = ("_times", "is_small", "key", "rows")

    def __init__(self, key: BatchKey | None, rows: int) -> None:
        self.key = key
        self.rows = rows
        self.is_small = True
        self._times: deque[float] = deque(maxlen=_LAST)

    @property
    def is_quick(self) -> bool:
        """Whether a run may go where it is asked for."""
        return self.is_small and len(self._times) >= _ENOUGH and min(self._times) < QUICK

    def add(self, seconds: float) -> None:
        """Add the time of a run."""
        self._times.append(seconds)


class Sprints:
    """The short runs of one model.

    Args:
        allowed: Whether there may be any.
    """

    __slots__ = ("_account", "_seen", "_shapes", "allowed")

    def __init__(self, *, allowed: bool) -> None:
        self.allowed = allowed
        self._shapes: OrderedDict[Signature, Sprint] = OrderedDict()
        self._account = _SAVINGS
        self._seen = 0.0

    def find(self, signature: Signature, now: float) -> Sprint | None:
        """Return what is known of runs that may go where they are asked for.

        Args:
            signature: Of the inputs.
            now: In seconds of `time.monotonic()`.
        """
        sprint = self._shapes.get(signature)
        if sprint is None or not self.allowed or not sprint.is_quick:
            return None
        self._account = min(_SAVINGS, self._account + _SHARE * (now - self._seen))
        self._seen = now
        return sprint if self._account > 0 else None

    def learn(self, request: Request, outputs: Sequence[Tensor], seconds: float) -> None:
        """Add a run on a worker.

        Args:
            request: That was in it.
            outputs: That it got.
            seconds: Of processor time that the run took, for all in its batch.
        """
        if not self.allowed or not is_small(request.inputs):
            return
        signature = sign(request.inputs, request.outputs)
        sprint = self._shapes.get(signature)
        if sprint is None:
            sprint = self._shapes[signature] = Sprint(request.key, request.rows)
            if len(self._shapes) > _MAX_SHAPES:
                self._shapes.popitem(last=False)
        else:
            self._shapes.move_to_end(signature)
        sprint.add(seconds)
        sprint.is_small = is_small(outputs)

    def charge(self, seconds: float) -> None:
        """Take note of how long a run and all around it took."""
        if seconds > _TOLERATED:
            self._account -= seconds - _TOLERATED

    def end(self) -> None:
        """Let this model sprint no more."""
        self.allowed = False
        self._shapes.clear()
