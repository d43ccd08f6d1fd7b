"""Prometheus metrics, on the unattested port: how much and how long, never what.

Always true: everything is read when it is asked for, from numbers that are kept anyway, so a
request pays nothing; a label is one of a bounded set, and none comes from a client. Models are
labelled by the first digits of their SHA-256, as in the log: their names may be private.

Specification: Prometheus text exposition format 0.0.4.
"""

from __future__ import annotations

import time
from importlib import metadata
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)

from blindai.attestation.model import Platform
from blindai.server.service import State
from blindai.server.statistics import operator_statistics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from blindai.inference.ledger import ModelStatistics
    from blindai.server.identity import EvidenceDesk
    from blindai.server.limits import ByteBudget
    from blindai.server.service import Service

MEDIA_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
_LABEL_DIGITS: Final = 12
_NS: Final = 1e-9
# Advisories have names of their vendor's; there is no more of them than this.
_MAX_WEAKNESSES: Final = 64
_PHASES: Final = ("queue", "compute_input", "compute_infer", "compute_output")


class Metrics:
    """Collects what a server knows of itself.

    Args:
        service: Runs models.
        desk: Has the keys and the evidence.
        bodies: Counts what requests hold.
    """

    def __init__(self, service: Service, desk: EvidenceDesk, bodies: ByteBudget) -> None:
        self._bodies = bodies
        self._service = service
        self._desk = desk
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """Return all metrics as Prometheus reads them."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the families; the registry calls this."""
        yield from self._server()
        yield from self._evidence()
        yield from _traffic(self._service)
        yield from self._memory()
        yield from _audit(self._service)
        records = self._service.store.records()
        yield _gauge("models", "Models of the operator that are loaded.", len(records))
        # A model that is not public is nobody's business here, not even its SHA-256.
        is_public = self._service.shelves.is_public
        present = {record.key: record for record in records if is_public(record)}
        size = GaugeMetricFamily(
            "blindai_model_file_bytes", "Size of a model's file.", labels=["model"]
        )
        for record in present.values():
            size.add_metric([_label(record.key)], record.size)
        yield size
        # One entry for each model that is still here: labels of those that went go with them.
        served = [each for each in operator_statistics(self._service) if each.sha256 in present]
        yield from _served(served)
        yield from _load(served)

    def _server(self) -> Iterator[Metric]:
        identity = self._desk.identity
        platform = identity.attester.platform
        about = GaugeMetricFamily(
            "blindai_info",
            "Always 1; what this server is, in its labels. It proves nothing: evidence does.",
            labels=["version", "platform", "simulated"],
        )
        simulated = "true" if platform is Platform.SIMULATION else "false"
        about.add_metric([metadata.version("blindai"), str(platform), simulated], 1)
        yield about
        ready = self._service.state is State.READY
        yield _gauge("ready", "Whether models are served.", int(ready))
        yield _gauge("requests_running", "Requests that run, or wait to.", self._service.running)
        yield _gauge(
            "keys_not_after_timestamp_seconds",
            "When the present keys and their certificate expire, in seconds since 1970.",
            identity.keys.public.not_after.timestamp(),
        )
        yield _gauge("time_seconds", "This server's clock, in seconds since 1970.", time.time())

    def _evidence(self) -> Iterator[Metric]:
        age, found = self._desk.cached_age, self._desk.self_check
        if age is None or found is None:
            return
        yield _gauge(
            "evidence_age_seconds", "Age of the evidence that is handed out without a nonce.", age
        )
        yield _gauge(
            "evidence_genuine",
            "Whether this server's own verifier finds that evidence genuine.",
            int(found.is_genuine),
        )
        weak = GaugeMetricFamily(
            "blindai_evidence_weakness",
            "1 for each weakness that the evidence shows: a policy has to tolerate it by name.",
            labels=["weakness"],
        )
        for name in sorted(found.weaknesses)[:_MAX_WEAKNESSES]:
            weak.add_metric([name], 1)
        yield weak
        if found.not_after is not None:
            yield _gauge(
                "evidence_not_after_timestamp_seconds",
                "When what the evidence rests on ends, in seconds since 1970.",
                found.not_after.timestamp(),
            )

    def _memory(self) -> Iterator[Metric]:
        limits, memory = self._service.limits, self._service.memory
        held = {
            "all": (memory.used, memory.total),
            "models": (self._service.shelves.bytes_in_use, limits.max_store_bytes),
            "bodies": (self._bodies.used, limits.max_bodies_bytes),
            "sequences": (self._service.stepping.sequences.size, limits.max_state_bytes),
        }
        used = GaugeMetricFamily(
            "blindai_memory_used_bytes", "Memory that is held, by what for.", labels=["purpose"]
        )
        limit = GaugeMetricFamily(
            "blindai_memory_limit_bytes", "Memory that may be held at most.", labels=["purpose"]
        )
        for purpose, (size, most) in held.items():
            used.add_metric([purpose], size)
            limit.add_metric([purpose], most)
        yield from (used, limit)
        yield CounterMetricFamily(
            "blindai_memory_refused",
            "How often there was no memory for a body, an upload or a model.",
            memory.refused,
        )
        yield CounterMetricFamily(
            "blindai_models_rested",
            "How often a model left memory, to come back when it runs.",
            memory.rested,
        )


