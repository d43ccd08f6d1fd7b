"""The RPCs of inference.GRPCInferenceService: each says and does what its REST twin does.

Specification: Open Inference Protocol (KServe v2), gRPC, with Triton's extensions for
configuration, statistics, the model repository and streams.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from blindai.errors import BlindAIError, InvalidInput
from blindai.inference.engine import RunHandle
from blindai.server.access import Scope
from blindai.server.grpc.call import Method
from blindai.server.grpc.inference import (
    build_response,
    check_version,
    open_envelope,
    read_call,
    read_parameters,
    wrap_error,
    wrap_response,
)
from blindai.server.grpc.introspection import INFERENCE, introspection_methods
from blindai.server.grpc.messages import fill_message, message_class, parse_message
from blindai.server.grpc.status import Status, StatusCode, status_of
from blindai.server.model_config import describe_config, parse_config, platform_of
from blindai.server.open_inference import (
    EXTENSIONS,
    MODEL_VERSION,
    Answer,
    describe_specs,
    gather_facts,
)
from blindai.server.public import VERSION
from blindai.server.receipts import ReceiptDesk
from blindai.server.repository import MODEL_FILE, LoadCall, load_model
from blindai.server.service import State
from blindai.server.statistics import collect_statistics, describe_statistics
from blindai.server.unsupported import LOGGING, SHARED_MEMORY, TRACE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blindai.inference.records import ModelRecord
    from blindai.inference.tensors import Tensor
    from blindai.server.access import Access, Principal
    from blindai.server.grpc.call import Call, Parts
    from blindai.server.grpc.inference import Envelope
    from blindai.server.grpc.request import Message
    from blindai.server.identity import EvidenceDesk
    from blindai.server.open_inference import InferenceCall
    from blindai.server.service import Service

# Of a stream's requests, at the same time; answers come in the order of the requests.
_MAX_AHEAD: Final = 16
# A request's bytes up to which parsing takes less than the hop to a thread, or little more.
_SMALL: Final = 64 << 10
_SHOWN: Final = 200
_REFUSED: Final = {
    "SystemSharedMemoryStatus": SHARED_MEMORY,
    "SystemSharedMemoryRegister": SHARED_MEMORY,
    "SystemSharedMemoryUnregister": SHARED_MEMORY,
    "CudaSharedMemoryStatus": SHARED_MEMORY,
    "CudaSharedMemoryRegister": SHARED_MEMORY,
    "CudaSharedMemoryUnregister": SHARED_MEMORY,
    "TraceSetting": TRACE,
    "LogSettings": LOGGING,
}

# Turns a parsed request, and who sent it, into what the answer says.
_Answerer = Callable[[Any, "Principal"], Awaitable["Mapping[str, object]"]]


def all_methods(service: Service, desk: EvidenceDesk, access: Access) -> Mapping[bytes, Method]:
    """Return all methods that are served, by path.

    Args:
        service: Runs models.
        desk: Evidence of the identity whose key the connections end at.
        access: Who may do what.
    """
    inference = _Inference(service, ReceiptDesk(desk))
    about = _About(service)
    repository = _Repository(service)

    def may(scope: Scope) -> Callable[[Call], Principal]:
        return partial(access.admit, scope)

    run = may(Scope.RUN)

    methods = {
        "ServerLive": Method(unary=_plain("ServerLive", about.live), always=True),
        "ServerReady": Method(unary=_plain("ServerReady", about.ready), always=True),
        "ServerMetadata": Method(unary=_plain("ServerMetadata", about.server), always=True),
        "ModelReady": Method(unary=_plain("ModelReady", about.model_ready), check=run),
        "ModelMetadata": Method(unary=_plain("ModelMetadata", about.model), check=run),
        "ModelConfig": Method(unary=_plain("ModelConfig", about.config), check=run),
        "ModelStatistics": Method(unary=_plain("ModelStatistics", about.statistics), check=run),
        "ModelInfer": Method(unary=inference.infer, check=run),
        "ModelStreamInfer": Method(stream=inference.stream, check=run),
        "RepositoryIndex": Method(
            unary=_plain("RepositoryIndex", repository.index), check=may(Scope.LIST)
        ),
        "RepositoryModelLoad": Method(
            unary=_plain("RepositoryModelLoad", repository.load), check=may(Scope.UPLOAD)
        ),
        "RepositoryModelUnload": Method(
            unary=_plain("RepositoryModelUnload", repository.unload), check=may(Scope.DELETE)
        ),
    }
    for name, why in _REFUSED.items():
        methods[name] = Method(end=Status(StatusCode.UNIMPLEMENTED, why))
    paths = {f"/{INFERENCE}/{name}".encode(): method for name, method in methods.items()}
    return {**paths, **introspection_methods(service)}


def _plain(name: str, answer: _Answerer) -> Callable[[Call, Message], Awaitable[Parts]]:
    """Return what serves an RPC whose messages are small, or whose time does not matter."""
    request_class = message_class(f"inference.{name}Request")
    response_class = message_class(f"inference.{name}Response")

    async def serve(call: Call, message: Message) -> Parts:
        if len(message) <= _SMALL:
            request = parse_message(request_class, message)
        else:
            call.hold(2 * len(message))  # for the copies that protobuf makes
            request = await asyncio.to_thread(parse_message, request_class, message)
        return [fill_message(response_class, await answer(request, call.who)).SerializeToString()]

    return serve


class _Inference:
    """Running models; see `all_methods` for the arguments."""

    def __init__(self, service: Service, receipts: ReceiptDesk) -> None:
        self._service = service
        self._receipts = receipts

    async def infer(self, call: Call, message: Message) -> Parts:
        """Run a model once."""
        service, now = self._service, time.perf_counter_ns()
        service.traffic.read.add(now - call.began)
        call.written = service.traffic.write
        if service.tracing is not None:
            call.trace = service.tracing.begin(call.head.traceparent, "grpc")
        if call.trace is None:
            return await self._infer(call, message)
        call.trace.add("read", call.began, now)
        try:
            return await self._infer(call, message)
        except BaseException as error:
            call.trace.end(error)
            raise

    async def _infer(self, call: Call, message: Message) -> Parts:
        answer = await self._run(call, message, open_envelope(message))
        if answer.facts is not None:
            call.metadata = (await self._receipts.sign(answer.facts),)
        return answer.parts

    async def stream(self, call: Call) -> None:
        """Run a model for each message, some at the same time, and answer in order."""
        answers: asyncio.Queue[asyncio.Task[Parts] | Status | None] = asyncio.Queue(_MAX_AHEAD)
        async with asyncio.TaskGroup() as group:

            async def read() -> None:
                before: asyncio.Task[Parts] | None = None
                try:
                    async for message in call.messages():
                        before = group.create_task(self._run_one(call, message, before))
                        await answers.put(before)
                except BlindAIError as error:
                    await answers.put(status_of(error))
                else:
                    await answers.put(None)

            group.create_task(read())
            while (answer := await answers.get()) is not None:
                if isinstance(answer, Status):
                    call.finish(answer)
                    return
                await call.send(await answer)

    async def _run_one(
        self, call: Call, message: Message, before: asyncio.Task[Parts] | None
    ) -> Parts:
        """Return the answer to one message of a stream; an error is an answer too."""
        request_id = ""
        try:
            call.admit()
            envelope = open_envelope(message)
            request_id = envelope.id
            if before is not None and envelope.may_be_step:
                # Clients send steps without waiting for the answers.
                await asyncio.wait((before,))
            answer = await self._run(call, message, envelope)
            if answer.facts is not None:
                msg = "parameters.receipt: a stream has no receipts, ask by ModelInfer"
                raise InvalidInput(msg)
        except BlindAIError as error:
            return wrap_error(request_id, str(error))
        finally:
            call.forget(message)
        return wrap_response(answer.parts)

    async def _run(self, call: Call, message: Message, envelope: Envelope) -> Answer:
        def encode(asked: InferenceCall, record: ModelRecord, outputs: list[Tensor]) -> Answer:
            answer = Answer(build_response(asked, envelope.model, record, outputs), None)
            if asked.receipt is None:
                return answer
            facts = gather_facts(asked, record, outputs, message, answer)
            return Answer(answer.parts, None, facts)

        handle = RunHandle()
        if call.trace is not None:
            call.trace.model = self._service.shelves.public_name(envelope.model)
            handle.timing = call.trace.timing
        return await self._service.infer(
            envelope.model,
            partial(read_call, envelope, call.time_left),
            encode,
            who=call.who,
            work=envelope.work,
            handle=handle,
            caller=call.caller,
        )


class _About:
    """What there is; see `all_methods` for the arguments."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def live(self, _: Any, __: Principal) -> Mapping[str, object]:
        return {"live": True}

    async def ready(self, _: Any, __: Principal) -> Mapping[str, object]:
        return {"ready": self._service.state is State.READY}

    async def server(self, _: Any, __: Principal) -> Mapping[str, object]:
        return {"name": "blindai", "version": VERSION, "extensions": EXTENSIONS}

    async def model_ready(self, request: Any, who: Principal) -> Mapping[str, object]:
        self._record(request, who)
        return {"ready": True}

    async def model(self, request: Any, who: Principal) -> Mapping[str, object]:
        record = self._record(request, who)
        return {
            "name": request.name,
            "versions": [MODEL_VERSION],
            "platform": platform_of(record),
            "inputs": describe_specs(record.inputs),
            "outputs": describe_specs(record.outputs),
        }

    async def config(self, request: Any, who: Principal) -> Mapping[str, object]:
        return {"config": describe_config(request.name, self._record(request, who))}

    async def statistics(self, request: Any, who: Principal) -> Mapping[str, object]:
        check_version(request.version)
        if not request.name:
            who.check(Scope.LIST)
        found = collect_statistics(self._service, who, request.name or None)
        stats = [describe_statistics(name, MODEL_VERSION, served) for name, served in found]
        return {"model_stats": stats}

    def _record(self, request: Any, who: Principal) -> ModelRecord:
        check_version(request.version)
        return self._service.get(request.name, who).record


