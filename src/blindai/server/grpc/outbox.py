"""What a connection sends: control frames at once, answers as far as the client gives room.

Always true: not one byte of a message is sent beyond the client's windows (RFC 9113 §5.2), and
messages wait in their calls, as they are, until there is room; all streams have their turn, a
frame at a time; what is handed to the transport and not yet taken is bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blindai.server.grpc import frames
from blindai.server.grpc.frames import frame, frame_header
from blindai.server.grpc.hpack import encode_fields
from blindai.server.grpc.request import ENCODINGS

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from blindai.server.grpc.call import Call

# Frames larger than this would keep other streams waiting.
_MAX_FRAME: Final = 256 << 10
# Of what is handed to the transport at once: TLS encrypts it as a whole into memory.
_BATCH: Final = 256 << 10
# Beyond what the transport holds back by itself: control frames of a client that reads nothing.
_MAX_UNREAD: Final = 4 << 20

_ANSWER: Final = encode_fields(
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", b",".join(ENCODINGS)),
)


class Outbox:
    """The sending half of a connection.

    Args:
        loop: Of the connection.
        on_sent: Called with a call whose last frame is on its way, and has to be let go of.

    Attributes:
        handed: Bytes handed to the transport so far.
    """

    __slots__ = (
        "_frame_size",
        "_is_flushing",
        "_is_writable",
        "_loop",
        "_on_sent",
        "_parts",
        "_sending",
        "_size",
        "_stream_window",
        "_transport",
        "_window",
        "handed",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, on_sent: Callable[[Call], None]) -> None:
        self.handed = 0
        self._loop = loop
        self._on_sent = on_sent
        self._transport: asyncio.Transport | None = None
        self._window = frames.DEFAULT_WINDOW
        self._stream_window = frames.DEFAULT_WINDOW
        self._frame_size = frames.MIN_FRAME_SIZE
        self._sending: dict[int, Call] = {}
        self._parts: list[bytes | memoryview] = []
        self._size = 0
        self._is_flushing = False
        self._is_writable = True

    @property
    def unsent(self) -> int:
        """Bytes that the client has not taken, as far as they were made into frames."""
        held = 0 if self._transport is None else self._transport.get_write_buffer_size()
        return self._size + held

    @property
    def is_waiting(self) -> bool:
        """Whether an answer waits for room."""
        return bool(self._sending)

    def open(self, transport: asyncio.Transport) -> None:
        """Begin to send."""
        self._transport = transport
        transport.set_write_buffer_limits(high=_MAX_FRAME)

    def close(self) -> None:
        """Send nothing more, but what was handed over."""
        self.flush()
        self._transport = None
        self._sending.clear()

    def adopt(self, call: Call) -> None:
        """Give a new call the room that the client gives each."""
        call.window = self._stream_window

    def drop(self, call: Call) -> None:
        """Send nothing more of a call."""
        self._sending.pop(call.stream, None)

    def pause(self) -> None:
        """Make no more DATA until the transport has room."""
        self._is_writable = False

    def resume(self) -> None:
        """Go on after `pause`."""
        self._is_writable = True
        self._pump()

    def widen(self, increment: int, call: Call | None = None) -> bool:
        """Take note of more room for all, or for one call; return whether that is possible."""
        if call is not None:
            call.window += increment
            if call.window > frames.MAX_WINDOW:
                return False
        else:
            self._window += increment
            if self._window > frames.MAX_WINDOW:
                return False
        if self._sending:
            self._pump()
        return True

    def resize(self, window: int, calls: Iterable[Call]) -> bool:
        """Take note of the room that each call begins with; return whether that is possible."""
        change, self._stream_window = window - self._stream_window, window
        for call in calls:
            call.window += change
            if call.window > frames.MAX_WINDOW:
                return False
        self._pump()
        return True

    def set_frame_size(self, size: int) -> None:
        """Take note of how large a frame the client takes."""
        self._frame_size = min(size, _MAX_FRAME)

    def write(self, data: bytes) -> None:
        """Send frames, together with what else this turn of the loop brings."""
        if self._transport is None:
            return
        self._parts.append(data)
        self._size += len(data)
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Hand everything to the transport."""
        self._is_flushing = False
        transport, parts, size = self._transport, self._parts, self._size
        if not parts or transport is None:
            return
        self._parts, self._size = [], 0
        self.handed += size
        # One copy is cheaper than a record of TLS, and a write, for each part.
        transport.write(parts[0] if len(parts) == 1 else b"".join(parts))
        if transport.get_write_buffer_size() > _MAX_UNREAD:
            transport.abort()

    def transmit(self, call: Call) -> None:
        """Send what waits in a call, as far as there is room, and the rest when there is."""
        if call.stream in self._sending:
            if call.pending:
                return  # it has its turn
            del self._sending[call.stream]
        if not call.answered:
            call.answered = True
            self.write(frame(frames.HEADERS, frames.END_HEADERS, call.stream, _ANSWER))
        while call.pending and self._is_writable and self._send_frame(call):
            pass
        if call.pending:
            self._sending[call.stream] = call
        else:
            self._send_trailers(call)

    def _pump(self) -> None:
        """Send what waits, each call in its turn, as long as there is room."""
        is_moving = True
        while is_moving:
            is_moving = False
            for call in tuple(self._sending.values()):
                if self._is_writable and self._send_frame(call):
                    is_moving = True
                    # Unless that ended the connection.
                    if not call.pending and self._sending.pop(call.stream, None) is not None:
                        self._send_trailers(call)

    def _send_frame(self, call: Call) -> bool:
        """Send one DATA frame; return whether there was room for it."""
        room = min(self._frame_size, self._window, call.window)
        if room <= 0:
            return False
        pieces: list[bytes | memoryview] = []
        length = 0
        pending = call.pending
        while pending and length < room:
            part = pending.popleft()
            if length + len(part) > room:
                view = memoryview(part)
                cut = room - length
                pending.appendleft(view[cut:])
                part = view[:cut]
            pieces.append(part)
            length += len(part)
        self._window -= length
        call.window -= length
        self.write(frame_header(frames.DATA, 0, call.stream, length))
        self._parts += pieces
        self._size += length
        if self._size >= _BATCH:
            self.flush()
        call.sent(length)
        return True

    def _send_trailers(self, call: Call) -> None:
        if call.trailers:
            flags = frames.END_HEADERS | frames.END_STREAM
            self.write(frame(frames.HEADERS, flags, call.stream, call.trailers))
            self._on_sent(call)
