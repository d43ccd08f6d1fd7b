"""The unattested port: plain HTTP for the operator's side. Nothing on it is secret.

Evidence needs no protection, it proves itself. What is here is on the attested port too, but
for metrics and the page that a person can read.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Final

from blindai.attestation.binding import NONCE_SIZE
from blindai.attestation.model import Platform
from blindai.attestation.wire import MEDIA_TYPE
from blindai.errors import InvalidInput, Overloaded
from blindai.server.access.principal import NOBODY
from blindai.server.app import App, Response, Routes, error_response, json_response
from blindai.server.events import log_event
from blindai.server.metrics import MEDIA_TYPE as METRICS
from blindai.server.metrics import Metrics
from blindai.server.open_inference import EXTENSIONS
from blindai.server.openapi import with_document
from blindai.server.self_check import SelfCheck
from blindai.server.service import State
from blindai.server.statistics import operator_statistics
from blindai.server.status_page import Status, content_security_policy, render
from blindai.server.telemetry import describe, gather_report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blindai.server.identity import EvidenceDesk
    from blindai.server.limits import ByteBudget
    from blindai.server.load_history import LoadHistory
    from blindai.server.request import Request
    from blindai.server.service import Service
    from blindai.server.telemetry import Report, Telemetry

VERSION: Final = metadata.version("blindai")

_NO_STORE: Final = (b"cache-control", b"no-store")
_PAGE_HEADERS: Final = (
    _NO_STORE,
    (b"content-security-policy", content_security_policy()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


@dataclass(frozen=True, slots=True)
class About:
    """What the page says beside what service and evidence say.

    Attributes:
        port: The attested port.
        grpc_port: The attested port for gRPC; `None`: none.
        confinement: What the process has given up, by name.
        listed: Whether anybody may know the names of public models.
        load: How much was done lately.
        telemetry: What is reported, if anything is.
    """

    port: int
    grpc_port: int | None
    confinement: Sequence[str]
    listed: bool
    load: LoadHistory
    telemetry: Telemetry


def shared_routes(service: Service, desk: EvidenceDesk) -> Routes:
    """Return the paths that both ports have, from the server's first moment to its last."""

    async def evidence(request: Request) -> Response:
        nonce = request.query().get("nonce")
        if nonce is None:
            body = await desk.cached()
        else:
            try:
                body = await desk.fresh(_parse_nonce(nonce))
            except Overloaded as error:
                return error_response(error, status=429)
        return Response(200, (body,), MEDIA_TYPE.encode(), headers=(_NO_STORE,))

    async def live(_: Request) -> Response:
        return json_response({"live": True})

    async def ready(_: Request) -> Response:
        is_ready = service.state is State.READY
        return json_response({"ready": is_ready}, status=200 if is_ready else 503)

    async def about(_: Request) -> Response:
        return json_response({"name": "blindai", "version": VERSION, "extensions": EXTENSIONS})

    return {
        b"/blindai/v1/evidence": {"GET": evidence},
        b"/v2/health/live": {"GET": live},
        b"/v2/health/ready": {"GET": ready},
        b"/v2": {"GET": about},
    }


def public_app(service: Service, desk: EvidenceDesk, bodies: ByteBudget, about: About) -> App:
    """Return the application of the unattested port.

    Args:
        service: Has the models.
        desk: Evidence of the present identity; of this port alone.
        bodies: Counts what requests hold, for the metrics.
        about: The rest of what the page shows.
    """

    async def renew_evidence() -> None:
        # Old evidence stays where there is no new.
        try:
            await desk.cached()
        except Exception as error:  # noqa: BLE001 - whatever a driver does, the rest is told
            log_event("no_evidence", level="error", error=type(error).__name__)

    async def page(request: Request) -> Response:
        await renew_evidence()
        identity = desk.identity
        platform = identity.attester.platform
        records = service.store.records()
        # What anybody may run is told to nobody where it is not listed either.
        public = [name for name, _ in service.entries(NOBODY)] if about.listed else []
        host = request.headers.get(b"host", b"").decode("ascii", "replace")
        status = Status(
            state=service.state.value,
            platform=platform,
            simulated=platform is Platform.SIMULATION,
            version=VERSION,
            now=datetime.now(UTC),
            keys_until=identity.keys.public.not_after,
            evidence=desk.self_check or SelfCheck(None, "there is none now"),
            evidence_age=desk.cached_age,
            host=host,
            port=about.port,
            grpc_port=about.grpc_port,
            confinement=about.confinement,
            public_models=public,
            other_models=sum(len(record.names) for record in records) - len(public),
            load=about.load.entries,
            telemetry=about.telemetry.choice.reason,
        )
        return Response(200, (render(status),), b"text/html; charset=utf-8", headers=_PAGE_HEADERS)

    collected = Metrics(service, desk, bodies)

    async def metrics(_: Request) -> Response:
        await renew_evidence()  # its age and what it says are among them
        return Response(200, (collected.render(),), METRICS, headers=(_NO_STORE,))

    async def telemetry(_: Request) -> Response:
        report = service_report(service, desk.identity.attester.platform)
        return Response(200, (describe(about.telemetry, report),), headers=(_NO_STORE,))

    routes = {
        **shared_routes(service, desk),
        b"/": {"GET": page},
        b"/blindai/v1/telemetry": {"GET": telemetry},
        b"/metrics": {"GET": metrics},
    }
    return App(
        service,
        always=with_document(routes),
        ready={},
        answers=service.traffic.answers["public"],
    )


def service_report(service: Service, platform: Platform) -> Report:
    """Return what would be reported of a service now: of the operator's models, not of tenants'."""
    return gather_report(platform, operator_statistics(service), len(service.store.records()))


def _parse_nonce(text: str) -> bytes:
    # fromhex also takes spaces: a nonce has one spelling.
    if len(text) == NONCE_SIZE * 2 and text.isascii() and text.isalnum():
        try:
            return bytes.fromhex(text)
        except ValueError:
            pass
    msg = f"expected a nonce of {NONCE_SIZE * 2} hexadecimal digits, came {len(text)} characters"
    raise InvalidInput(msg)
