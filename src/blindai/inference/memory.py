"""One budget of memory for all that a server holds: models, uploads, and bodies of requests.

Always true: what does not fit is refused before there is memory for it, and models that can come
back from elsewhere make room first, the one that ran longest ago before the others. What a run
takes for itself is not known before it runs: the budget is what is left for everything else.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from blindai.confinement.kernel import machine_memory
from blindai.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A file in memory, and about twice its size once it is loaded: engines rearrange weights.
FILE_COST: Final = 1
LOADED_COST: Final = 2
# Of the machine's memory; the rest is for runs.
_SHARE: Final = 0.75


class Restable(Protocol):
    """What can give its memory back, and come back later."""

    @property
    def used_at(self) -> float:
        """When it was last needed, in seconds of `time.monotonic()`."""
        ...

    def rest(self) -> bool:
        """Give memory back; return whether there was any to give."""
        ...


class Memory:
    """Counts what is held; safe to use from several threads.

    Args:
        total: Bytes that may be held.

    Attributes:
        total: See above.
        refused: How often there was no room.
        rested: How often something had to make room.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.refused = 0
        self.rested = 0
        # For moments only; what is asked of the sources has locks of its own inside it.
        self._lock = threading.Lock()
        self._held = 0
        self._sources: list[Callable[[], int]] = []
        self._restable: weakref.WeakSet[Restable] = weakref.WeakSet()
        self._making_room = threading.Lock()

    @property
    def used(self) -> int:
        """Bytes that are held now."""
        with self._lock:
            return self._used()

    def count(self, source: Callable[[], int]) -> None:
        """Count what somebody else knows the size of, each time anew.

        Args:
            source: Returns bytes, soon, and asks this for nothing.
        """
        with self._lock:
            self._sources.append(source)

    def watch(self, restable: Restable) -> None:
        """Let something make room when others need it, for as long as it lives."""
        with self._lock:
            self._restable.add(restable)

    def take(self, count: int) -> bool:
        """Hold so many bytes more, if there is room; returns at once."""
        with self._lock:
            if self._used() + count > self.total:
                return False
            self._held += count
            return True

    def hold(self, count: int) -> None:
        """Hold so many bytes more; others make room if need be, which may be slow.

        Raises:
            Overloaded: There is no room for them.
        """
        if self.take(count):
            return
        self.make_room(count)
        if not self.take(count):
            self.refused += 1
            msg = f"no memory for {count} bytes: {self.used} of {self.total} are in use; try later"
            raise Overloaded(msg, retry_after=10.0)

    def release(self, count: int) -> None:
        """Hold so many bytes less."""
        with self._lock:
            self._held -= count

    @contextlib.contextmanager
    def holding(self, count: int) -> Iterator[Holding]:
        """Hold bytes until the end of the block, or until a source counts them.

        Raises:
            Overloaded: There is no room for them.
        """
        self.hold(count)
        held = Holding(self, count)
        try:
            yield held
        finally:
            self.release(held.count)

    def replace(self, count: int, counted: Callable[[], None]) -> None:
        """Hold so many bytes less, in the moment in which a source counts them.

        Args:
            count: Held until now.
            counted: Makes a source count them.
        """
        with self._lock:
            counted()
            self._held -= count

    def make_room(self, count: int) -> None:
        """Let models rest until there is room for so many bytes, or none is left that could."""
        with self._making_room:
            with self._lock:
                restable = sorted(self._restable, key=lambda each: each.used_at)
            for each in restable:
                if self.used + count <= self.total:
                    return
                if each.rest():
                    self.rested += 1

    def _used(self) -> int:
        return self._held + sum(source() for source in self._sources)


class Holding:
    """Bytes that are held until the end of a block; see `Memory.holding`.

    Attributes:
        count: How many.
    """

    __slots__ = ("_memory", "count")

    def __init__(self, memory: Memory, count: int) -> None:
        self._memory = memory
        self.count = count

    def replace(self, counted: Callable[[], None], *, more: int = 0) -> None:
        """Hold nothing more, in the moment in which a source counts it.

        Args:
            counted: Makes a source count it.
            more: Bytes that were held beside it, and that the source counts as well.
        """
        count, self.count = self.count, 0
        self._memory.replace(count + more, counted)


@functools.cache
def default_budget(root: Path = Path("/")) -> int:
    """Return the bytes that a server may hold where nobody says: three quarters of what there is.

    Args:
        root: Of the file system.
    """
    return int(machine_memory(root) * _SHARE)
