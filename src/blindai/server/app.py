"""HTTP between the connections and the handlers of a port: no framework.

Always true: paths are looked up in one table, as bytes, before any decoding; every limit is
on bytes actually read; an error becomes a status in one place, with a message and never a
traceback; what was not read of a request ends its connection.

Specification: RFC 9110 and RFC 9112.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol
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
    NotPermitted,
    Overloaded,
    RateLimited,
    SealedDataError,
)
from blindai.server.encoding import CODINGS
from blindai.server.events import log_event, place_of
from blindai.server.request import Request, linger
from blindai.server.service import State

if TYPE_CHECKING:
    from blindai.inference.histogram import Histogram
    from blindai.server.exchange import Exchange
    from blindai.server.service import Service
    from blindai.server.tracing import Trace

# The first class of an error's bases that stands here decides.
STATUS: Final[Mapping[type[BlindAIError], int]] = {
    InvalidInput: 400,
    AccessDenied: 401,
    NotPermitted: 403,
    ModelNotFound: 404,
    ModelConflict: 409,
    LimitExceeded: 413,
    InvalidModel: 422,
    SealedDataError: 503,
    InferenceError: 500,
    Overloaded: 503,
    RateLimited: 429,
    DeadlineExceeded: 504,
    BlindAIError: 500,
}
_JSON: Final = b"application/json"
# A member of an enumeration is looked up in microseconds.
_READY: Final = State.READY
_STOPPING: Final = State.STOPPING
_NO_CONTENT: Final = int(HTTPStatus.NO_CONTENT)
# Below, one copy is cheaper than one more write.
_JOIN_BELOW: Final = 64 << 10
_MAX_PATHS: Final = 256
_PATH_BYTES: Final = 256
# TLS encrypts a write as a whole into memory before it sends: large ones are cut.
_WRITE_BYTES: Final = 256 << 10


class Stream(Protocol):
    """A body that is made while it is sent."""

    async def next(self) -> Sequence[bytes | memoryview]:
        """Return what comes next, in parts; nothing after the last. No `BlindAIError` is raised."""
        ...

    def close(self) -> None:
        """Let go of what it holds; called once, however it ended."""
        ...


@dataclass(frozen=True, slots=True)
class Response:
    """What a handler answers.

    Attributes:
        status: Of HTTP.
        body: In parts, so that large ones need no copy.
        content_type: Of the body.
        headers: Further ones, names in lower case.
        stream: Makes the body while it is sent; instead of `body`.
        written: Counts how long it took to send; `None`: nobody wants to know.
        trace: Of the request; ends when the answer is sent.
    """

    status: int
    body: Sequence[bytes | memoryview] = ()
    content_type: bytes = _JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()
    stream: Stream | None = None
    written: Histogram | None = None
    trace: Trace | None = None


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
    elif isinstance(error, AccessDenied) and not isinstance(error, NotPermitted):
        headers = ((b"www-authenticate", b"Bearer"),)
    document = {"error": str(error), "type": type(error).__name__}
    return Response(status, (msgspec.json.encode(document),), headers=headers)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a path leads.

    Attributes:
        methods: That it has.
        name: What stands in it for {name}, decoded.
        is_always: Whether it is served before and after the models are.
    """

    methods: Mapping[str, Handler]
    name: str
    is_always: bool


