"""Rollback protection: a counter in hardware says which registry is the newest.

Always true: with a counter, a registry that was replaced by one that a caller was told of is
never opened again; without one, whoever owns the disk can put back everything as it once was,
and that is said (`NO_COUNTER`).

A registry names the counter's value at which it is current. It is written first, for the next
value, and the counter is advanced then: a power cut in between leaves a registry one ahead.
Two could be left one ahead in this way, one of them unannounced; so a vault that was opened,
or whose last write failed, uses up one value for what it holds before it writes anything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from blindai.errors import SealedDataError

if TYPE_CHECKING:
    from blindai.inference.registry import Registry

NO_COUNTER: Final = (
    "no rollback protection: there is no hardware counter, so the owner of the disk can put an "
    "older state of all sealed models back; each is still what was once sealed"
)


class RollbackCounter(Protocol):
    """Counts up, never down, where the owner of the disk cannot reach: for one vault alone."""

    @property
    def is_new(self) -> bool:
        """Whether it was made just now, so that its value means nothing yet."""
        ...

    def read(self) -> int:
        """Return its value; 0: it was never advanced."""
        ...

    def advance(self) -> int:
        """Add 1, for good, and return the new value."""
        ...


def check_epoch(registry: Registry | None, counter: RollbackCounter | None) -> None:
    """Refuse a registry that is not the newest; count on where a power cut kept us from it.

    Args:
        registry: What is on disk; `None`: nothing is.
        counter: Of this vault; `None`: the machine has none.

    Raises:
        SealedDataError: It is older than the counter says, or not of this counter.
    """
    epoch = None if registry is None else registry.epoch
    if counter is None:
        if epoch is not None:
            msg = "they are protected by a rollback counter, and none can be reached here"
            raise SealedDataError(msg)
        return
    value = counter.read()
    if registry is None and counter.is_new:
        return
    # What has no epoch was written before there was a counter, so only before its first use.
    found = 0 if epoch is None else epoch
    if found < value:
        what = "there is no registry" if registry is None else f"the registry says {found}"
        msg = f"they were rolled back or removed: the counter stands at {value}, {what}"
        raise SealedDataError(msg)
    if found > value + 1:
        msg = f"the rollback counter was reset: the registry says {found}, it stands at {value}"
        raise SealedDataError(msg)
    if found == value + 1:
        counter.advance()
