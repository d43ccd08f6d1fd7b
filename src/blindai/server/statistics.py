"""What models have served, as the protocol's statistics extension has it.

Always true: the numbers are the scheduler's, since the model was loaded. They are of a model's
weights, so all names of one model show the same. Requests that never got to the queue (unknown
model, inputs that do not fit, overload) are in none of them. Nothing is cached, so
`cache_hit` and `cache_miss` stay 0.

Specification: Open Inference Protocol (KServe v2), statistics extension.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from blindai.errors import ModelNotFound
from blindai.inference.served import Served, Tally

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blindai.inference.ledger import ModelStatistics
    from blindai.inference.served import BatchStatistics, ServedStatistics
    from blindai.server.access.principal import Principal
    from blindai.server.service import Service

_PARTS: Final = ("compute_input", "compute_infer", "compute_output")


def collect_statistics(
    service: Service, who: Principal, name: str | None = None
) -> list[tuple[str, ServedStatistics]]:
    """Return what models have served, each with a name, in the order of names.

    Args:
        service: Has the models.
        who: Asks.
        name: Of one model, or its SHA-256; `None`: all names that they can see.

    Raises:
        ModelNotFound: No such model.
    """
    wanted = service.entries(who) if name is None else [(name, service.get(name, who))]
    of = service.scheduler.statistics_of
    return [(name, of(entry.model) or Served().statistics()) for name, entry in wanted]


def operator_statistics(service: Service) -> list[ModelStatistics]:
    """Return what the operator's models have served; a tenant's are nobody else's business."""
    found = []
    for record in service.store.records():
        with contextlib.suppress(ModelNotFound):  # deleted meanwhile
            model = service.store.get(record.key).model
            found.append(service.scheduler.statistics_of(model))
    return [each for each in found if each is not None]


def describe_statistics(name: str, version: str, served: ServedStatistics) -> dict[str, object]:
    """Return one model's entry.

    Args:
        name: Of the model.
        version: Of the model.
        served: By it.
    """
    stats = {part: _tally(getattr(served, part)) for part in ("success", "fail", "queue", *_PARTS)}
    return {
        "name": name,
        "version": version,
        "last_inference": served.last_inference,
        "inference_count": served.inference_count,
        "execution_count": served.execution_count,
        "inference_stats": {**stats, "cache_hit": _tally(Tally()), "cache_miss": _tally(Tally())},
        "batch_stats": _batches(served.batch_stats),
    }


def _batches(by_rows: Mapping[int, BatchStatistics]) -> list[dict[str, object]]:
    return [
        {"batch_size": rows, **{part: _tally(getattr(batch, part)) for part in _PARTS}}
        for rows, batch in sorted(by_rows.items())
    ]


def _tally(tally: Tally) -> dict[str, int]:
    return {"count": tally.count, "ns": tally.ns}
