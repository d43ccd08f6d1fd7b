"""One request on a connection, and its answer: what the parser fills and a handler empties.

Always true: a body waits in a bounded amount of memory, or goes straight into the memory that
the handler gave for it; an answer has a length, and is as long as it said, or comes in chunks
whose end says that it is complete; what goes into a header line cannot end it.

Specification: RFC 9110 §10.1.1 (Expect), §15 (statuses); RFC 9112 §6 (bodies), §7.1 (chunks),
§9.6 (close).
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol

from blindai.errors import ConnectionFailed, InferenceError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence

# What waits of a body that nobody reads; then the connection pauses.
_MAX_WAITING: Final = 256 << 10
# A member of an enumeration is looked up in microseconds.
_NO_CONTENT: Final = int(HTTPStatus.NO_CONTENT)
# Below, one copy is cheaper than one more write.
_JOIN_BELOW: Final = 64 << 10
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINES: Final = {
    int(status): b"HTTP/1.1 %d %s" % (status, status.phrase.encode()) for status in HTTPStatus
}


class Line(Protocol):
    """What an exchange needs of its connection."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """That everything happens on."""
        ...

    @property
    def stamp(self) -> bytes:
        """The headers that all answers have."""
        ...

    @property
    def peer(self) -> str:
        """The address at the other end."""
        ...

    @property
    def client_certificate(self) -> bytes | None:
        """The certificate at the other end, verified, as DER."""
        ...

    def write(self, data: bytes | memoryview) -> None:
        """Send."""
        ...

    def pause_reading(self) -> None:
        """Take nothing more for now."""
        ...

    def resume_reading(self) -> None:
        """Go on."""
        ...

    async def drain(self) -> None:
        """Wait until there is room for more to send."""
        ...

    def ended(self, exchange: Exchange) -> None:
        """Go on with the next request; the answer is complete."""
        ...

    def abort(self) -> None:
        """End at once."""
        ...


class Exchange:
    """One request and its answer.

    Args:
        line: The connection.
        method: "GET" and so on.
        raw_path: As it was sent, percent-encoded.
        query: What stands behind the path's question mark.
        http_version: "1.1" or "1.0".
        headers: Names in lower case; where one came twice, the last.
        repeated: Names that came more than once.
        keep_alive: Whether the connection may serve another request.

    Attributes:
        more_body: Whether something of the body has not been received.
        is_gone: Whether the client went away.
        is_started: Whether the answer has begun.
        is_complete: Whether the answer is.
    """

    __slots__ = (
        "_expects_continue",
        "_is_chunked",
        "_left",
        "_line",
        "_on_gone",
        "_parts",
        "_position",
        "_target",
        "_waiter",
        "_waiting",
        "headers",
        "http_version",
        "is_complete",
        "is_gone",
        "is_started",
        "keep_alive",
        "method",
        "more_body",
        "query",
        "raw_path",
        "repeated",
    )

    def __init__(
        self,
        line: Line,
        method: str,
        raw_path: bytes,
        query: bytes,
        http_version: str,
        headers: Mapping[bytes, bytes],
        *,
        repeated: Sequence[bytes],
        keep_alive: bool,
    ) -> None:
        self._line = line
        self.method = method
        self.raw_path = raw_path
        self.query = query
        self.http_version = http_version
        self.headers = headers
        self.repeated = repeated
        self.keep_alive = keep_alive
        self.more_body = True
        self.is_gone = self.is_started = self.is_complete = False
        self._expects_continue = (
            b"expect" in headers
            and headers[b"expect"].lower() == b"100-continue"
            and http_version == "1.1"
        )
        self._parts: list[bytes] = []
        self._waiting = 0
        self._target: memoryview | None = None
        self._position = 0
        self._waiter: asyncio.Future[None] | None = None
        self._on_gone: Callable[[], None] | None = None
        # Of the answer, after what was sent of it.
        self._left = 0
        self._is_chunked = False

    # The handler's side.

    @property
    def connection(self) -> object:
        """What is the same for all requests of a connection, and for no other."""
        return self._line

    @property
    def peer(self) -> str:
        """The address that the connection is from."""
        return self._line.peer

    @property
    def client_certificate(self) -> bytes | None:
        """The client's certificate, verified by TLS, as DER; `None`: it showed none."""
        return self._line.client_certificate

    async def receive(self) -> bytes:
        """Return the next part of the body; empty at its end.

        Raises:
            ConnectionFailed: The client went away.
        """
        if not self._parts and self.more_body and not self.is_gone:
            await self._wait()
        self._check_presence()
        parts, self._parts, self._waiting = self._parts, [], 0
        self._line.resume_reading()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def fill(self, target: memoryview, count: Callable[[int], None]) -> None:
        """Receive what is left of the body straight into memory.

        Args:
            target: Exactly as large as what is left.
            count: Called with the bytes that came, as they come; what it raises ends this.

        Raises:
            ConnectionFailed: The client went away.
        """
        self._target, self._position = target, 0
        counted = 0
        try:
            parts, self._parts, self._waiting = self._parts, [], 0
            for part in parts:
                self.feed(part)
            while True:
                count(self._position - counted)
                counted = self._position
                if not self.more_body:
                    return
                await self._wait()
                self._check_presence()
        finally:
            self._target = None

    def watch(self, on_gone: Callable[[], None] | None) -> None:
        """Call something as soon as the client goes away, and so at once if it has; or stop that.

        Args:
            on_gone: To be called; `None`: nothing any more.
        """
        self._on_gone = on_gone
        if on_gone is not None:
            # Who is not read from is not seen to leave.
            self._line.resume_reading()
            if self.is_gone:
                on_gone()

    def start(
        self, status: int, headers: Sequence[tuple[bytes, bytes]], length: int | None
    ) -> bytes:
        """Return the head of the answer, to be sent with what comes first of its body.

        Args:
            status: Of HTTP.
            headers: Names in lower case; without those that say how the answer is framed.
            length: Of the body, in bytes; `None`: it comes in chunks. Not for HTTP/1.0.

        Raises:
            InferenceError: A header that is none.
        """
        lines = [_STATUS_LINES[status], self._line.stamp]
        lines += [name + b": " + value for name, value in headers]
        if length is None:
            lines.append(b"transfer-encoding: chunked")
        elif status != _NO_CONTENT:
            lines.append(b"content-length: %d" % length)
        if not self.keep_alive:
            lines.append(b"connection: close")
        head = b"\r\n".join(lines)
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
            # The stamp is two lines.
            msg = "a header of the answer holds a line break"
            raise InferenceError(msg)
        self.is_started = True
        self._expects_continue = False
        self._is_chunked = length is None
        self._left = 0 if self.method == "HEAD" or status == _NO_CONTENT else length or 0
        return head + b"\r\n\r\n"

    async def send(self, head: bytes, data: bytes | memoryview) -> None:
        """Send a part of the answer's body.

        Args:
            head: What `start` returned, before the first part; then empty.
            data: The part; of an answer that has no body it is dropped.

        Raises:
            InferenceError: Longer than the answer said to be.
        """
        if self.method == "HEAD":
            data = b""
        if len(data) > self._left:
            msg = f"expected {self._left} bytes more of an answer, came {len(data)}"
            raise InferenceError(msg)
        self._left -= len(data)
        if self.is_gone:
            return
        if len(data) < _JOIN_BELOW:
            self._line.write(head + data)
        else:
            self._line.write(head)
            self._line.write(data)
        await self._line.drain()

    async def send_chunk(self, head: bytes, parts: Sequence[bytes | memoryview]) -> None:
        """Send a part of an answer that comes in chunks; return when there is room for more.

        Args:
            head: What `start` returned, before the first part; then empty.
            parts: Of the chunk; not empty together, as that would be the end.

        Raises:
            ConnectionFailed: The client went away.
        """
        self._check_presence()
        start = head + b"%x\r\n" % sum(map(len, parts))
        if sum(map(len, parts)) < _JOIN_BELOW:
            self._line.write(b"".join((start, *parts, b"\r\n")))
        else:
            for piece in (start, *parts, b"\r\n"):
                self._line.write(piece)
        await self._line.drain()
        self._check_presence()

    async def respond(
        self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes | memoryview
    ) -> None:
        """Send a whole answer in one piece.

        Raises:
            InferenceError: A header that is none.
        """
        # Who sends requests and takes no answers would fill the memory.
        await self._line.drain()
        head = self.start(status, headers, len(body))
        if not self.is_gone:
            self._line.write(head + body if self._left else head)
        self._left = 0
        self.end()

    def end(self) -> None:
        """Say that the answer is complete.

        Raises:
            InferenceError: It is shorter than it said to be.
        """
        if self._left and not self.is_gone:
            msg = f"expected {self._left} bytes more of an answer, came its end"
            raise InferenceError(msg)
        if self._is_chunked and not self.is_gone:
            self._line.write(b"0\r\n\r\n")
        self.is_complete = True
        self._parts.clear()
        self._wake()
        self._line.ended(self)

    def abort(self) -> None:
        """End the connection at once."""
        self._line.abort()

    # The connection's side.

    def feed(self, data: bytes) -> None:
        """Take a part of the body."""
        if self.is_complete:
            return
        if self._target is not None:
            self._target[self._position : self._position + len(data)] = data
            self._position += len(data)
        else:
            self._parts.append(data)
            self._waiting += len(data)
            if self._waiting > _MAX_WAITING:
                self._line.pause_reading()
        self._wake()

    @property
    def is_exhausted(self) -> bool:
        """Whether all of the body came and was taken."""
        return not self.more_body and not self._parts

    @property
    def room(self) -> memoryview | None:
        """Memory that the body may go into; `None`: `feed` takes it."""
        return None if self._target is None else self._target[self._position :]

    def advance(self, count: int) -> None:
        """Take note of bytes that were put into `room`."""
        self._position += count
        self._wake()

    def finish(self) -> None:
        """Take note of the body's end."""
        self.more_body = False
        self._wake()

    def lose(self) -> None:
        """Take note that the client went away, or that nothing more of it is read."""
        self.is_gone = True
        self._wake()
        if self._on_gone is not None:
            self._on_gone()

    def _check_presence(self) -> None:
        if self.is_gone:
            msg = "the client went away"
            raise ConnectionFailed(msg)

    async def _wait(self) -> None:
        """Wait until something happens."""
        if self._expects_continue and self.more_body:
            self._expects_continue = False
            self._line.write(_CONTINUE)
        self._line.resume_reading()
        self._waiter = self._line.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
