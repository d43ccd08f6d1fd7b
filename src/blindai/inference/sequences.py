"""State that stays inside between the steps of a model: who may go on with it, how much, how long.

Always true: what a sequence holds is bounded, by itself and together with all others, before the
model sees it; one that nobody goes on with is let go of when its time is over, at once when it
ends; whoever brings the wrong key learns what whoever brings a key that never was learns. A step
that fails changes nothing. State is memory of its own: no sequence keeps a request or a batch.

For one event loop; no locks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from blindai.errors import InvalidInput, LimitExceeded, Overloaded
from blindai.inference.tensors import DataType, Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from blindai.inference.records import ModelRecord
    from blindai.inference.tensors import TensorSpec

# Of an object in an array of BYTES, beside its bytes.
_ELEMENT_BYTES: Final = 48
_UNKNOWN: Final = (
    "no such sequence: it ended, its time is over, its model was replaced, or it was never yours"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceLimits:
    """What sequences may take.

    Attributes:
        count: Of all callers.
        per_caller: Of one.
        bytes_each: State of one sequence.
        bytes_all: State of all.
        idle: Seconds between two steps.
    """

    count: int = 256
    per_caller: int = 64
    bytes_each: int = 256 << 20
    bytes_all: int = 1 << 30
    idle: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a request says of the sequence that it is a step of.

    Attributes:
        id: The caller's name for the sequence.
        is_start: It is the first step.
        is_end: It is the last.
        state: Input → output whose value it takes in the next step; said at the start.
        number: Which step it is, from 0; `None`: not said.
    """

    id: str
    is_start: bool = False
    is_end: bool = False
    state: Mapping[str, str] = field(default_factory=dict)
    number: int | None = None


@dataclass(slots=True, eq=False)
class Held:
    """What is held for one sequence.

    Attributes:
        account: Of the caller, for `SequenceLimits.per_caller`.
        record: Of the model.
        state: Input → output.
        key: That the next step has to bring; `None`: nobody can.
        kept: The state inputs of the next step.
        size: Of what is held, in bytes.
        steps: That were made.
        is_busy: A step is under way.
        is_over: Nothing is held any more.
        used_at: End of the last step, in the clock's seconds.
    """

    account: Hashable
    record: ModelRecord
    state: Mapping[str, str]
    key: Hashable | None
    used_at: float
    kept: tuple[Tensor, ...] = ()
    size: int = 0
    steps: int = 0
    is_busy: bool = True
    is_over: bool = False


