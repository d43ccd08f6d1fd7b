"""The attested port: everything a client does, over TLS that ends at an attested key.

Specification: Open Inference Protocol (KServe v2) REST under /v2; BlindAI's own paths under
/blindai/v1: evidence, and the models.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from blindai.channel.statement import Kind
from blindai.errors import ConfigurationError, InvalidInput, LimitExceeded
from blindai.inference.engine import RunHandle
from blindai.inference.options import parse_options
from blindai.server.access import Access, Scope
from blindai.server.app import App, GoneWatch, Response, error_response, json_response
from blindai.server.encoding import IDENTITY, choose_coding, compress
from blindai.server.limits import ByteBudget
from blindai.server.model_config import describe_config, platform_of
from blindai.server.open_inference import (
    MODEL_VERSION,
    build_answer,
    describe_specs,
    gather_facts,
    open_envelope,
    parse_request,
    read_call,
)
from blindai.server.openapi import with_document
from blindai.server.public import shared_routes
from blindai.server.receipts import Facts, ReceiptDesk, digest_parts, parse_wish
from blindai.server.repository import Repository
from blindai.server.service import SMALL
from blindai.server.statistics import collect_statistics, describe_statistics
from blindai.server.streaming import Streams
from blindai.server.unsupported import unsupported_routes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from blindai.inference.store import ModelRecord
    from blindai.inference.tensors import Tensor
    from blindai.server.access.principal import Principal
    from blindai.server.app import Routes
    from blindai.server.config import Limits
    from blindai.server.identity import EvidenceDesk
    from blindai.server.open_inference import Answer, InferenceCall
    from blindai.server.request import Request
    from blindai.server.service import Service
    from blindai.server.tracing import Trace

_BINARY: Final = b"application/octet-stream"
_HEADER_LENGTH: Final = b"inference-header-content-length"
_MAX_MEASUREMENTS: Final = 16 << 10
_UPLOAD_PARAMETERS: Final = ("replace", "receipt", "receipt_nonce", "receipt_evidence")


def attested_app(
    service: Service, desk: EvidenceDesk, access: Access, limits: Limits, bodies: ByteBudget
) -> App:
    """Return the application of the attested port.

    Args:
        service: Runs models.
        desk: Evidence of the identity whose key the connections end at.
        access: Who may do what.
        limits: What is accepted.
        bodies: Counts the bodies that are held, over all identities.
    """
    receipts = ReceiptDesk(desk)
    models = Models(service, access, limits, receipts)
    inference = OpenInference(service, access, limits, bodies, receipts)
    repository = Repository(service, access, limits, bodies)
    streams = Streams(service, access, limits, bodies)
    ready: Routes = {
        b"/v2/models/{name}": {"GET": inference.metadata},
        b"/v2/models/{name}/versions/1": {"GET": inference.metadata},
        b"/v2/models/{name}/ready": {"GET": inference.ready},
        b"/v2/models/{name}/versions/1/ready": {"GET": inference.ready},
        b"/v2/models/{name}/config": {"GET": inference.config},
        b"/v2/models/{name}/versions/1/config": {"GET": inference.config},
        b"/v2/models/{name}/stats": {"GET": inference.statistics},
        b"/v2/models/{name}/versions/1/stats": {"GET": inference.statistics},
        b"/v2/models/stats": {"GET": inference.all_statistics},
        b"/v2/models/{name}/infer": {"POST": inference.infer},
        b"/v2/models/{name}/versions/1/infer": {"POST": inference.infer},
        b"/v2/repository/index": {"POST": repository.index},
        b"/v2/repository/models/{name}/load": {"POST": repository.load},
        b"/v2/repository/models/{name}/unload": {"POST": repository.unload},
        b"/blindai/v1/models/{name}/stream": {"POST": streams.stream},
        b"/blindai/v1/models": {"GET": models.all},
        b"/blindai/v1/handover": {
            "PUT": models.hand_over,
            "DELETE": models.withdraw_handover,
        },
        b"/blindai/v1/models/{name}": {"PUT": models.put, "DELETE": models.delete},
        **unsupported_routes(),
    }
    always = with_document(shared_routes(service, desk), ready)
    return App(service, always=always, ready=ready, answers=service.traffic.answers["attested"])


class _Measurements(msgspec.Struct, forbid_unknown_fields=True):
    measurements: dict[str, str]


class OpenInference:
    """Handlers of the Open Inference Protocol; see `attested_app` for the arguments."""

    def __init__(
        self,
        service: Service,
        access: Access,
        limits: Limits,
        bodies: ByteBudget,
        receipts: ReceiptDesk,
    ) -> None:
        self._service = service
        self._access = access
        self._limits = limits
        self._bodies = bodies
        self._receipts = receipts

    async def metadata(self, request: Request) -> Response:
        """Say what a model takes and returns."""
        who = self._access.admit(Scope.RUN, request)
        record = self._service.get(request.name, who).record
        return json_response(
            {
                "name": request.name,
                "versions": [MODEL_VERSION],
                "platform": platform_of(record),
                "inputs": describe_specs(record.inputs),
                "outputs": describe_specs(record.outputs),
                "parameters": {
                    "sha256": record.sha256,
                    "size": record.size,
                    "engine": record.engine,
                    "precision": record.form.precision,
                    "form": str(record.form),
                },
            }
        )

    async def ready(self, request: Request) -> Response:
        """Say that a model can be run."""
        self._service.get(request.name, self._access.admit(Scope.RUN, request))
        return json_response({"name": request.name, "ready": True})

    async def config(self, request: Request) -> Response:
        """Say how a model runs."""
        who = self._access.admit(Scope.RUN, request)
        record = self._service.get(request.name, who).record
        return json_response(describe_config(request.name, record))

    async def statistics(self, request: Request) -> Response:
        """Say what a model has served."""
        return self._describe_statistics(self._access.admit(Scope.RUN, request), request.name)

    async def all_statistics(self, request: Request) -> Response:
        """Say what all models have served, one entry for each name."""
        return self._describe_statistics(self._access.admit(Scope.LIST, request), None)

    def _describe_statistics(self, who: Principal, name: str | None) -> Response:
        found = collect_statistics(self._service, who, name)
        stats = [describe_statistics(name, MODEL_VERSION, served) for name, served in found]
        return json_response({"model_stats": stats})

    async def infer(self, request: Request) -> Response:
        """Run a model."""
        tracing = self._service.tracing
        trace = None
        if tracing is not None:
            trace = tracing.begin(request.headers.get(b"traceparent"), "rest")
        if trace is None:
            return await self._infer(request, RunHandle(), None)
        try:
            return await self._infer(request, RunHandle(trace.timing), trace)
        except BaseException as error:
            trace.end(error)
            raise

    async def _infer(self, request: Request, handle: RunHandle, trace: Trace | None) -> Response:
        who = self._access.admit(Scope.RUN, request)
        self._service.get(request.name, who)  # before the body is read for nothing
        if trace is not None:
            trace.model = self._service.shelves.public_name(request.name)
        header_length = request.json_length()
        coding = choose_coding(request.headers.get(b"accept-encoding"))

        def encode(call: InferenceCall, record: ModelRecord, outputs: list[Tensor]) -> Answer:
            answer = build_answer(call, request.name, record, outputs)
            facts = gather_facts(call, record, outputs, body, answer)
            packed = compress(answer.parts, coding) if coding else None
            if packed is None:
                return answer if facts is None else replace(answer, facts=facts)
            return replace(answer, facts=facts, parts=packed, coding=coding)

        traffic = self._service.traffic
        with self._bodies.share() as share:
            began = time.perf_counter_ns()
            body = await request.body(limit=self._limits.max_body_bytes, share=share)
            ended = time.perf_counter_ns()
            traffic.read.add(ended - began)
            if trace is not None:
                trace.add("read", began, ended)
            decode, work = _decoder(body, header_length)
            with GoneWatch(request, handle.terminate):
                answer: Answer = await self._service.infer(
                    request.name,
                    decode,
                    encode,
                    who=who,
                    work=work,
                    handle=handle,
                    caller=request.caller,
                )
        headers: tuple[tuple[bytes, bytes], ...] = ()
        if answer.facts is not None:
            headers = (await self._receipts.sign(answer.facts),)
        if answer.coding is not None:
            headers += ((b"content-encoding", answer.coding),)
        if answer.header_length is None:
            return Response(200, answer.parts, headers=headers, written=traffic.write, trace=trace)
        headers += ((_HEADER_LENGTH, b"%d" % answer.header_length),)
        return Response(
            200, answer.parts, _BINARY, headers=headers, written=traffic.write, trace=trace
        )


class Models:
    """Handlers for the models that are served; see `attested_app` for the arguments."""

    def __init__(
        self, service: Service, access: Access, limits: Limits, receipts: ReceiptDesk
    ) -> None:
        self._service = service
        self._access = access
        self._limits = limits
        self._receipts = receipts

    async def all(self, request: Request) -> Response:
        """List the models, one entry for each name."""
        found = self._service.entries(self._access.admit(Scope.LIST, request))
        return json_response({"models": [_describe(entry.record, name) for name, entry in found]})

    async def put(self, request: Request) -> Response:
        """Receive a model."""
        who = self._access.admit(Scope.UPLOAD, request)
        if request.coding != IDENTITY:
            error = InvalidInput("expected a model without Content-Encoding")
            return error_response(error, status=415)
        size = request.content_length
        if size is not None and size > self._limits.max_model_bytes:
            msg = f"expected a model of at most {self._limits.max_model_bytes} bytes, came {size}"
            raise LimitExceeded(msg)
        query = request.query()
        replaces = _flag(query, "replace")
        options = parse_options(query, beside=_UPLOAD_PARAMETERS)
        wish = parse_wish({**query, "receipt": _flag(query, "receipt")})
        sha256 = request.headers.get(b"x-blindai-sha256")
        record, is_new = await self._service.upload(
            request.name,
            request.chunks(),
            who=who,
            size=size,
            sha256=None if sha256 is None else sha256.decode("latin-1"),
            replace=replaces,
            options=options,
        )
        response = json_response(_describe(record, request.name), status=201 if is_new else 200)
        if wish is None:
            return response
        digest = bytes.fromhex(record.sha256)
        form, told = str(record.form), digest_parts(response.body)
        facts = Facts(wish, Kind.UPLOAD, digest, form, (), (), digest, told)
        return replace(response, headers=(await self._receipts.sign(facts),))

    async def hand_over(self, request: Request) -> Response:
        """Let the code with other measurements open the sealed models."""
        who = self._access.admit(Scope.ADMIN, request)
        with ByteBudget(_MAX_MEASUREMENTS).share() as share:
            body = await request.body(limit=_MAX_MEASUREMENTS, share=share)
        measurements = _parse_measurements(body)
        try:
            await self._service.hand_over(measurements, who)
        except ConfigurationError as error:
            raise InvalidInput(str(error)) from error
        return Response(204)

    async def withdraw_handover(self, request: Request) -> Response:
        """Seal the models anew, so that no other code can open them any more."""
        who = self._access.admit(Scope.ADMIN, request)
        await self._service.withdraw_handover(who)
        return Response(204)

    async def delete(self, request: Request) -> Response:
        """Take a model's name away."""
        who = self._access.admit(Scope.DELETE, request)
        await self._service.delete(request.name, who)
        return Response(204)


