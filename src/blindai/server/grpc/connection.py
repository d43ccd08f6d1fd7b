"""HTTP/2 as gRPC needs it: a connection's frames, and what a client may not do with them.

Always true: nothing is held but what `reader` bounds, and what calls hold in the server's budget.
Whatever a client sends that gets no work done (pings, settings, resets, empty frames) is paid from
a credit that work and time give back. A breach of the protocol ends the connection, or its stream
where RFC 9113 lets that do.

Specification: RFC 9113 (HTTP/2). The credit and the limits are against CVE-2019-9511 to 9518,
CVE-2023-44487 (rapid reset) and CVE-2024-27316 (CONTINUATION flood).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from blindai.channel.tls import peer_certificate
from blindai.errors import BlindAIError, InvalidInput, LimitExceeded, Overloaded
from blindai.server.grpc import frames
from blindai.server.grpc.call import ROOM, Call, Method
from blindai.server.grpc.frames import Code
from blindai.server.grpc.hpack import HeaderDecoder, encode_fields
from blindai.server.grpc.outbox import Outbox
from blindai.server.grpc.pace import Pace
from blindai.server.grpc.reader import FRAME_SIZE, FrameReader
from blindai.server.grpc.request import ENCODINGS, Head, parse_head
from blindai.server.grpc.status import Status, StatusCode, status_of
from blindai.server.limits import Share

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from blindai.server.config import Limits
    from blindai.server.grpc.hpack import Field
    from blindai.server.limits import ByteBudget

# Calls at once; a client that wants more waits, or opens another connection.
MAX_STREAMS: Final = 128
# How much a connection may send that gets no work done, and what gives some of it back.
MAX_CREDIT: Final = 1000
_CREDIT_PER_SECOND: Final = 100
_CREDIT_PER_CALL: Final = 16
# A client opens its windows again with frames: it is given one for so many bytes.
_BYTES_PER_CREDIT: Final = 4096
_RESET_COST: Final = 4
# For the rest of what was sent, and TLS's good-bye, before a closing connection is cut.
_CLOSE_SECONDS: Final = 10.0

# A read of TLS or TCP takes as much at most.
_BUFFER_BYTES: Final = 256 << 10

_HTTP_ANSWERS: Final = {
    405: encode_fields((b":status", b"405"), (b"allow", b"POST")),
    415: encode_fields((b":status", b"415")),
}
_UNKNOWN: Final = Method(
    end=Status(StatusCode.UNIMPLEMENTED, "no such method; reflection lists what there is")
)

_UNREADABLE: Final = Status(
    StatusCode.UNIMPLEMENTED, "grpc-encoding: expected identity, deflate or gzip"
)


@dataclass(frozen=True, slots=True, eq=False)
class Port:
    """What the connections to one identity have in common.

    Attributes:
        methods: By path.
        limits: Of each connection and message.
        bodies: Counts what all calls hold.
        why_not: Returns why nothing is served but what always is; "" where all is.
        connections: That are open, also to other identities.
        answers: Status of gRPC → how many calls ended with it.
        buffer: Receives for all of them; what is in it is taken before the next read.
    """

    methods: Mapping[bytes, Method]
    limits: Limits
    bodies: ByteBudget
    why_not: Callable[[], str]
    connections: set[Connection]
    answers: dict[int, int] = field(default_factory=dict)
    buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(_BUFFER_BYTES)))


class Connection(asyncio.BufferedProtocol):
    """One connection.

    Args:
        port: That it came to.
    """

    def __init__(self, port: Port) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._port = port
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        max_block = max(frames.MIN_FRAME_SIZE, port.limits.max_header_bytes)
        self._reader = FrameReader(self, max_block)
        self._out = Outbox(loop, self._on_sent)
        self._decoder = HeaderDecoder(port.limits.max_header_bytes)
        self._latest: tuple[tuple[Field, ...], Head] | None = None
        self._calls: dict[int, Call] = {}
        self._last_stream = 0
        self._credit = float(MAX_CREDIT)
        self._credited = 0  # bytes sent that credit was given for
        self._is_going_away = False
        self._closing_at: float | None = None
        self._room = frames.MAX_WINDOW
        # What the clock says.
        self._pace_in, self._pace_out = Pace(port.limits, now), Pace(port.limits, now)
        self._received = 0
        self._target: memoryview | None = None
        self._received_at = now
        self._received_before = 0
        self._progress: tuple[int, float] = (-1, now)
        self._ticked_at = now
        self._idle_since = now
        self._is_pinged = False
        self._handlers: dict[int, Callable[[int, int, bytes], None]] = {
            frames.PRIORITY: self._on_priority,
            frames.RST_STREAM: self._on_reset,
            frames.SETTINGS: self._on_settings,
            frames.PING: self._on_ping,
            frames.GOAWAY: self._on_goaway,
            frames.WINDOW_UPDATE: self._on_window,
            frames.PUSH_PROMISE: self._on_push,
        }

    @property
    def is_busy(self) -> bool:
        """Whether there are calls, or answers on their way."""
        return bool(self._calls) or self._out.unsent > 0

    @property
    def seniority(self) -> tuple[bool, float]:
        """Whether it ever called, and when it last spoke: the least of them goes first."""
        return self._last_stream > 0, self._received_at

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say what a client may do, unless it is one too many or speaks something else."""
        self._transport = cast("asyncio.Transport", transport)
        tls: Any = transport.get_extra_info("ssl_object")
        connections = self._port.connections
        if (tls is not None and tls.selected_alpn_protocol() != "h2") or (
            len(connections) >= self._port.limits.max_connections and not self._make_room()
        ):
            self._transport.abort()
            return
        connections.add(self)
        self._out.open(self._transport)
        settings = {
            frames.SETTING_MAX_STREAMS: MAX_STREAMS,
            frames.SETTING_WINDOW: ROOM,
            frames.SETTING_FRAME_SIZE: FRAME_SIZE,
            frames.SETTING_LIST_SIZE: self._port.limits.max_header_bytes,
        }
        # What all streams hold is bounded by the budget, so the window of all is no limit.
        room = frames.window_frame(0, frames.MAX_WINDOW - frames.DEFAULT_WINDOW)
        self._out.write(frames.settings_frame(settings) + room)

    def _make_room(self) -> bool:
        """End the connection that has waited longest for its client; see `BoundedProtocol`."""
        waiting = [each for each in self._port.connections if not each.is_busy]
        if not waiting:
            return False
        longest = min(waiting, key=lambda each: each.seniority)
        self._port.connections.discard(longest)
        longest.abort()
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        """End all work."""
        self._port.connections.discard(self)
        self._closing_at = self._closing_at or self._loop.time()
        self._out.close()
        for call in self._calls.values():
            call.abandon()
        self._calls.clear()

    def pause_writing(self) -> None:
        """Make no more of answers for now."""
        self._out.pause()

    def resume_writing(self) -> None:
        """Go on after `pause_writing`."""
        self._out.resume()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's
        """Return where to receive what comes next."""
        self._target = self._reader.target()
        return self._port.buffer if self._target is None else self._target

    def buffer_updated(self, nbytes: int) -> None:
        """Take what the client sent; after a breach, drop it."""
        self._received += nbytes
        if self._target is None:
            self._reader.feed(self._port.buffer[:nbytes])
        elif self._closing_at is None:
            self._reader.filled(nbytes)

    def tick(self, now: float) -> None:
        """Look at the clock, about once a second: who is too slow, too quiet, or gone?"""
        transport = self._transport
        if transport is None:
            return
        limits = self._port.limits
        self._credit = min(MAX_CREDIT, self._credit + _CREDIT_PER_SECOND * (now - self._ticked_at))
        self._ticked_at = now
        if self._closing_at is not None:
            if now - self._closing_at > _CLOSE_SECONDS:
                transport.abort()
            return
        if self._is_stuck(now) or self._is_too_slow(now):
            transport.abort()
            return
        if self._received != self._received_before:
            self._received_before, self._received_at = self._received, now
            self._is_pinged = False
        quiet = now - self._received_at
        if self.is_busy:
            self._idle_since = now
            if quiet > limits.idle_timeout + limits.header_timeout:
                transport.abort()  # gone, and nobody said so
            elif quiet > limits.idle_timeout and not self._is_pinged:
                self._is_pinged = True
                self._out.write(frames.frame(frames.PING, 0, 0, bytes(frames.PING_SIZE)))
        elif now - self._idle_since > limits.idle_timeout:
            self.shutdown()

    def shutdown(self) -> None:
        """Take no more calls, and close when those under way have ended."""
        if self._closing_at is not None or self._is_going_away:
            return
        self._is_going_away = True
        self._out.write(frames.goaway_frame(self._last_stream, Code.NO_ERROR, ""))
        for call in self._calls.values():
            call.drain()
        if not self._calls:
            self._close()

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    # What calls want of it; see `Wire`.

    @property
    def peer(self) -> str:
        """The address at the other end; empty where it is gone."""
        transport = self._transport
        found = None if transport is None else transport.get_extra_info("peername")
        return str((found or ("",))[0])

    @property
    def client_certificate(self) -> bytes | None:
        """The certificate at the other end, verified, as DER; `None`: there is none."""
        return None if self._transport is None else peer_certificate(self._transport)

    def transmit(self, call: Call) -> None:
        """Send what waits in a call, as far as there is room; the rest as soon as there is."""
        self._out.transmit(call)

    def give_room(self, call: Call, count: int) -> None:
        """Let the client send so many bytes more."""
        call.room += count
        self._out.write(frames.window_frame(call.stream, count))

    # What the reader tells; see `Sink`.

    def on_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Take a frame that is neither DATA nor of a header block."""
        self._spend(1)
        handler = self._handlers.get(kind)
        # What is unknown means nothing; see RFC 9113 §5.5.
        if handler is not None:
            handler(flags, stream, payload)

    def on_data(self, stream: int, length: int, overhead: int, *, ends: bool) -> None:
        """Keep the windows, and charge for frames that bring nothing."""
        if not 0 < stream <= self._last_stream or not stream & 1:
            self.on_breach(Code.PROTOCOL_ERROR, "DATA of a stream that never began")
            return
        self._room -= length
        if self._room < frames.MAX_WINDOW // 2:
            self._out.write(frames.window_frame(0, frames.MAX_WINDOW - self._room))
            self._room = frames.MAX_WINDOW
        call = self._calls.get(stream)
        if call is None or overhead or not (length or ends):
            self._spend(1)
        if call is None:
            return  # it was answered before its end
        if call.ended:
            self._reset(call, Code.STREAM_CLOSED)
            return
        call.room -= length
        if call.room < 0:
            self._reset(call, Code.FLOW_CONTROL_ERROR)
        elif overhead:
            self.give_room(call, overhead)

    def on_payload(self, stream: int, piece: memoryview) -> None:
        """Hand bytes to their call."""
        call = self._calls.get(stream)
        if call is None:
            return
        try:
            call.feed(piece)
        except BlindAIError as error:
            call.stop(status_of(error))

    def room_for(self, stream: int, count: int) -> memoryview | None:
        """Return memory for up to `count` of the next bytes; `None`: hand them over."""
        call = self._calls.get(stream)
        return None if call is None else call.room_for(count)

    def on_filled(self, stream: int, count: int) -> None:
        """Tell a call of bytes that were received into `room_for`."""
        call = self._calls.get(stream)
        if call is None:
            return
        try:
            call.filled(count)
        except BlindAIError as error:
            call.stop(status_of(error))

    def on_end(self, stream: int) -> None:
        """Take note that a client has said all of a call."""
        call = self._calls.get(stream)
        if call is None or call.ended:
            return
        try:
            call.end()
        except BlindAIError as error:
            call.stop(status_of(error))

    def on_headers(self, stream: int, block: bytes, *, ends: bool) -> None:
        """Begin a call, or take note of what comes behind its messages."""
        try:
            fields = self._decoder.decode(block)
        except InvalidInput as error:
            self.on_breach(Code.COMPRESSION_ERROR, str(error))
        except LimitExceeded as error:
            self.on_breach(Code.ENHANCE_YOUR_CALM, str(error))
        else:
            if stream > self._last_stream:
                self._last_stream = stream
                self._begin(stream, fields, ends=ends)
            else:
                self._take_trailers(stream, ends=ends)

    def on_breach(self, code: Code, why: str) -> None:
        """End the connection: its client broke the protocol."""
        if self._closing_at is None:
            self._out.write(frames.goaway_frame(self._last_stream, code, why))
            self._close()

    def _take_trailers(self, stream: int, *, ends: bool) -> None:
        """Take header fields after the first: gRPC's clients send none, HTTP/2's may."""
        self._spend(1)
        call = self._calls.get(stream)
        if call is None:
            return  # it was answered before its end
        if call.ended or not ends:
            self._reset(call, Code.STREAM_CLOSED if call.ended else Code.PROTOCOL_ERROR)
        else:
            self.on_end(stream)

    def _begin(self, stream: int, fields: tuple[Field, ...], *, ends: bool) -> None:
        """Begin a call."""
        if self._is_going_away or len(self._calls) >= MAX_STREAMS:
            self._refuse(stream, Code.REFUSED_STREAM)
            return
        if self._latest is None or self._latest[0] is not fields:
            try:
                self._latest = fields, parse_head(fields)
            except InvalidInput:
                self._refuse(stream, Code.PROTOCOL_ERROR)
                return
        head = self._latest[1]
        if head.http_status in _HTTP_ANSWERS:
            flags = frames.END_HEADERS | frames.END_STREAM
            answer = _HTTP_ANSWERS[head.http_status]
            self._out.write(frames.frame(frames.HEADERS, flags, stream, answer))
            self._refuse(stream, Code.NO_ERROR)
            return
        method = self._port.methods.get(head.path, _UNKNOWN)
        share = Share(self._port.bodies)
        limit = self._port.limits.max_body_bytes
        call = Call(self, stream, head, method, share, limit)
        self._calls[stream] = call
        self._out.adopt(call)
        end = _UNREADABLE if head.encoding not in ENCODINGS else method.end
        if end is not None:
            call.stop(end)
            return
        try:
            if not method.always and (why := self._port.why_not()):
                raise Overloaded(why)
            call.start()
        except BlindAIError as error:
            call.stop(status_of(error))
            return
        if ends:
            self.on_end(stream)

    def _on_priority(self, _flags: int, _stream: int, payload: bytes) -> None:
        if len(payload) != frames.PRIORITY_SIZE:
            self.on_breach(Code.FRAME_SIZE_ERROR, "PRIORITY of another size")

    def _on_reset(self, _flags: int, stream: int, payload: bytes) -> None:
        self._spend(_RESET_COST - 1)
        if len(payload) != frames.WORD_SIZE:
            self.on_breach(Code.FRAME_SIZE_ERROR, "RST_STREAM of another size")
        elif not 0 < stream <= self._last_stream:
            self.on_breach(Code.PROTOCOL_ERROR, "RST_STREAM of a stream that never began")
        elif (call := self._calls.get(stream)) is not None:
            self._let_go(call)

    def _on_settings(self, flags: int, stream: int, payload: bytes) -> None:
        if stream or (flags & frames.ACK and payload) or len(payload) % frames.SETTING_SIZE:
            self.on_breach(Code.FRAME_SIZE_ERROR, "SETTINGS that cannot be")
            return
        if flags & frames.ACK:
            return
        try:
            settings = frames.parse_settings(payload)
        except InvalidInput as error:
            self.on_breach(Code.PROTOCOL_ERROR, str(error))
            return
        if frames.SETTING_FRAME_SIZE in settings:
            self._out.set_frame_size(settings[frames.SETTING_FRAME_SIZE])
        window = settings.get(frames.SETTING_WINDOW)
        if window is not None and (
            window > frames.MAX_WINDOW or not self._out.resize(window, self._calls.values())
        ):
            self.on_breach(Code.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE is too large")
            return
        self._out.write(frames.frame(frames.SETTINGS, frames.ACK, 0, b""))

    def _on_ping(self, flags: int, stream: int, payload: bytes) -> None:
        if stream or len(payload) != frames.PING_SIZE:
            self.on_breach(Code.FRAME_SIZE_ERROR, "PING that cannot be")
        elif not flags & frames.ACK:
            self._out.write(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _on_goaway(self, _flags: int, _stream: int, _payload: bytes) -> None:
        self.shutdown()

    def _on_window(self, _flags: int, stream: int, payload: bytes) -> None:
        if len(payload) != frames.WORD_SIZE:
            self.on_breach(Code.FRAME_SIZE_ERROR, "WINDOW_UPDATE of another size")
            return
        increment = frames.parse_word(payload) & frames.STREAM_BITS
        call = self._calls.get(stream)
        if stream > self._last_stream or not increment:
            self.on_breach(Code.PROTOCOL_ERROR, "WINDOW_UPDATE of nothing")
        elif not stream:
            if not self._out.widen(increment):
                self.on_breach(Code.FLOW_CONTROL_ERROR, "a window is too large")
        elif call is not None and not self._out.widen(increment, call):
            self._reset(call, Code.FLOW_CONTROL_ERROR)

    def _on_push(self, _flags: int, _stream: int, _payload: bytes) -> None:
        self.on_breach(Code.PROTOCOL_ERROR, "PUSH_PROMISE of a client")

    # Ends.

    def _on_sent(self, call: Call) -> None:
        """Let go of a call whose answer is on its way."""
        self._calls.pop(call.stream, None)
        self._port.answers[call.code] = self._port.answers.get(call.code, 0) + 1
        if call.written is not None:
            now = time.perf_counter_ns()
            call.written.add(now - call.finished)
            if call.trace is not None:
                call.trace.add("write", call.finished, now)
                call.trace.end()
        self._credit = min(MAX_CREDIT, self._credit + _CREDIT_PER_CALL)
        if not call.ended:
            self._out.write(frames.reset_frame(call.stream, Code.NO_ERROR))
        if self._is_going_away and not self._calls:
            self._close()

    def _refuse(self, stream: int, code: Code) -> None:
        """End a stream that became no call."""
        self._out.write(frames.reset_frame(stream, code))
        self._spend(_RESET_COST)

    def _reset(self, call: Call, code: Code) -> None:
        """End a call whose client broke the protocol."""
        self._out.write(frames.reset_frame(call.stream, code))
        self._let_go(call)

    def _let_go(self, call: Call) -> None:
        self._calls.pop(call.stream, None)
        self._out.drop(call)
        call.abandon()
        if self._is_going_away and not self._calls:
            self._close()

    def _spend(self, cost: int) -> None:
        """Charge for a frame that gets no work done."""
        self._credit -= cost
        if self._credit < 0:
            # What was sent to the client explains some frames: its windows opened again.
            earned = (self._out.handed - self._credited) // _BYTES_PER_CREDIT
            self._credited = self._out.handed
            self._credit = min(MAX_CREDIT, self._credit + earned)
            if self._credit < 0:
                self.on_breach(Code.ENHANCE_YOUR_CALM, "too many frames that get no work done")

    def _close(self) -> None:
        self._closing_at = self._loop.time()
        self._reader.stop()
        for call in self._calls.values():
            call.abandon()
        self._calls.clear()
        self._out.close()
        if self._transport is not None:
            self._transport.close()

    def _is_stuck(self, now: float) -> bool:
        """Return whether a frame or header block began long ago, and nothing came after it."""
        if not self._reader.is_within or self._reader.count != self._progress[0]:
            self._progress = self._reader.count, now
            return False
        return now - self._progress[1] > self._port.limits.header_timeout

    def _is_too_slow(self, now: float) -> bool:
        """Return whether the client sends, or takes, less than it has to."""
        owes = any(call.is_receiving for call in self._calls.values())
        unsent = self._out.unsent
        taken = self._out.handed - unsent
        return self._pace_in.is_too_slow(
            now, self._received, has_to_move=owes
        ) or self._pace_out.is_too_slow(now, taken, has_to_move=unsent > 0 or self._out.is_waiting)
