"""One connection: HTTP/1.1 on llhttp, and the limits that have to be kept before a handler.

Always true: bytes and time of headers, the rate of bodies in both directions, requests sent
ahead and connections are bounded; after the first thing that is not beyond doubt, nothing more
of a connection is read. Times are looked at once per tick of the listener for all connections
together, so a request pays for no timer of its own.

What comes is received into one buffer of the port: it is taken out before the next read. The
rest of a large body of known length goes past the parser, into the memory where it stays.

Specification: RFC 9112 §2 to §7 and §9 (framing, connections), RFC 9110 §15.5 (the statuses).
docs/adr/0007-front-end.md says why this is not uvicorn's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import httptools
import msgspec

from blindai.channel.tls import peer_certificate
from blindai.errors import BlindAIError, InvalidInput, LimitExceeded, Overloaded
from blindai.server.events import log_event, place_of
from blindai.server.exchange import Exchange

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from blindai.server.config import Limits

# A read of TLS or TCP takes as much at most.
_BUFFER_BYTES: Final = 256 << 10
# What is left of a body from which on the parser costs more than doing without it.
_DIRECT_FROM: Final = 64 << 10
# Large answers go on while the kernel takes what was written before.
_HIGH_WATER: Final = 512 << 10
# What a connection may send ahead of the answers: each waiting request costs memory.
_MAX_PIPELINED: Final = 16
# ": " and the end of the line.
_HEADER_OVERHEAD: Final = 4
# Between the refusal and the end of the connection, so that the refusal can be read.
_LINGER_SECONDS: Final = 1.0
# For a closing connection to send what it still has to send.
_CLOSE_SECONDS: Final = 15.0


@dataclass(slots=True)
class Port:
    """What the connections of a port share.

    Attributes:
        limits: Of each of them.
        connections: Those that are open.
        tasks: Requests that are being answered.
        stamp: Headers of every answer, two lines.
        buffer: Holds what is being read, for the moment until it is taken out.
    """

    limits: Limits
    connections: set[BoundedProtocol] = field(default_factory=set)
    tasks: dict[Exchange, asyncio.Task[None]] = field(default_factory=dict)
    stamp: bytes = b""
    buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(_BUFFER_BYTES)))


class BoundedProtocol(asyncio.BufferedProtocol):
    """One connection.

    Args:
        port: That it came to.
        app: Answers one request, whatever happens.

    Attributes:
        transport: Of asyncio.
        loop: Of asyncio.
    """

    def __init__(self, port: Port, app: Callable[[Exchange], Awaitable[None]]) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self._port = port
        self._limits = port.limits
        self._app = app
        self._parser = httptools.HttpRequestParser(self)
        now = self.loop.time()
        self._problem: tuple[BlindAIError, HTTPStatus] | None = None
        self._refused_at: float | None = None
        self._closing_at: float | None = None
        # Exchanges: the one that is being answered, those behind it, the one being received.
        self._current: Exchange | None = None
        self._ahead: deque[Exchange] = deque()
        self._incoming: Exchange | None = None
        # The message that is being received.
        self._headers_since: float | None = now
        self._idle_since: float | None = None
        self._has_asked = False
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._repeated: list[bytes] = []
        self._header_bytes = 0
        self._max_header_bytes = port.limits.max_header_bytes
        # Of a body of known length; and whether they go past the parser, into a handler's memory.
        self._left = 0
        self._is_direct = False
        self._in_place = False
        # Raw bytes since the parser last got anywhere: bounds what it may hold back.
        self._overhead = 0
        self._progress = False
        # The body's rate, measured over windows of `body_timeout`.
        self._window_at = now
        self._window_bytes = 0
        # What waits to be sent, and since when it has been watched.
        self._pending = 0
        self._pending_at = now
        self._is_reading_paused = False
        self._drained: asyncio.Future[None] | None = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, unless there are too many connections already that are at work."""
        self.transport = transport
        transport.set_write_buffer_limits(_HIGH_WATER)
        self._port.connections.add(self)
        if len(self._port.connections) > self._limits.max_connections and not self._make_room():
            error = Overloaded("the server has as many connections as it accepts")
            self._refuse(error, HTTPStatus.SERVICE_UNAVAILABLE)

    def connection_lost(self, _error: Exception | None) -> None:
        """Tell whoever waits for it that the client is gone."""
        self._port.connections.discard(self)
        for exchange in (self._current, self._incoming, *self._ahead):
            if exchange is not None:
                exchange.lose()
        self._ahead.clear()
        self._incoming = None
        self.resume_writing()

    def get_buffer(self, _size: int) -> memoryview:
        """Return where to put what comes: where it stays, if that is known."""
        room = self._incoming.room if self._is_direct and self._incoming is not None else None
        self._in_place = room is not None
        return self._port.buffer if room is None else room

    def buffer_updated(self, count: int) -> None:
        """Take what the peer sent; after a refusal, drop it."""
        if self._refused_at is not None:
            return
        if self._is_direct:
            self._take_body(count)
        else:
            self._parse(self._port.buffer[:count])

    def eof_received(self) -> None:
        """Let the transport close: who sends no more is taken to be gone."""

    def pause_writing(self) -> None:
        """Make `drain` wait."""
        if self._drained is None:
            self._drained = self.loop.create_future()

    def resume_writing(self) -> None:
        """Let `drain` go on."""
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    def _make_room(self) -> bool:
        """End the connection that has waited longest for its client, if one waits.

        Those who never asked for anything go first: so whoever opens connections to keep others
        out keeps out their own.
        """
        waiting = [each for each in self._port.connections if each is not self and each.waits]
        if not waiting:
            return False
        longest = min(waiting, key=lambda each: each.seniority)
        self._port.connections.discard(longest)
        longest.abort()
        return True

    # What the parser calls.

    def on_message_begin(self) -> None:
        """See the first byte of a request."""
        self._progress = True
        self._target = b""
        self._headers = {}
        self._repeated = []
        self._header_bytes = 0
        self._headers_since = self.loop.time()
        self._idle_since = None
        # Who asks again has taken the answer before.
        self._pending = 0

    def on_url(self, url: bytes) -> None:
        """Take a part of the request line."""
        self._header_bytes += len(url)
        if self._header_bytes > self._max_header_bytes:
            self._fail(*self._too_many_bytes())
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. Trailers of a chunked body are counted and dropped (RFC 9110 §6.5.1)."""
        self._header_bytes += len(name) + len(value) + _HEADER_OVERHEAD
        if self._header_bytes > self._max_header_bytes:
            self._fail(*self._too_many_bytes())
        if self._incoming is None:
            name = name.lower()
            if name in self._headers:
                self._repeated.append(name)
            self._headers[name] = value

    def on_headers_complete(self) -> None:
        """Answer the request, or queue it behind others."""
        parser = self._parser
        version = parser.get_http_version()
        if version != "1.1" and version != "1.0":  # noqa: PLR1714 - compares faster
            error = InvalidInput(f"expected HTTP/1.1, came HTTP/{version}")
            self._fail(error, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
        if parser.should_upgrade():
            # Behind an upgrade, parser and proxy may disagree about where a request ends.
            self._fail(InvalidInput("expected no CONNECT and no Upgrade"), HTTPStatus.BAD_REQUEST)
        if len(self._ahead) >= _MAX_PIPELINED:
            full = Overloaded(f"expected at most {_MAX_PIPELINED} pipelined requests")
            self._fail(full, HTTPStatus.SERVICE_UNAVAILABLE)
        path, query = self._split_target()
        exchange = Exchange(
            self,
            parser.get_method().decode("ascii"),
            path,
            query,
            version,
            self._headers,
            repeated=self._repeated,
            keep_alive=version == "1.1" and parser.should_keep_alive(),
        )
        self._progress = True
        self._headers_since = None
        self._incoming = exchange
        if b"transfer-encoding" not in self._headers:
            # The parser has refused anything but digits.
            self._left = int(self._headers.get(b"content-length", 0))
        self._window_at, self._window_bytes = self.loop.time(), 0
        if self._current is None:
            self._answer(exchange)
        else:
            self._ahead.append(exchange)
            self.pause_reading()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._progress = True
        self._window_bytes += len(body)
        self._left -= len(body)
        if self._incoming is not None:
            self._incoming.feed(body)

    def on_message_complete(self) -> None:
        """See the last byte of a request."""
        self._progress = True
        exchange, self._incoming = self._incoming, None
        self._left = 0
        if exchange is not None:
            exchange.finish()

    # What an exchange calls.

    @property
    def stamp(self) -> bytes:
        """The headers that all answers have."""
        return self._port.stamp

    @property
    def peer(self) -> str:
        """The address at the other end; empty where it is gone."""
        return str((self.transport.get_extra_info("peername") or ("",))[0])

    @property
    def client_certificate(self) -> bytes | None:
        """The certificate at the other end, verified, as DER; `None`: there is none."""
        return peer_certificate(self.transport)

    def write(self, data: bytes | memoryview) -> None:
        """Send."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def pause_reading(self) -> None:
        """Take nothing more for now."""
        if not self._is_reading_paused and not self.transport.is_closing():
            self._is_reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Go on."""
        if self._is_reading_paused and not self.transport.is_closing():
            self._is_reading_paused = False
            self.transport.resume_reading()

    async def drain(self) -> None:
        """Wait until there is room for more to send, or nobody to send it to."""
        if self._drained is not None:
            await self._drained

    def ended(self, exchange: Exchange) -> None:
        """Go on with the next request, or end the connection."""
        if exchange is not self._current:
            return
        self._current = None
        self._has_asked = True
        if not exchange.keep_alive or exchange.more_body:
            self.transport.close()
        elif not self.transport.is_closing():
            if self._ahead:
                self._answer(self._ahead.popleft())
            elif self._headers_since is None:
                self._idle_since = self.loop.time()
            self.resume_reading()

    def abort(self) -> None:
        """End at once."""
        self.transport.abort()

    # What the listener and other connections call.

    @property
    def waits(self) -> bool:
        """Whether it is the client that has to say something, and a connection that goes on."""
        return (
            self._current is None
            and self._incoming is None
            and self._refused_at is None
            and not self.transport.is_closing()
        )

    @property
    def seniority(self) -> tuple[bool, float]:
        """Whether it ever asked, and since when it waits: the least of them goes first."""
        since = self._idle_since if self._headers_since is None else self._headers_since
        return self._has_asked, 0.0 if since is None else since

    def shutdown(self) -> None:
        """Close after the answer under way, or now."""
        if self._current is None:
            self.transport.close()
        else:
            self._current.keep_alive = False

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
            if self._current is None and now - self._refused_at > _LINGER_SECONDS:
                self.transport.close()
        elif self._idle_since is not None and now - self._idle_since > self._limits.idle_timeout:
            self.transport.close()
        elif self._is_late(now):
            self._refuse(LimitExceeded("the request came too slowly"), HTTPStatus.REQUEST_TIMEOUT)
            self.transport.close()
        else:
            self._check_sending(now)

    # Receiving.

    def _parse(self, data: memoryview) -> None:
        self._progress = False
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            error = InvalidInput("expected HTTP/1.1, came something else")
            self._refuse(*(self._problem or (error, HTTPStatus.BAD_REQUEST)))
            return
        self._overhead = 0 if self._progress else self._overhead + len(data)
        if self._overhead > self._max_header_bytes:
            self._refuse(*self._too_many_bytes())
        elif self._left > _DIRECT_FROM:
            # All that was read is the parser's, all that is left is the body's.
            self._is_direct = True

    def _take_body(self, count: int) -> None:
        """Take a part of the body without the parser; what is behind the body is the parser's."""
        exchange = self._incoming
        taken = min(count, self._left)
        self._left -= taken
        self._window_bytes += taken
        if exchange is not None:
            if self._in_place:
                exchange.advance(taken)
            else:
                exchange.feed(bytes(self._port.buffer[:taken]))
        if not self._left:
            self._is_direct = False
            self._parser = httptools.HttpRequestParser(self)
            self.on_message_complete()
            if taken < count:
                self._parse(self._port.buffer[taken:count])

    def _split_target(self) -> tuple[bytes, bytes]:
        """Return path and query of the request line, in any of the forms of RFC 9112 §3.2."""
        target = self._target
        if b"#" in target:
            error = InvalidInput("expected no fragment in the request line")
            self._fail(error, HTTPStatus.BAD_REQUEST)
        if not target.startswith(b"/"):
            parsed = httptools.parse_url(target)
            return parsed.path or b"/", parsed.query or b""
        path, _, query = target.partition(b"?")
        return path, query

    def _answer(self, exchange: Exchange) -> None:
        self._current = exchange
        self._port.tasks[exchange] = self.loop.create_task(self._serve(exchange))

    async def _serve(self, exchange: Exchange) -> None:
        try:
            await self._app(exchange)
        except Exception as error:  # noqa: BLE001 - the connection ends, the log has a place
            log_event(
                "internal_error",
                level="error",
                error=type(error).__name__,
                place=place_of(error),
            )
        finally:
            del self._port.tasks[exchange]
            if exchange is self._current:
                # Without an answer: whoever waits for one learns that none comes.
                self._current = None
                self.transport.abort()

    # Limits.

    def _is_late(self, now: float) -> bool:
        """Return whether headers or body take too long."""
        if self._headers_since is not None:
            waited = now - self._headers_since
            return self._current is None and waited > self._limits.header_timeout
        if self._incoming is None:
            return False
        if self._is_reading_paused:
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

    def _too_many_bytes(self) -> tuple[BlindAIError, HTTPStatus]:
        most = self._max_header_bytes
        error = LimitExceeded(f"expected headers of at most {most} bytes, came more")
        return error, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE

    def _fail(self, error: BlindAIError, status: HTTPStatus) -> None:
        """Make the parser stop; `_parse` then refuses."""
        self._problem = error, status
        raise error

    def _refuse(self, error: BlindAIError, status: HTTPStatus) -> None:
        """Answer with an error, if an answer can be told apart from others, and take no more."""
        self._refused_at = self.loop.time()
        self._idle_since = None
        # What is under way counts as answered from the last of the requests that are whole.
        whole = [*self._ahead] if self._incoming is None else [*self._ahead][:-1]
        current = self._current
        if current is not None:
            if current is not self._incoming:
                # What came before it was in order: that is answered, and nothing else.
                last = whole[-1] if whole else current
                self._ahead = deque(whole)
                last.keep_alive = False
                return
            # The handler waits for a body that will not come.
            is_started = current.is_started
            current.lose()
            if is_started:
                self.transport.close()
                return
            self._current = None
        body = msgspec.json.encode({"error": str(error), "type": type(error).__name__})
        lines = [
            b"HTTP/1.1 %d %s" % (status, status.phrase.encode()),
            self.stamp,
            b"content-type: application/json",
            b"content-length: %d" % len(body),
            b"connection: close",
        ]
        if isinstance(error, Overloaded):
            lines.append(b"retry-after: 1")
        self.transport.write(b"\r\n".join([*lines, b"", body]))