def _traffic(service: Service) -> Iterator[Metric]:
    answers = CounterMetricFamily(
        "blindai_answers",
        "Answers by port, and by their status: of HTTP, or of gRPC.",
        labels=["port", "status"],
    )
    for port, statuses in service.traffic.answers.items():
        for status, count in sorted(statuses.items()):
            answers.add_metric([port, str(status)], count)
    yield answers
    waiting, running = service.scheduler.waiting, service.scheduler.running
    yield _gauge("queue_depth", "Requests that wait for a run, of all models.", waiting)
    yield _gauge("queue_limit", "Requests that may wait.", service.limits.max_queue)
    yield _gauge("runs_running", "Runs of the engine under way, of all models.", running)
    phases = service.scheduler.phases
    times = HistogramMetricFamily(
        "blindai_phase_seconds",
        "Time that requests spent: their bodies being read, in the queue, in the engine, and "
        "their answers being written.",
        labels=["phase"],
    )
    for name, histogram in (
        ("read", service.traffic.read),
        ("queue", phases.queue),
        ("run", phases.run),
        ("write", service.traffic.write),
    ):
        buckets, count, seconds = histogram.read()
        said = [(repr(bound), float(below)) for bound, below in buckets]
        times.add_metric([name], [*said, ("+Inf", float(count))], seconds)
    yield times


def _audit(service: Service) -> Iterator[Metric]:
    if service.audit is None:
        return
    yield _gauge("audit_entries", "Lines of the audit log.", service.audit.head.entries)
    failures = CounterMetricFamily(
        "blindai_audit_failures", "Entries that the audit log's disk did not take."
    )
    failures.add_metric([], service.audit.failures)
    yield failures


def _served(served: list[ModelStatistics]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "blindai_model_requests", "Requests by their outcome.", labels=["model", "outcome"]
    )
    seconds = CounterMetricFamily(
        "blindai_model_seconds",
        "Time that successful requests spent in a phase, in all.",
        labels=["model", "phase"],
    )
    runs = CounterMetricFamily(
        "blindai_model_runs", "Runs of the engine that succeeded.", labels=["model"]
    )
    rows = CounterMetricFamily(
        "blindai_model_rows", "Rows of successful requests.", labels=["model"]
    )
    sizes = CounterMetricFamily(
        "blindai_model_batches", "Runs by their number of rows.", labels=["model", "rows"]
    )
    for each in served:
        model = _label(each.sha256)
        requests.add_metric([model, "success"], each.success.count)
        requests.add_metric([model, "failure"], each.fail.count)
        for phase in _PHASES:
            seconds.add_metric([model, phase], getattr(each, phase).ns * _NS)
        runs.add_metric([model], each.execution_count)
        rows.add_metric([model], each.inference_count)
        for count, batch in each.batch_stats.items():
            sizes.add_metric([model, str(count)], batch.compute_infer.count)
    yield from (requests, seconds, runs, rows, sizes)


def _load(served: list[ModelStatistics]) -> Iterator[Metric]:
    waiting = GaugeMetricFamily(
        "blindai_model_waiting", "Requests in a model's queue.", labels=["model"]
    )
    running = GaugeMetricFamily(
        "blindai_model_running", "Runs of a model under way.", labels=["model"]
    )
    lanes = GaugeMetricFamily(
        "blindai_model_lanes", "Runs that go side by side under load.", labels=["model"]
    )
    batching = GaugeMetricFamily(
        "blindai_model_batching", "1: requests share runs; 0: each has its own.", labels=["model"]
    )
    each_costs = GaugeMetricFamily(
        "blindai_model_request_seconds",
        "What a request costs on one worker, as of late.",
        labels=["model"],
    )
    cost = GaugeMetricFamily(
        "blindai_model_run_seconds",
        "The cost model: time of a run by its number of rows, for the shape that ran last.",
        labels=["model", "rows"],
    )
    for each in served:
        model = _label(each.sha256)
        waiting.add_metric([model], each.waiting)
        running.add_metric([model], each.running)
        lanes.add_metric([model], each.lanes)
        batching.add_metric([model], int(each.batches is True))
        if each.seconds_per_request is not None:
            each_costs.add_metric([model], each.seconds_per_request)
        for count, seconds in each.seconds_by_rows.items():
            cost.add_metric([model, str(count)], seconds)
    yield from (waiting, running, lanes, batching, each_costs, cost)


def _label(key: str) -> str:
    """Return the first digits of a model's SHA-256, and its form unless that is the reference."""
    sha256, _, form = key.partition(".")
    return f"{sha256[:_LABEL_DIGITS]}.{form}" if form else sha256[:_LABEL_DIGITS]


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"blindai_{name}", help_text, value=value)
