"""Limits on a connection that have to be kept before an application sees a request.

uvicorn's protocol bounds neither headers nor the time that a client takes. This one does:
bytes and time of headers, rate of bodies in both directions, pipelined requests, connections.
Times are looked at once per tick of the listener for all connections together, so a request
pays for no timer of its own.

Specification: RFC 9112 §2 to §7 (framing), RFC 9110 §15.5 (the statuses).
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from blindai.errors import BlindAIError, InvalidInput, LimitExceeded, Overloaded

if TYPE_CHECKING:
    import asyncio

    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from blindai.server.config import Limits

# ASGI extension: ends a connection at once. uvicorn has only the polite way, in which TLS
# reads, for as long as it waits for the peer's good-bye, whatever the peer sends.
ABORT: Final = "blindai.abort"
# What a connection may send ahead of the answers: each waiting request costs memory.
_MAX_PIPELINED: Final = 16
# ": " and the end of the line.
_HEADER_OVERHEAD: Final = 4
# Between the refusal and the end of the connection, so that the refusal can be read.
_LINGER_SECONDS: Final = 1.0
# For a closing connection to send what it still has to send.
_CLOSE_SECONDS: Final = 15.0


class BoundedProtocol(HttpToolsProtocol):
    """One connection.

    Args:
        limits: What it may do.
        config: Of uvicorn; has the application.
        server_state: Of uvicorn; shared by the connections of a port.
    """

    def __init__(self, limits: Limits, config: Config, server_state: ServerState) -> None:
        super().__init__(config, server_state, {})
        self._limits = limits
        now = self.loop.time()
        self._problem: tuple[BlindAIError, HTTPStatus] | None = None
        self._refused_at: float | None = None
        self._closing_at: float | None = None
        # The message that is being received.
        self._headers_since: float | None = now
        self._in_body = False
        self._header_bytes = 0
        # Raw bytes since the parser last got anywhere: bounds what it may hold back.
        self._overhead = 0
        self._progress = False
        # The body's rate, measured over windows of `body_timeout`.
        self._window_at = now
        self._window_bytes = 0
        # What waits to be sent, and since when it has been watched.
        self._pending = 0
        self._pending_at = now

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, unless there are too many connections already."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            error = Overloaded("the server has as many connections as it accepts")
            self._refuse(error, HTTPStatus.SERVICE_UNAVAILABLE)

    def data_received(self, data: bytes) -> None:
        """Take what the peer sent; after a refusal, drop it."""
        if self._refused_at is not None:
            return
        self._progress = False
        super().data_received(data)
        self._overhead = 0 if self._progress else self._overhead + len(data)
        if self._overhead > self._limits.max_header_bytes and self._refused_at is None:
            self._refuse(*self._too_many_bytes())

    def on_message_begin(self) -> None:
        """See the first byte of a request."""
        super().on_message_begin()
        self._progress = True
        self._header_bytes = 0
        self._headers_since = self.loop.time()
        # Who asks again has taken the answer before.
        self._pending = 0

    def on_url(self, url: bytes) -> None:
        """Take a part of the request line."""
        self._count_header(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. Trailers of a chunked body are counted and dropped (RFC 9110 §6.5.1)."""
        self._count_header(len(name) + len(value) + _HEADER_OVERHEAD)
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request to the application, or queue it behind others."""
        if self.parser.should_upgrade():
            # Behind an upgrade, parser and proxy may disagree about where a request ends.
            self._fail(InvalidInput("expected no CONNECT and no Upgrade"), HTTPStatus.BAD_REQUEST)
        if len(self.pipeline) >= _MAX_PIPELINED:
            error = Overloaded(f"expected at most {_MAX_PIPELINED} pipelined requests")
            self._fail(error, HTTPStatus.SERVICE_UNAVAILABLE)
        super().on_headers_complete()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope["extensions"] = {ABORT: self.transport.abort}
        self._progress = True
        self._headers_since = None
        self._in_body = True
        self._window_at = self.loop.time()
        self._window_bytes = 0

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._progress = True
        self._window_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """See the last byte of a request."""
        self._progress = True
        self._in_body = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser did not take; uvicorn calls this."""
        del msg  # ours say more
        error = InvalidInput("expected HTTP/1.1, came something else")
        self._refuse(*(self._problem or (error, HTTPStatus.BAD_REQUEST)))

    def check(self, now: float) -> None:
        """Cut the connection off if the peer is too slow; called once per tick.

        Args:
            now: The loop's time.
        """
        if self.transport.is_closing():
            self._closing_at = self._closing_at or now
            if now - self._closing_at > (_CLOSE_SECONDS if self._refused_at is None else 0):
                self.transport.abort()
        elif self._refused_at is not None:
            if not self._is_busy() and now - self._refused_at > _LINGER_SECONDS:
                self.transport.close()
        elif self._is_late(now):
            self._refuse(LimitExceeded("the request came too slowly"), HTTPStatus.REQUEST_TIMEOUT)
            self.transport.close()
        else:
            self._check_sending(now)

    def _is_late(self, now: float) -> bool:
        """Return whether headers or body take too long."""
        if self._headers_since is not None:
            waited = now - self._headers_since
            return not self._is_busy() and waited > self._limits.header_timeout
        if not self._in_body:
            return False
        if self.flow.read_paused:
            # It is the server that does not read.
            self._window_at, self._window_bytes = now, 0
        if now - self._window_at <= self._limits.body_timeout:
            return False
        late = self._window_bytes < self._limits.min_body_rate * self._limits.body_timeout
        self._window_at, self._window_bytes = now, 0
        return late

    def _check_sending(self, now: float) -> None:
        """Cut off a peer that does not take its answer."""
        pending = self.transport.get_write_buffer_size()
        # Where it grew, something had been taken before: the application waits for that.
        if not pending or pending > self._pending:
            self._pending, self._pending_at = pending, now
        elif now - self._pending_at > self._limits.body_timeout:
            if self._pending - pending < self._limits.min_body_rate * self._limits.body_timeout:
                self.transport.abort()
            self._pending, self._pending_at = pending, now

    def _is_busy(self) -> bool:
        """Return whether a request is waiting for its answer, or for the rest of it."""
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete and not cycle.disconnected

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > self._limits.max_header_bytes:
            self._fail(*self._too_many_bytes())

    def _too_many_bytes(self) -> tuple[BlindAIError, HTTPStatus]:
        most = self._limits.max_header_bytes
        error = LimitExceeded(f"expected headers of at most {most} bytes, came more")
        return error, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE

    def _fail(self, error: BlindAIError, status: HTTPStatus) -> None:
        """Make the parser stop; it is uvicorn then that calls `send_400_response`."""
        self._problem = error, status
        raise error

    def _refuse(self, error: BlindAIError, status: HTTPStatus) -> None:
        """Answer with an error, if an answer can be told apart from others, and take no more."""
        self._refused_at = self.loop.time()
        cycle: Any = self.cycle
        if self._is_busy():
            if not cycle.more_body:
                # What came before it was in order: that is answered, and nothing else.
                cycle.keep_alive = False
                return
            # The application waits for a body that will not come.
            cycle.disconnected = True
            cycle.message_event.set()
            if self.pipeline or cycle.response_started:
                self.transport.close()
                return
        body = msgspec.json.encode({"error": str(error), "type": type(error).__name__})
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        if isinstance(error, Overloaded):
            headers.append((b"retry-after", b"1"))
        lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode())]
        lines += [name + b": " + value for name, value in headers]
        self.transport.write(b"\r\n".join([*lines, b"", body]))