class Sequences:
    """The sequences of a server.

    Args:
        limits: What they may take.
        clock: Returns seconds that never go back.
    """

    def __init__(
        self, limits: SequenceLimits, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._all: set[Held] = set()
        self._by_key: dict[Hashable, Held] = {}
        self._accounts: dict[Hashable, int] = {}
        self._size = 0

    def __len__(self) -> int:
        return len(self._all)

    @property
    def size(self) -> int:
        """Bytes that all of them hold."""
        return self._size

    def begin(
        self,
        account: Hashable,
        record: ModelRecord,
        state: Mapping[str, str],
        key: Hashable | None = None,
    ) -> Held:
        """Make room for a sequence; it is busy until `rest`.

        Args:
            account: Of the caller.
            record: Of the model.
            state: Input → output.
            key: Ends the sequence that has it now, as whoever begins anew wants.

        Raises:
            InvalidInput: State that the model has not, or a step of that key is under way.
            Overloaded: There are as many as there may be.
        """
        check_state(state, record)
        self.sweep()
        before = None if key is None else self._by_key.get(key)
        if before is not None:
            _check_rest(before)
            self.end(before)
        limits = self._limits
        mine = self._accounts.get(account, 0)
        if len(self._all) >= limits.count or mine >= limits.per_caller:
            whose = "yours" if mine >= limits.per_caller else "all callers'"
            msg = f"there are as many sequences as there may be, counting {whose}"
            raise Overloaded(msg)
        held = Held(account, record, state, key, self._clock())
        self._all.add(held)
        self._accounts[account] = mine + 1
        if key is not None:
            self._by_key[key] = held
        return held

    def find(self, key: Hashable, record: ModelRecord, number: int | None = None) -> Held:
        """Return a sequence for its next step; it is busy until `rest`.

        Args:
            key: As it was begun with.
            record: Of the model that the caller wants to run.
            number: Which step the caller takes it to be; `None`: not said.

        Raises:
            InvalidInput: There is none, it is of another model, a step is under way, or it is
                another step's turn.
        """
        self.sweep()
        held = self._by_key.get(key)
        if held is None or held.record.key != record.key:
            raise InvalidInput(_UNKNOWN)
        _check_rest(held)
        if number is not None and number != held.steps:
            msg = f"expected step {held.steps} of the sequence, came step {number}"
            raise InvalidInput(msg)
        held.is_busy = True
        return held

    def hold(self, held: Held, size: int) -> None:
        """Account for what a sequence is about to hold, instead of what it holds.

        Args:
            held: The sequence.
            size: In bytes.

        Raises:
            LimitExceeded: More than one may hold.
            Overloaded: More than there is room for.
        """
        limits = self._limits
        if size > limits.bytes_each:
            msg = (
                f"expected a sequence to hold at most {limits.bytes_each} bytes between steps, "
                f"its state takes {size}"
            )
            raise LimitExceeded(msg)
        if held.is_over:
            raise InvalidInput(_UNKNOWN)
        if self._size - held.size + size > limits.bytes_all:
            msg = "the sequences of this server hold as much as they have room for"
            raise Overloaded(msg)
        self._size += size - held.size
        held.size = size

    def keep(self, held: Held, kept: Sequence[Tensor]) -> None:
        """Hold the state for the next step.

        Raises:
            LimitExceeded: It became larger than it may; the sequence is over.
            Overloaded: There is no room for it; the state is what it was.
        """
        try:
            self.hold(held, size_of(kept))
        except LimitExceeded:
            self.end(held)
            raise
        held.kept = tuple(kept)
        held.steps += 1

    def rest(self, held: Held) -> None:
        """Say that no step is under way; one that never made a step is over."""
        held.is_busy = False
        held.used_at = self._clock()
        if not held.steps:
            self.end(held)

    def end(self, held: Held) -> None:
        """Let a sequence go; does nothing the second time."""
        if held.is_over:
            return
        held.is_over = True
        held.kept = ()
        self._size -= held.size
        held.size = 0
        self._all.discard(held)
        if held.key is not None and self._by_key.get(held.key) is held:
            del self._by_key[held.key]
        left = self._accounts[held.account] - 1
        if left:
            self._accounts[held.account] = left
        else:
            del self._accounts[held.account]

    def end_key(self, key: Hashable) -> None:
        """Let the sequence of a key go, if there is one; a step under way ends with an error."""
        held = self._by_key.get(key)
        if held is not None:
            self.end(held)

    def end_keyed(self) -> None:
        """Let all sequences go that a key opens; others end with the request they are of."""
        for held in list(self._by_key.values()):
            self.end(held)

    def sweep(self) -> float | None:
        """Let go of what nobody went on with; return the seconds after which to look again."""
        now = self._clock()
        again: float | None = None
        for held in list(self._by_key.values()):
            if held.is_busy:
                continue
            left = held.used_at + self._limits.idle - now
            if left <= 0:
                self.end(held)
            else:
                again = left if again is None else min(again, left)
        return again


def _check_rest(held: Held) -> None:
    if held.is_busy:
        msg = "a step of this sequence is under way: expected the next one after its answer"
        raise InvalidInput(msg)


def check_state(state: Mapping[str, str], record: ModelRecord) -> None:
    """Refuse state that cannot go from step to step.

    Args:
        state: Input → output.
        record: Of the model.

    Raises:
        InvalidInput: No such input or output, or they differ in type, rank or fixed size.
    """
    inputs = {spec.name: spec for spec in record.inputs}
    outputs = {spec.name: spec for spec in record.outputs}
    for name, source in state.items():
        if name not in inputs or source not in outputs:
            msg = (
                f"state: expected an input and an output of the model, came {name[:100]!r} from "
                f"{source[:100]!r}"
            )
            raise InvalidInput(msg)
        if not _fits(outputs[source], inputs[name]):
            msg = f"state: {name} is {inputs[name]}, which {source}, {outputs[source]}, never fits"
            raise InvalidInput(msg)


def _fits(source: TensorSpec, target: TensorSpec) -> bool:
    if source.datatype is not target.datatype:
        return False
    if source.shape is None or target.shape is None:
        return True
    if len(source.shape) != len(target.shape):
        return False
    pairs = zip(source.shape, target.shape, strict=True)
    return not any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)