class App:
    """Answers requests: one for each port, and for each identity.

    Args:
        service: Says where in its life the server is.
        always: Served from the first moment to the last.
        ready: Served while the server is ready.
        answers: Status of HTTP → how many answers had it; to be counted on.
    """

    def __init__(
        self,
        service: Service,
        *,
        always: Routes,
        ready: Routes,
        answers: dict[int, int] | None = None,
    ) -> None:
        self._service = service
        self._answers: dict[int, int] = {} if answers is None else answers
        self._always = always
        self._ready = ready
        # The paths that were found lately: few, and the same ones again and again.
        self._places: dict[bytes, _Place] = {}

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        request = Request(exchange)
        try:
            refusal = _check_framing(request)
            if refusal is not None:
                # What comes next may be something else to a proxy in front.
                exchange.keep_alive = False
            response = refusal or await self._handle(request)
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
        if response.written is None:
            await self._respond(request, response, exchange)
            return
        began = time.perf_counter_ns()
        await self._respond(request, response, exchange)
        ended = time.perf_counter_ns()
        response.written.add(ended - began)
        if response.trace is not None:
            response.trace.add("write", began, ended)
            response.trace.end()

    async def _handle(self, request: Request) -> Response:
        path = request.raw_path
        place = self._places.get(path)
        if place is None:
            place = self._find(path)
            if place is None:
                return error_response(InvalidInput("no such path; see /v2"), status=404)
            self._remember(path, place)
        if self._service.state is not _READY and not place.is_always:
            msg = f"the server is {self._service.state.value}"
            raise Overloaded(msg)
        request.name = place.name
        methods = place.methods
        handler = methods.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            allowed = ", ".join(methods)
            response = error_response(InvalidInput(f"expected {allowed} here"), status=405)
            return Response(response.status, response.body, headers=((b"allow", allowed.encode()),))
        return await handler(request)

    def _find(self, path: bytes) -> _Place | None:
        for routes in (self._always, self._ready):
            is_always = routes is self._always
            if (methods := routes.get(path)) is not None:
                return _Place(methods, "", is_always)
            # /v2/models/{name}… and /blindai/v1/models/{name}: a name stands third or fourth.
            parts = path.split(b"/")
            for position in range(3, min(len(parts), 5)):
                name = parts[position]
                parts[position] = b"{name}"
                if (methods := routes.get(b"/".join(parts))) is not None:
                    return _Place(methods, unquote(name, errors="replace"), is_always)
                parts[position] = name
        return None

    def _remember(self, path: bytes, place: _Place) -> None:
        if len(path) <= _PATH_BYTES:
            if len(self._places) >= _MAX_PATHS:
                self._places.clear()
            self._places[path] = place

    async def _respond(self, request: Request, response: Response, exchange: Exchange) -> None:
        self._answers[response.status] = self._answers.get(response.status, 0) + 1
        if response.stream is not None:
            await _send_stream(response, response.stream, exchange)
            return
        body = response.body
        length = sum(map(len, body))
        headers = response.headers
        if response.status != _NO_CONTENT:
            headers = (*headers, (b"content-type", response.content_type))
        unread = request.unread and not exchange.is_exhausted
        if unread or self._service.state is _STOPPING:
            exchange.keep_alive = False
        if length < _JOIN_BELOW and not unread:
            await exchange.respond(response.status, headers, b"".join(body))
            return
        head = exchange.start(response.status, headers, length)
        for part in _slices(body) if length else (b"",):
            await exchange.send(head, part)
            head = b""
        if unread:
            await linger(request)
        exchange.end()


async def _send_stream(response: Response, stream: Stream, exchange: Exchange) -> None:
    """Send parts as they are made; the next one is made when there is room for it."""
    try:
        headers = (*response.headers, (b"content-type", response.content_type))
        head = exchange.start(response.status, headers, None)
        while parts := await stream.next():
            await exchange.send_chunk(head, parts)
            head = b""
        exchange.end()
    except ConnectionFailed:
        pass  # nobody is left to be answered
    finally:
        stream.close()


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


class GoneWatch:
    """Stops work whose client goes away meanwhile.

    Use it in a `with` statement around the work, after the request's body was read.

    Args:
        request: That is worked on.
        stop: What to do then.
    """

    __slots__ = ("_request", "_stop")

    def __init__(self, request: Request, stop: Callable[[], None]) -> None:
        self._request = request
        self._stop = stop

    def __enter__(self) -> None:
        self._request.watch(self._stop)

    def __exit__(self, *_: object) -> None:
        self._request.watch(None)
