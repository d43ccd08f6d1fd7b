"""The second copy of a model's weights, for load, where its options ask for one.

A lone run is fastest on all cores; many are a little faster on threads of their own than on a
shared pool. No engine here serves both from one copy of the weights, so the second is the
operator's choice (`SchedulingOptions.threads`).

Always true: a copy is loaded when requests of the model first overlap, on a thread given for
that; whatever hinders it, the model itself serves as well.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from blindai.errors import BlindAIError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from blindai.inference.engine import Model
    from blindai.inference.ledger import Ledger
    from blindai.inference.records import LoadedModel

_FOREVER: Final = float("inf")
# The load counts as such for so many runs after requests last overlapped.
_HYSTERESIS_RUNS: Final = 4


class Copies:
    """Chooses which copy runs. Called with the scheduler's lock.

    Args:
        load_again: Loads a model once more, with so many threads; `None`: there are no copies.
        aside: Runs that load.
    """

    __slots__ = ("_aside", "_load_again", "_overlapped_at")

    def __init__(
        self, load_again: Callable[[LoadedModel, int], Model] | None, aside: Executor
    ) -> None:
        self._load_again = load_again
        self._aside = aside
        self._overlapped_at = -_FOREVER

    def overlapped(self, now: float) -> None:
        """Say that a request came while another waited or ran."""
        self._overlapped_at = now

    def choose(self, entry: LoadedModel, ledger: Ledger, *, now: float, closing: bool) -> Model:
        """Return the copy to run."""
        if not ledger.options.threads or self._load_again is None:
            return entry.model
        lull = _HYSTERESIS_RUNS * (ledger.per_run.seconds or 0.0)
        if now - self._overlapped_at > lull:
            return entry.model
        if not ledger.narrow_asked and not closing:
            ledger.narrow_asked = True
            self._aside.submit(_load, self._load_again, entry, ledger)
        return ledger.narrow or entry.model


def _load(load: Callable[[LoadedModel, int], Model], entry: LoadedModel, ledger: Ledger) -> None:
    # It fails for want of memory, or because the file went with its last name.
    with contextlib.suppress(BlindAIError):
        ledger.narrow = load(entry, ledger.options.threads)
