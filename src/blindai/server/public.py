"""The unattested port: plain HTTP for the operator's side. Nothing on it is secret.

Evidence needs no protection, it proves itself. What is here is on the attested port too, but
for the page that a person can read.
"""

from __future__ import annotations

from html import escape
from importlib import metadata
from typing import TYPE_CHECKING, Final

from blindai.attestation.binding import NONCE_SIZE
from blindai.attestation.model import Platform
from blindai.attestation.wire import MEDIA_TYPE
from blindai.errors import InvalidInput, Overloaded
from blindai.server.app import App, Response, Routes, error_response, json_response
from blindai.server.events import log_event
from blindai.server.metrics import MEDIA_TYPE as METRICS
from blindai.server.metrics import Metrics
from blindai.server.open_inference import EXTENSIONS
from blindai.server.openapi import with_document
from blindai.server.service import State

if TYPE_CHECKING:
    from blindai.server.identity import EvidenceDesk, Identity
    from blindai.server.limits import ByteBudget
    from blindai.server.request import Request
    from blindai.server.service import Service

VERSION: Final = metadata.version("blindai")

_NO_STORE: Final = (b"cache-control", b"no-store")
_PAGE_HEADERS: Final = (
    _NO_STORE,
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),
    (b"x-content-type-options", b"nosniff"),
)
_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>BlindAI</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:3rem auto;padding:0 1rem}}
dt{{font-weight:600}}dd{{margin:0 0 .6rem;overflow-wrap:anywhere}}code{{font-size:.9em}}
strong{{background:#fd6;padding:.1em .3em}}</style></head><body>
<h1>BlindAI</h1>
<p>{headline}</p>
<dl><dt>State</dt><dd>{state}</dd><dt>Platform</dt><dd>{platform}</dd>
<dt>Version</dt><dd>{version}</dd><dt>Keys hold until</dt><dd>{not_after}</dd></dl>
<p>This page proves nothing: whoever runs the machine can write what they like here. What proves
something is the evidence of the hardware, which your own computer checks:</p>
<p><code>{command}</code></p>
<p>Never send data to this port. Clients talk to the attested port only, to a key that the
evidence covers.</p>
</body></html>
"""


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


def public_app(service: Service, desk: EvidenceDesk, bodies: ByteBudget) -> App:
    """Return the application of the unattested port.

    Args:
        service: Runs models.
        desk: Evidence of the present identity; of this port alone.
        bodies: Counts what requests hold, for the metrics.
    """

    async def page(_: Request) -> Response:
        body = status_page(desk.identity, service.state).encode()
        return Response(200, (body,), b"text/html; charset=utf-8", headers=_PAGE_HEADERS)

    collected = Metrics(service, desk, bodies)

    async def metrics(_: Request) -> Response:
        # Its age and what it says are among them. Old evidence stays where there is no new.
        try:
            await desk.cached()
        except Exception as error:  # noqa: BLE001 - whatever a driver does, the numbers are told
            log_event("no_evidence", level="error", error=type(error).__name__)
        return Response(200, (collected.render(),), METRICS, headers=(_NO_STORE,))

    routes = {
        **shared_routes(service, desk),
        b"/": {"GET": page},
        b"/metrics": {"GET": metrics},
    }
    return App(
        service,
        always=with_document(routes),
        ready={},
        answers=service.traffic.answers["public"],
    )


def status_page(identity: Identity, state: State) -> str:
    """Return what a person sees who opens the unattested port in a browser."""
    platform = identity.attester.platform
    if platform is Platform.SIMULATION:
        headline = (
            "<strong>SIMULATED</strong>: no hardware protects what is sent to this server. "
            "For tests only."
        )
        command = "blindai verify HOST:PORT --simulation"
    else:
        headline = "A confidential inference server."
        command = "blindai verify HOST:PORT --policy policy.toml"
    return _PAGE.format(
        headline=headline,
        state=escape(state.value),
        platform=escape(platform),
        version=escape(VERSION),
        not_after=f"{identity.keys.public.not_after:%Y-%m-%d %H:%M:%S}Z",
        command=command,
    )


def _parse_nonce(text: str) -> bytes:
    # fromhex also takes spaces: a nonce has one spelling.
    if len(text) == NONCE_SIZE * 2 and text.isascii() and text.isalnum():
        try:
            return bytes.fromhex(text)
        except ValueError:
            pass
    msg = f"expected a nonce of {NONCE_SIZE * 2} hexadecimal digits, came {len(text)} characters"
    raise InvalidInput(msg)
