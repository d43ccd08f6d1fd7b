"""HTTP between uvicorn and the handlers of a port: raw ASGI, no framework.

Always true: paths are looked up in one table, as bytes, before any decoding; every limit is
on bytes actually read; an error becomes a status in one place, with a message and never a
traceback; what was not read of a request ends its connection.

Specification: RFC 9110 and RFC 9112; ASGI 3.0, HTTP 2.3.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import msgspec

from blindai.errors import (
    AccessDenied,
    BlindAIError,
    ConnectionFailed,
    DeadlineExceeded,
    InferenceError,
    InvalidInput,
    InvalidModel,
    LimitExceeded,
    ModelConflict,
    ModelNotFound,
    Overloaded,
)
from blindai.server.encoding import CODINGS
from blindai.server.events import log_event, place_of
from blindai.server.request import Request, linger
from blindai.server.service import State

if TYPE_CHECKING:
    from blindai.server.request import Receive
    from blindai.server.service import Service

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# The first class of an error's bases that stands here decides.
STATUS: Final[Mapping[type[BlindAIError], int]] = {
    InvalidInput: 400,
    AccessDenied: 401,
    ModelNotFound: 404,
    ModelConflict: 409,
    LimitExceeded: 413,
    InvalidModel: 422,
    InferenceError: 500,
    Overloaded: 503,
    DeadlineExceeded: 504,
    BlindAIError: 500,
}
_JSON: Final = b"application/json"
# Below, one copy is cheaper than one more write.
_JOIN_BELOW: Final = 64 << 10
# TLS encrypts a write as a whole into memory before it sends: large ones are cut.
_WRITE_BYTES: Final = 256 << 10


@dataclass(frozen=True, slots=True)
class Response:
    """What a handler answers.

    Attributes:
        status: Of HTTP.
        body: In parts, so that large ones need no copy.
        content_type: Of the body.
        headers: Further ones, names in lower case.
    """

    status: int
    body: Sequence[bytes | memoryview] = ()
    content_type: bytes = _JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


Handler = Callable[[Request], Awaitable[Response]]
# Path, with {name} where a name stands → method → handler.
Routes = Mapping[bytes, Mapping[str, Handler]]


def json_response(document: object, *, status: int = 200) -> Response:
    """Return a response with a JSON body."""
    return Response(status, (msgspec.json.encode(document),))


def error_response(error: BlindAIError, *, status: int | None = None) -> Response:
    """Return the response that tells a client of an error.

    Args:
        error: Its message and the name of its class are sent.
        status: Instead of the one in `STATUS`.
    """
    if status is None:
        status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(error, Overloaded):
        headers = ((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after))),)
    elif isinstance(error, AccessDenied):
        headers = ((b"www-authenticate", b"Bearer"),)
    document = {"error": str(error), "type": type(error).__name__}
    return Response(status, (msgspec.json.encode(document),), headers=headers)


class App:
    """An ASGI application: one for each port, and for each identity.

    Args:
        service: Says where in its life the server is.
        always: Served from the first moment to the last.
        ready: Served while the server is ready.
    """

    def __init__(self, service: Service, *, always: Routes, ready: Routes) -> None:
        self._service = service
        self._always = always
        self._ready = ready

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request; see ASGI."""
        request = Request(scope, receive)
        try:
            response = _check_framing(request) or await self._handle(request)
        except ConnectionFailed:
            return  # nobody is left to be answered
        except BlindAIError as error:
            response = error_response(error)
        except Exception as error:  # noqa: BLE001 - the client gets an answer, the log a place
            error_id = secrets.token_hex(8)
            log_event(
                "internal_error",
                level="error",
                error_id=error_id,
                error=type(error).__name__,
                place=place_of(error),
            )
            response = error_response(InferenceError(f"internal error {error_id}"))
        await self._respond(request, response, send)

    async def _handle(self, request: Request) -> Response:
        found = self._find(request, self._always)
        if found is None:
            found = self._find(request, self._ready)
            if found is not None and self._service.state is not State.READY:
                msg = f"the server is {self._service.state.value}"
                raise Overloaded(msg)
        if found is None:
            return error_response(InvalidInput("no such path; see /v2"), status=404)
        handler = found.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            allowed = ", ".join(found)
            response = error_response(InvalidInput(f"expected {allowed} here"), status=405)
            return Response(response.status, response.body, headers=((b"allow", allowed.encode()),))
        return await handler(request)

    def _find(self, request: Request, routes: Routes) -> Mapping[str, Handler] | None:
        """Return the methods of a path, and give the request the name that stands in it."""
        path: bytes = request.raw_path
        if (found := routes.get(path)) is not None:
            return found
        # /v2/models/{name}… and /blindai/v1/models/{name}: a name stands third or fourth.
        parts = path.split(b"/")
        for position in range(3, min(len(parts), 5)):
            name = parts[position]
            parts[position] = b"{name}"
            if (found := routes.get(b"/".join(parts))) is not None:
                request.name = unquote(name, errors="replace")
                return found
            parts[position] = name
        return None

    async def _respond(self, request: Request, response: Response, send: Send) -> None:
        body = response.body
        length = sum(map(len, body))
        if length < _JOIN_BELOW and len(body) != 1:
            body = (b"".join(body),)
        headers = list(response.headers)
        if response.status != HTTPStatus.NO_CONTENT:
            headers += [
                (b"content-type", response.content_type),
                (b"content-length", b"%d" % length),
            ]
        unread = request.unread
        if unread or self._service.state is State.STOPPING:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        if len(body) == 1 and length <= _WRITE_BYTES and not unread:
            await send({"type": "http.response.body", "body": body[0], "more_body": False})
            return
        for part in _slices(body):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        if unread:
            await linger(request)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _slices(parts: Sequence[bytes | memoryview]) -> Iterator[memoryview]:
    for part in parts:
        view = memoryview(part)
        for start in range(0, len(view), _WRITE_BYTES):
            yield view[start : start + _WRITE_BYTES]


def _check_framing(request: Request) -> Response | None:
    """Refuse what a proxy in front may read in another way than this server does."""
    headers = request.headers
    if request.http_version == "1.1" and b"host" not in headers:
        return error_response(InvalidInput("expected a Host header"))
    if request.repeated:
        names = ", ".join(sorted(name.decode() for name in request.repeated))
        return error_response(InvalidInput(f"expected once, came more often: {names}"))
    encoding = headers.get(b"transfer-encoding")
    if encoding is not None and (encoding.lower() != b"chunked" or request.http_version != "1.1"):
        return error_response(InvalidInput("expected no Transfer-Encoding but chunked, of 1.1"))
    if b"content-encoding" in headers and request.coding not in CODINGS:
        names = ", ".join(sorted(coding.decode() for coding in CODINGS))
        error = InvalidInput(f"expected a Content-Encoding of {names}, one of them alone")
        return error_response(error, status=415)
    return None


async def wait_for_stop(request: Request, stop: Callable[[], None]) -> None:
    """Call `stop` when the client of a request that was read goes away."""
    if await request.gone():
        stop()


class GoneWatch:
    """Stops work whose client has gone; costs short work nothing but a timer.

    Use it in a `with` statement around the work.

    Args:
        request: Whose body was read.
        stop: What to do then.
        after: Seconds before it begins to watch.
    """

    __slots__ = ("_after", "_request", "_stop", "_task", "_timer")

    def __init__(self, request: Request, stop: Callable[[], None], *, after: float = 0.05) -> None:
        self._request = request
        self._stop = stop
        self._after = after
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._after, self._watch)

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _watch(self) -> None:
        self._task = asyncio.create_task(wait_for_stop(self._request, self._stop))
