"""Traces to an OpenTelemetry collector; needs `blindai[otel]`.

Always true: it talks to the one endpoint that the operator named, through no proxy and along no
redirect; what cannot be delivered is dropped, never waited for. The library would read variables
`OTEL_*`: `blindai serve` has started again without them.

Specification: OpenTelemetry Protocol 1.x, OTLP/HTTP with binary protobuf.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Final

import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from blindai.server.tracing import traces_address

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from blindai.server.tracing import FinishedTrace, Parent

_MAX_WAITING: Final = 4096
_BATCH: Final = 512
_TIMEOUT: Final = 5.0
_EVERY_MS: Final = 2000.0


class OtlpSink:
    """Sends traces to a collector, from a thread of its own. Call it with each.

    Args:
        endpoint: http or https; without a path, the usual one is added.

    Raises:
        ConfigurationError: An address that is none.
    """

    def __init__(self, endpoint: str) -> None:
        session = requests.Session()
        session.trust_env = False
        session.max_redirects = 0
        exporter = OTLPSpanExporter(
            endpoint=traces_address(endpoint),
            headers={},
            timeout=_TIMEOUT,
            compression=Compression.NoCompression,
            session=session,
        )
        attributes = {"service.name": "blindai", "service.version": metadata.version("blindai")}
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # `Tracing` has decided
            resource=Resource(attributes),
            span_limits=SpanLimits(),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                exporter,
                max_queue_size=_MAX_WAITING,
                schedule_delay_millis=_EVERY_MS,
                max_export_batch_size=_BATCH,
                export_timeout_millis=_TIMEOUT * 1000,
            )
        )
        self._tracer = self._provider.get_tracer("blindai.server")

    def __call__(self, trace: FinishedTrace) -> None:
        """Hand over a trace; returns at once."""
        attributes = {"blindai.protocol": trace.protocol}
        if trace.model is not None:
            attributes["blindai.model"] = trace.model
        if trace.error is not None:
            attributes["error.type"] = trace.error
        request = self._tracer.start_span(
            "infer",
            context=_context(trace.parent),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=trace.began,
        )
        inside = set_span_in_context(request)
        for phase in trace.phases:
            span = self._tracer.start_span(phase.name, context=inside, start_time=phase.began)
            span.end(phase.ended)
        if trace.error is not None:
            request.set_status(Status(StatusCode.ERROR))
        request.end(trace.ended)

    def close(self) -> None:
        """Send what waits, within seconds, and end."""
        self._provider.force_flush(int(_TIMEOUT * 1000))
        self._provider.shutdown()


def _context(parent: Parent | None) -> Context | None:
    if parent is None:
        return None
    known = SpanContext(
        parent.trace_id, parent.span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)
    )
    return set_span_in_context(NonRecordingSpan(known))
