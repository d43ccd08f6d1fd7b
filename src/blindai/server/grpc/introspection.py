"""gRPC's health service and server reflection.

Always true: health says what readiness says, of the server or of one service, and watching costs
nothing while nothing changes; reflection describes all that is served, to whoever asks.

Specification: grpc.health.v1; grpc.reflection.v1, and v1alpha, which older clients ask for.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from blindai.errors import InvalidInput, ModelNotFound
from blindai.server.grpc.call import Method
from blindai.server.grpc.messages import FILES, POOL, message_class, parse_message
from blindai.server.grpc.status import StatusCode
from blindai.server.service import State

if TYPE_CHECKING:
    from blindai.server.grpc.call import Call, Parts
    from blindai.server.grpc.request import Message
    from blindai.server.service import Service

INFERENCE: Final = "inference.GRPCInferenceService"
_HEALTH: Final = "grpc.health.v1.Health"
_REFLECTION: Final = ("grpc.reflection.v1", "grpc.reflection.v1alpha")
SERVICES: Final = (INFERENCE, _HEALTH, *(f"{name}.ServerReflection" for name in _REFLECTION))

_HEALTH_REQUEST: Final = message_class("grpc.health.v1.HealthCheckRequest")
_HEALTH_RESPONSE: Final = message_class("grpc.health.v1.HealthCheckResponse")
_SERVING, _NOT_SERVING, _SERVICE_UNKNOWN = 1, 2, 3
# Between two looks at a state that changes twice in a server's life.
_WATCH_SECONDS: Final = 0.5


def introspection_methods(service: Service) -> dict[bytes, Method]:
    """Return the methods of both services, by path."""
    health = _Health(service)
    methods = {
        f"/{_HEALTH}/Check": Method(unary=health.check, always=True),
        f"/{_HEALTH}/Watch": Method(stream=health.watch, always=True),
    }
    for package in _REFLECTION:
        reflection = _Reflection(package)
        path = f"/{package}.ServerReflection/ServerReflectionInfo"
        methods[path] = Method(stream=reflection.info, always=True)
    return {path.encode(): method for path, method in methods.items()}


class _Health:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def check(self, _call: Call, message: Message) -> Parts:
        """Say whether a service is served; the empty name is the server's."""
        status = self._status(parse_message(_HEALTH_REQUEST, message).service)
        if status == _SERVICE_UNKNOWN:
            msg = "no such service; reflection lists what there is"
            raise ModelNotFound(msg)
        return [_HEALTH_RESPONSE(status=status).SerializeToString()]

    async def watch(self, call: Call) -> None:
        """Say it now, and whenever it changes."""
        name = None
        async for message in call.messages():
            name = parse_message(_HEALTH_REQUEST, message).service
            call.forget(message)
        if name is None:
            msg = "expected one message, came none"
            raise InvalidInput(msg)
        last = None
        while True:
            status = self._status(name)
            if status != last:
                await call.send([_HEALTH_RESPONSE(status=status).SerializeToString()])
                last = status
            if self._service.state is State.STOPPING:
                return
            await asyncio.sleep(_WATCH_SECONDS)

    def _status(self, name: str) -> int:
        if name and name not in SERVICES:
            return _SERVICE_UNKNOWN
        return _SERVING if self._service.state is State.READY else _NOT_SERVING


class _Reflection:
    def __init__(self, package: str) -> None:
        self._request = message_class(f"{package}.ServerReflectionRequest")
        self._response = message_class(f"{package}.ServerReflectionResponse")

    async def info(self, call: Call) -> None:
        """Answer each question, in order."""
        async for message in call.messages():
            request = parse_message(self._request, message)
            response = self._response(valid_host=request.host, original_request=request)
            self._answer(request, response)
            call.forget(message)
            await call.send([response.SerializeToString()])

    def _answer(self, request: Any, response: Any) -> None:
        which = request.WhichOneof("message_request")
        file: str | None = None
        if which == "list_services":
            for name in SERVICES:
                response.list_services_response.service.add(name=name)
            return
        if which == "file_by_filename":
            file = request.file_by_filename
        elif which == "file_containing_symbol":
            file = _file_of(request.file_containing_symbol)
        elif which is None:
            self._refuse(response, StatusCode.INVALID_ARGUMENT, "expected a question, came none")
            return
        if file is None or file not in FILES:
            self._refuse(response, StatusCode.NOT_FOUND, "nothing here has this name")
            return
        # No file imports another.
        response.file_descriptor_response.file_descriptor_proto.append(FILES[file])

    def _refuse(self, response: Any, code: StatusCode, why: str) -> None:
        response.error_response.error_code = int(code)
        response.error_response.error_message = why


def _file_of(symbol: str) -> str | None:
    try:
        name: str = POOL.FindFileContainingSymbol(symbol).name
    except KeyError:
        return None
    return name