def missing_state(
    state: Mapping[str, str], given: Sequence[Tensor], record: ModelRecord
) -> list[tuple[TensorSpec, tuple[int, ...]]]:
    """Return the state inputs that the caller left out of a first step, and their shapes.

    A named dimension is as large as where the given inputs have it; what remains open is 0, as
    the past of a decoder is that has seen nothing.

    Args:
        state: Input → output.
        given: The inputs of the step.
        record: Of the model.
    """
    names = {tensor.name for tensor in given}
    sizes: dict[str, int] = {}
    for tensor in given:
        shapes = [spec.shape for spec in record.inputs if spec.name == tensor.name]
        for shape in shapes:
            if shape is not None and len(shape) == len(tensor.shape):
                named = zip(shape, tensor.shape, strict=True)
                sizes |= {dim: size for dim, size in named if isinstance(dim, str)}
    missing: list[tuple[TensorSpec, tuple[int, ...]]] = []
    for spec in record.inputs:
        if spec.name in state and spec.name not in names:
            sized = (d if isinstance(d, int) else sizes.get(str(d), 0) for d in spec.shape or ())
            missing.append((spec, tuple(sized)))
    return missing


def zeros(missing: Sequence[tuple[TensorSpec, tuple[int, ...]]]) -> list[Tensor]:
    """Return state of zeros, or of empty strings; see `missing_state`."""
    return [Tensor(spec.name, _zeros(spec, shape), spec.datatype) for spec, shape in missing]


def _zeros(spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[Any]]:
    if spec.datatype is DataType.BYTES:
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, spec.datatype.numpy)


def size_of_zeros(missing: Sequence[tuple[TensorSpec, tuple[int, ...]]]) -> int:
    """Return the bytes that `zeros` would take."""
    total = 0
    for spec, shape in missing:
        each = _ELEMENT_BYTES if spec.datatype is DataType.BYTES else spec.datatype.numpy.itemsize
        count = 1
        for dim in shape:
            count *= dim
        total += each * count
    return total


def carry(state: Mapping[str, str], outputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the state inputs of the next step, in memory of their own.

    Args:
        state: Input → output.
        outputs: Of this step, by name.
    """
    return [_own(name, outputs[source]) for name, source in state.items()]


def _own(name: str, tensor: Tensor) -> Tensor:
    # A part of a batch, or an output that is an input, would keep the whole of it.
    array = tensor.array if tensor.array.base is None else tensor.array.copy()
    return Tensor(name, array, tensor.datatype)


def size_of(tensors: Sequence[Tensor]) -> int:
    """Return the bytes that tensors take in memory."""
    return sum(map(_size, tensors))


def _size(tensor: Tensor) -> int:
    if tensor.datatype is not DataType.BYTES:
        return int(tensor.array.nbytes)
    flat = tensor.array.reshape(-1).tolist()
    return sum(map(len, flat)) + _ELEMENT_BYTES * len(flat)