class _Repository:
    """What is served; see `all_methods` for the arguments."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def index(self, _: Any, who: Principal) -> Mapping[str, object]:
        return {
            "models": [
                {"name": name, "version": MODEL_VERSION, "state": "READY", "reason": ""}
                for name, _ in self._service.entries(who)
            ]
        }

    async def load(self, request: Any, who: Principal) -> Mapping[str, object]:
        call = _parse_load(read_parameters(request.parameters))
        await load_model(self._service, who, request.model_name, call)
        return {}

    async def unload(self, request: Any, who: Principal) -> Mapping[str, object]:
        for name, value in read_parameters(request.parameters).items():
            if name != "unload_dependents" or type(value) is not bool:
                msg = f"parameters: expected 'unload_dependents', came {name[:_SHOWN]!r}"
                raise InvalidInput(msg)
        await self._service.delete(request.model_name, who)
        return {}


def _parse_load(parameters: Mapping[str, Any]) -> LoadCall:
    """Read a request to load a model; as REST's, but the file is not in base64."""
    kinds = {"config": str, MODEL_FILE: bytes}
    for name, value in parameters.items():
        if not isinstance(value, kinds.get(name, type(None))):
            msg = (
                f"parameters: expected 'config', a string, or {MODEL_FILE!r}, bytes; "
                f"came {name[:_SHOWN]!r}"
            )
            raise InvalidInput(msg)
    config = parameters.get("config")
    return LoadCall(None if config is None else parse_config(config), parameters.get(MODEL_FILE))