def _parse_measurements(body: bytes | memoryview) -> dict[str, bytes]:
    try:
        found = msgspec.json.decode(body, type=_Measurements).measurements
        return {name: bytes.fromhex(value) for name, value in found.items()}
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        msg = 'expected {"measurements": {name: value in hexadecimal, …}}'
        raise InvalidInput(msg) from error


def _flag(query: Mapping[str, str], name: str) -> bool:
    text = query.get(name, "false")
    if text not in {"true", "false"}:
        msg = f"{name}: expected true or false"
        raise InvalidInput(msg)
    return text == "true"


def _describe(record: ModelRecord, name: str) -> dict[str, object]:
    return {
        "name": name,
        "sha256": record.sha256,
        "size": record.size,
        "inputs": describe_specs(record.inputs),
        "outputs": describe_specs(record.outputs),
        "engine": record.engine,
        "precision": record.form.precision,
        "form": str(record.form),
        "deviation": record.deviation,
        "options": record.options.dump(),
        "loaded_at": record.loaded_at,
    }


def _decoder(
    body: bytes | memoryview, header_length: int | None
) -> tuple[Callable[[], InferenceCall], int]:
    """Return what reads a request, and how many bytes it has to look at one by one."""
    work = len(body) if header_length is None else header_length
    if work > SMALL:
        return partial(parse_request, body, header_length), work
    # Only the JSON says what it takes to read the tensors behind it.
    envelope = open_envelope(body, header_length)
    return partial(read_call, envelope), envelope.work
