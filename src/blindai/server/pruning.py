"""Models that nobody ran for many days are deleted, where the operator asked for it.

Always true: what the operator set to be served from the start is never deleted; a model that
runs, or ran or was uploaded in those days, is not. Days are those of the machine's clock, and
of sealed models they are known over restarts.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from blindai.errors import ModelNotFound
from blindai.server.sealing import DAY

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet
    from contextlib import AbstractContextManager
    from datetime import timedelta

    from blindai.inference.records import LoadedModel
    from blindai.inference.store import ModelStore
    from blindai.server.sealing import SealedModels


def _unaudited(*, model: str) -> AbstractContextManager[None]:
    del model
    return contextlib.nullcontext()


def prune(
    store: ModelStore,
    sealed: SealedModels | None,
    *,
    last_run: Callable[[LoadedModel], float],
    unused_for: timedelta,
    spared: AbstractSet[str],
    now: float,
    audited: Callable[..., AbstractContextManager[None]] = _unaudited,
) -> list[str]:
    """Delete the models of a store that nobody used for long. Slow: for a worker thread.

    Args:
        store: Has them.
        sealed: Keeps them over restarts; `None`: nothing does.
        last_run: Returns when a model last ran, in Unix seconds; 0: not since the start.
        unused_for: How long.
        spared: Names of models that stay.
        now: Unix seconds.
        audited: Returns what a deletion has to happen in; called with `model`, its SHA-256.

    Returns:
        The SHA-256s of what was deleted.

    Raises:
        SealedDataError: The sealed models are shut, or the disk fails.
        Overloaded: The disk has no room for a shorter list of models.
    """
    gone: list[str] = []
    days: dict[str, int] = {}
    for record in store.records():
        try:
            ran = last_run(store.get(record.key))
        except ModelNotFound:
            continue  # deleted meanwhile
        known = None if sealed is None else sealed.last_use(record.sha256)
        # All of a day counts, as no more is written down.
        used = record.loaded_at.timestamp() if known is None else (known + 1) * DAY
        if known is not None and ran // DAY > known:
            days[record.sha256] = int(ran) // DAY
        if now - max(ran, used) < unused_for.total_seconds() or not spared.isdisjoint(record.names):
            continue
        for name in record.names:
            with contextlib.suppress(ModelNotFound), audited(model=record.sha256):
                (store if sealed is None else sealed).delete(name)
        gone.append(record.sha256)
    if sealed is not None and days:
        sealed.note_use(days)
    return gone
