"""One RPC on one stream: its messages in, its messages out, and its end, exactly one.

Always true: what a call holds is counted against the server's budget until its work has ended;
a call whose client went away or whose time is over is cancelled, and with it its run; an answer
waits here, not in the transport, while the client gives it no room.

Specification: gRPC over HTTP2, "Requests", "Responses".
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from blindai.errors import BlindAIError, DeadlineExceeded, InferenceError, InvalidInput, Overloaded
from blindai.server.access.principal import NOBODY
from blindai.server.encoding import IDENTITY, inflate
from blindai.server.events import log_event, place_of
from blindai.server.grpc.request import PREFIX, Assembler, Message
from blindai.server.grpc.status import OK, Status, StatusCode, encode_trailers, status_of
from blindai.server.stepping import Caller

if TYPE_CHECKING:
    from blindai.inference.histogram import Histogram
    from blindai.server.access.principal import Principal
    from blindai.server.grpc.hpack import Field
    from blindai.server.grpc.request import Head
    from blindai.server.limits import Share
    from blindai.server.tracing import Trace

Parts = Sequence[bytes | memoryview]

# Bytes that a stream's client may send before it is given more room.
ROOM: Final = 4 << 20
_OK_TRAILERS: Final = encode_trailers(OK)
# Beside its bytes, a message that waits costs about this.
_MESSAGE_OVERHEAD: Final = 128
# Of a stream: the client is given no more room while so many wait.
_MAX_WAITING: Final = 16
# Of an answer: whoever sends more waits until the client has taken some.
_MAX_UNSENT: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Method:
    """What the server does when an RPC is called.

    Attributes:
        unary: Turns one message into one; `None` for streams.
        stream: Reads and sends messages; `None` for unary ones.
        always: Whether it is served before the server is ready, and while it stops.
        check: Called with the call before its messages are read; raises what refuses it.
        end: What it ends with at once, whatever is said.
    """

    unary: Callable[[Call, Message], Awaitable[Parts]] | None = None
    stream: Callable[[Call], Awaitable[None]] | None = None
    always: bool = False
    check: Callable[[Call], Principal] | None = None
    end: Status | None = None


class Wire(Protocol):
    """The side of a connection that its calls see."""

    @property
    def peer(self) -> str:
        """The address at the other end."""
        ...

    @property
    def client_certificate(self) -> bytes | None:
        """The certificate at the other end, verified, as DER."""
        ...

    def transmit(self, call: Call) -> None:
        """Send what waits in a call, as far as there is room; the rest as soon as there is."""
        ...

    def give_room(self, call: Call, count: int) -> None:
        """Let the client send so many bytes more."""
        ...


class Call:
    """An RPC; made by its connection when the header fields have come.

    Attributes:
        stream: Number of the HTTP/2 stream.
        head: What the client said.
        ended: Whether the client has said all.
        room: Bytes that the client may still send.
        window: Bytes that may be sent to the client; may be below 0.
        pending: What is to be sent, in order; messages with their prefixes.
        answered: Whether the answer's header fields were sent.
        trailers: The header block that ends the RPC; `None`: more is to come.
        metadata: Sent with the trailers.
        who: Calls; known once it has started.
        began: When its header fields had come, in ns of `time.perf_counter_ns()`.
        finished: When its answer was made, likewise.
        code: What it ended with, as soon as it did.
        written: Counts how long its answer took to send; `None`: nobody wants to know.
        trace: Of the call; ends when its answer is sent.
    """

    __slots__ = (
        "_arrival",
        "_assembler",
        "_deadline",
        "_drained",
        "_is_draining",
        "_limit",
        "_messages",
        "_method",
        "_share",
        "_task",
        "_timer",
        "_unsent",
        "_used",
        "_wire",
        "answered",
        "began",
        "code",
        "ended",
        "finished",
        "head",
        "metadata",
        "pending",
        "room",
        "stream",
        "trace",
        "trailers",
        "who",
        "window",
        "written",
    )

    def __init__(
        self, wire: Wire, stream: int, head: Head, method: Method, share: Share, limit: int
    ) -> None:
        self.stream = stream
        self.head = head
        self.ended = False
        self.room = ROOM
        self.window = 0
        self.pending: deque[bytes | memoryview] = deque()
        self.answered = False
        self.trailers: bytes | None = None
        self.metadata: tuple[Field, ...] = ()
        self.who = NOBODY
        self.began = time.perf_counter_ns()
        self.finished = 0
        self.code = int(StatusCode.OK)
        self.written: Histogram | None = None
        self.trace: Trace | None = None
        self._wire = wire
        self._method = method
        self._share = share
        self._limit = limit
        self._assembler = Assembler(limit)
        self._messages: deque[tuple[int, Message]] = deque()
        self._used = 0  # bytes of the client's that it was not given new room for
        self._unsent = 0
        self._task: asyncio.Task[None] | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = float("inf")
        self._is_draining = False

    @property
    def is_receiving(self) -> bool:
        """Whether the client owes the rest of something."""
        if self._method.stream is None:
            return not self.ended
        return self._assembler.is_partial and len(self._messages) < _MAX_WAITING

    @property
    def time_left(self) -> float | None:
        """Seconds until the client no longer cares; `None`: it did not say."""
        if self._timer is None:
            return None
        return max(0.0, self._deadline - time.monotonic())

    @property
    def bearer_token(self) -> bytes | None:
        """The token that the client presents."""
        return self.head.token

    @property
    def peer(self) -> str:
        """The address that the connection is from."""
        return self._wire.peer

    @property
    def client_certificate(self) -> bytes | None:
        """The client's certificate, verified by TLS, as DER; `None`: it showed none."""
        return self._wire.client_certificate

    def caller(self) -> Caller:
        """Return who calls, as far as that is known."""
        proof = self.head.token or self._wire.client_certificate
        digest = b"" if proof is None else hashlib.sha256(proof).digest()
        return Caller(digest, self._wire.peer, self._wire)

    def start(self) -> None:
        """Begin; a unary RPC's work begins when its message is complete.

        Raises:
            BlindAIError: Why it is refused.
        """
        self.admit()
        if self.head.timeout is not None:
            self._deadline = time.monotonic() + self.head.timeout
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.head.timeout, self._expire)
        if self._method.stream is not None:
            self._begin()

    def admit(self) -> None:
        """Look at who calls; again with each message of a stream, which may outlast their right.

        Raises:
            BlindAIError: Why it is refused.
        """
        if self._method.check is not None:
            self.who = self._method.check(self)

    def feed(self, data: memoryview) -> None:
        """Take bytes from the client.

        Raises:
            BlindAIError: They are refused, and the RPC is to be finished with it.
        """
        self._share.grow(len(data))
        self._take(self._assembler.feed(data), len(data))

    def room_for(self, count: int) -> memoryview | None:
        """Return where up to `count` of the next bytes belong; `None`: wherever, for `feed`."""
        return self._assembler.room(count)

    def filled(self, count: int) -> None:
        """Take bytes that came into `room_for`.

        Raises:
            BlindAIError: They are refused, and the RPC is to be finished with it.
        """
        self._share.grow(count)
        self._take(self._assembler.filled(count), count)

    def _take(self, complete: list[tuple[int, Message]], count: int) -> None:
        if complete:
            self._share.grow((_MESSAGE_OVERHEAD - PREFIX.size) * len(complete))
            self._messages += complete
            if self._method.stream is None and len(self._messages) > 1:
                msg = "expected one message, came more"
                raise InvalidInput(msg)
        self._used += count
        self._give_room()
        self._wake()

    def end(self) -> None:
        """Take note that the client has said all.

        Raises:
            InvalidInput: It ended early.
        """
        self.ended = True
        if self._assembler.is_partial:
            msg = "the request ends inside a message"
            raise InvalidInput(msg)
        if self._method.stream is not None:
            self._wake()
            return
        if not self._messages:
            msg = "expected one message, came none"
            raise InvalidInput(msg)
        self._begin()

    async def messages(self) -> AsyncIterator[Message]:
        """Yield the client's messages as they come, until it has said all.

        Each counts as held until `forget` is called with it.

        Raises:
            BlindAIError: One cannot be read.
        """
        while True:
            while self._messages:
                flag, message = self._messages.popleft()
                self._give_room()
                yield await self._plain(flag, message)
            if self.ended:
                return
            if self._is_draining:
                msg = "the server closes this connection; call again"
                raise Overloaded(msg)
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival

    def hold(self, count: int) -> None:
        """Count so many bytes more, until the call ends.

        Raises:
            Overloaded: There is no room for them.
        """
        self._share.grow(count)

    def forget(self, message: Message) -> None:
        """Count a message of a stream no more."""
        self._share.shrink(len(message) + _MESSAGE_OVERHEAD)

    async def send(self, parts: Parts) -> None:
        """Send a message; wait while the client has not taken enough of the ones before.

        Args:
            parts: Its bytes, in order.
        """
        self._push(parts)
        while self._unsent > _MAX_UNSENT and self.trailers is None:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def sent(self, count: int) -> None:
        """Take note that so many pending bytes are on their way."""
        self._unsent -= count
        if self._drained is not None and self._unsent <= _MAX_UNSENT:
            _resolve(self._drained)
            self._drained = None

    def finish(self, status: Status) -> None:
        """End the RPC; what is pending is sent before. Does nothing the second time."""
        if self.trailers is not None:
            return
        self.code = int(status.code)
        self.finished = time.perf_counter_ns()
        if status.code is not StatusCode.OK:
            # The client may show either the answer or the error: it gets one of them.
            self.pending.clear()
            self._unsent = 0
        if status is OK and not self.metadata:
            self.trailers = _OK_TRAILERS
        else:
            self.trailers = encode_trailers(status, *self.metadata)
        self._stop_timer()
        self._wire.transmit(self)

    def stop(self, status: Status) -> None:
        """End the RPC and its work."""
        self.finish(status)
        self.abandon()

    def drain(self) -> None:
        """Take no more messages than came, so that the RPC can end."""
        self._is_draining = True
        self._wake()

    def abandon(self) -> None:
        """End the work: nobody is left to be answered."""
        self._stop_timer()
        self.trailers = self.trailers or b""  # nothing is sent from now on
        if self._task is None:
            self._release()
        else:
            self._task.cancel()

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())
        # And not in `_run`: what is cancelled before it runs never gets there.
        self._task.add_done_callback(lambda _: self._release())

    async def _run(self) -> None:
        status = OK
        try:
            if self._method.stream is not None:
                await self._method.stream(self)
            elif self._method.unary is not None:
                message = await self._plain(*self._messages.popleft())
                self._push(await self._method.unary(self, message))
        except BlindAIError as error:
            status = status_of(error)
        except Exception as error:  # noqa: BLE001 - the client gets an answer, the log a place
            status = _internal_error(error)
        self.finish(status)

    async def _plain(self, flag: int, message: Message) -> Message:
        if not flag:
            return message
        coding = self.head.encoding
        if coding == IDENTITY:
            msg = "a message is marked as compressed, and grpc-encoding does not say how"
            raise InvalidInput(msg)
        plain = await inflate(message, coding, limit=self._limit, share=self._share)
        self._share.shrink(len(message))
        return plain

    def _push(self, parts: Parts) -> None:
        if self.trailers is not None:
            return
        length = sum(map(len, parts))
        self.pending.append(PREFIX.pack(0, length))
        self.pending.extend(part for part in parts if len(part))
        self._unsent += PREFIX.size + length
        if self._method.stream is not None:
            self._wire.transmit(self)

    def _give_room(self) -> None:
        """Let the client send more, unless what it sent before waits to be read."""
        if self._used >= ROOM // 2 and not self.ended and len(self._messages) < _MAX_WAITING:
            used, self._used = self._used, 0
            self._wire.give_room(self, used)

    def _wake(self) -> None:
        if self._arrival is not None:
            _resolve(self._arrival)
            self._arrival = None

    def _expire(self) -> None:
        self.stop(status_of(DeadlineExceeded("the time that the client gave is over")))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _release(self) -> None:
        self._messages.clear()
        self._share.shrink(self._share.used)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _internal_error(error: Exception) -> Status:
    error_id = secrets.token_hex(8)
    log_event(
        "internal_error",
        level="error",
        error_id=error_id,
        error=type(error).__name__,
        place=place_of(error),
    )
    return status_of(InferenceError(f"internal error {error_id}"))
