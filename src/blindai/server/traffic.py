"""What comes and goes on all ports: answers by their status, and times that the network took.

Always true: nothing of a request is here but how it ended and how long it took; labels are
ports and statuses, which are few.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from blindai.inference.histogram import Histogram


@dataclass(frozen=True, slots=True)
class Traffic:
    """Counts; its dicts are for one event loop.

    Attributes:
        answers: Port ("attested", "public", "grpc") → status of HTTP or of gRPC → how many.
        read: From a request's head to the last byte of its body; of runs of models.
        write: From an answer's being made to its last byte's being handed to the system, as
            far as that took it at once; of runs of models.
    """

    answers: dict[str, dict[int, int]] = field(
        default_factory=lambda: {"attested": {}, "public": {}, "grpc": {}}
    )
    read: Histogram = field(default_factory=Histogram)
    write: Histogram = field(default_factory=Histogram)
