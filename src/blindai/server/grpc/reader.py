"""Bytes of a connection to frames: the preface, frames in their order, header blocks as a whole.

Always true: a frame is looked at only as far as its bytes are there; of what is incomplete, no
more is held than one frame that is no DATA and one header block, both bounded. DATA is handed on
as it comes, whatever the length of its frame, and from some size on it is received where it stays.
No bytes make it raise; a breach is told once, and what comes after it is dropped.

Specification: RFC 9113 §3.4, §4 and §6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from blindai.server.grpc import frames
from blindai.server.grpc.frames import Code

if TYPE_CHECKING:
    from collections.abc import Callable

# Fewer, larger frames cost less.
FRAME_SIZE: Final = 1 << 20
# What is left of a DATA frame from which on its bytes are received where they stay.
DIRECT_FROM: Final = 64 << 10


class Sink(Protocol):
    """Who is told of what was read."""

    def on_headers(self, stream: int, block: bytes, *, ends: bool) -> None:
        """Take a complete header block."""
        ...

    def on_data(self, stream: int, length: int, overhead: int, *, ends: bool) -> None:
        """Take the beginning of a DATA frame: its length, and how much of it is padding."""
        ...

    def on_payload(self, stream: int, piece: memoryview) -> None:
        """Take some bytes of a DATA frame."""
        ...

    def room_for(self, stream: int, count: int) -> memoryview | None:
        """Return memory for up to `count` of the next bytes; `None`: hand them over."""
        ...

    def on_filled(self, stream: int, count: int) -> None:
        """Take note of bytes that were received into `room_for`."""
        ...

    def on_end(self, stream: int) -> None:
        """Take note that a DATA frame, now complete, was the stream's last."""
        ...

    def on_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Take any other frame."""
        ...

    def on_breach(self, code: Code, why: str) -> None:
        """Take note that the peer broke the protocol."""
        ...


class FrameReader:
    """Reads one connection, as its server.

    Args:
        sink: Is told.
        max_block: Bytes of one header block, each frame of it counted with its header.

    Attributes:
        count: Of frames that were told of so far.
    """

    __slots__ = (
        "_block",
        "_block_ends",
        "_block_size",
        "_block_stream",
        "_data_ends",
        "_data_left",
        "_data_stream",
        "_handlers",
        "_has_preface",
        "_has_settings",
        "_held",
        "_is_broken",
        "_max_block",
        "_padding_left",
        "_sink",
        "count",
    )

    def __init__(self, sink: Sink, max_block: int) -> None:
        self.count = 0
        self._sink = sink
        self._max_block = max_block
        self._is_broken = False
        self._held = b""  # the beginning of a frame
        self._has_preface = False
        self._has_settings = False
        self._data_left = 0  # of a DATA frame
        self._padding_left = 0
        self._data_stream = 0
        self._data_ends = False
        self._block: list[bytes] = []  # of HEADERS whose CONTINUATION is to come
        self._block_size = 0
        self._block_stream = 0
        self._block_ends = False
        self._handlers: dict[int, Callable[[int, int, bytes], None]] = {
            frames.HEADERS: self._on_headers,
            frames.CONTINUATION: self._on_continuation,
        }

    @property
    def is_within(self) -> bool:
        """Whether the peer owes the rest of its beginning, of a frame, or of a header block."""
        return not self._has_settings or bool(self._block_stream) or bool(self._held)

    def stop(self) -> None:
        """Drop whatever comes from now on."""
        self._is_broken = True
        self._held = b""
        self._block = []

    def target(self) -> memoryview | None:
        """Return where the next bytes are to be received; `None`: anywhere, for `feed`."""
        if self._data_left < DIRECT_FROM or self._is_broken:
            return None
        return self._sink.room_for(self._data_stream, self._data_left)

    def filled(self, count: int) -> None:
        """Take note that so many bytes were received into `target`."""
        self._data_left -= count
        self._sink.on_filled(self._data_stream, count)
        self._end_data()

    def feed(self, data: memoryview) -> None:
        """Take what came, and tell of all that is complete.

        Args:
            data: May change afterwards; what is needed of it is copied.
        """
        if self._is_broken:
            return
        if self._held:
            data, self._held = memoryview(self._held + data), b""
        position = 0
        if not self._has_preface:
            position = len(frames.PREFACE)
            beginning = bytes(data[:position])
            if not frames.PREFACE.startswith(beginning):
                self._breach(Code.PROTOCOL_ERROR, "expected the preface of HTTP/2")
                return
            if len(beginning) < position:
                self._held = beginning
                return
            self._has_preface = True
        position = self._read(data, position)
        if position < len(data) and not self._is_broken:
            self._held = bytes(data[position:])

    def _read(self, data: memoryview, position: int) -> int:
        """Read all that is there; return the position of what has to wait."""
        size = len(data)
        while position < size and not self._is_broken:
            if self._data_left or self._padding_left:
                position = self._read_payload(data, position)
                continue
            body = position + frames.HEADER_SIZE
            if body > size:
                break
            high, low, kind, flags, stream = frames.parse_header(data, position)
            length = high << 8 | low
            stream &= frames.STREAM_BITS
            if self._is_out_of_place(kind, flags, stream) or self._is_too_large(kind, length):
                break
            if kind == frames.DATA:
                start = self._begin_data(flags, stream, length, data[body:])
                if start < 0:
                    break
                position = body + start
                continue
            position, end = body + length, position
            if position > size:
                return end
            self.count += 1
            handler = self._handlers.get(kind)
            if handler is not None:
                handler(flags, stream, bytes(data[body:position]))
                continue
            self._has_settings = True  # the first frame is nothing else
            self._sink.on_frame(kind, flags, stream, bytes(data[body:position]))
        return position

    def _is_out_of_place(self, kind: int, flags: int, stream: int) -> bool:
        """Refuse frames that may not come here; return whether it was one."""
        if not self._has_settings and (kind != frames.SETTINGS or flags & frames.ACK):
            self._breach(Code.PROTOCOL_ERROR, "expected SETTINGS first")
        elif self._block_stream:
            if kind == frames.CONTINUATION and stream == self._block_stream:
                return False
            self._breach(Code.PROTOCOL_ERROR, "expected CONTINUATION")
        elif kind == frames.CONTINUATION:
            self._breach(Code.PROTOCOL_ERROR, "CONTINUATION of nothing")
        else:
            return False
        return True

    def _is_too_large(self, kind: int, length: int) -> bool:
        if length <= (FRAME_SIZE if kind == frames.DATA else self._max_block):
            return False
        self._breach(Code.FRAME_SIZE_ERROR, "a frame is too large")
        return True

    def _begin_data(self, flags: int, stream: int, length: int, rest: memoryview) -> int:
        """Take a DATA frame's beginning; return how much of `rest` it is, -1: not there yet."""
        start = padding = 0
        if flags & frames.PADDED:
            if not rest and length:
                return -1
            start, padding = 1, rest[0] if length else 0
            if start + padding > length:
                self._breach(Code.PROTOCOL_ERROR, "a frame is all padding")
                return -1
        self.count += 1
        self._data_stream = stream
        self._data_left = length - start - padding
        self._padding_left = padding
        self._data_ends = bool(flags & frames.END_STREAM)
        self._sink.on_data(stream, length, start + padding, ends=self._data_ends)
        self._end_data()
        return start

    def _read_payload(self, data: memoryview, position: int) -> int:
        """Take what is there of a DATA frame; return the position after."""
        if self._data_left:
            piece = data[position : position + self._data_left]
            self._data_left -= len(piece)
            position += len(piece)
            self._sink.on_payload(self._data_stream, piece)
        skipped = min(self._padding_left, len(data) - position)
        self._padding_left -= skipped
        self._end_data()
        return position + skipped

    def _end_data(self) -> None:
        if self._data_ends and not self._data_left and not self._padding_left:
            self._data_ends = False
            self._sink.on_end(self._data_stream)

    def _on_headers(self, flags: int, stream: int, payload: bytes) -> None:
        start = padding = 0
        if flags & frames.PADDED:
            start, padding = 1, payload[0] if payload else 0
        if flags & frames.PRIORITIZED:
            start += frames.PRIORITY_SIZE
        if not stream & 1 or start + padding > len(payload):
            self._breach(Code.PROTOCOL_ERROR, "HEADERS that cannot be")
            return
        self._block, self._block_size = [], 0
        self._block_stream = stream
        self._block_ends = bool(flags & frames.END_STREAM)
        self._on_continuation(flags, stream, payload[start : len(payload) - padding])

    def _on_continuation(self, flags: int, _stream: int, payload: bytes) -> None:
        self._block.append(payload)
        # With what it costs where it is empty.
        self._block_size += len(payload) + frames.HEADER_SIZE
        if self._block_size > self._max_block + frames.HEADER_SIZE:
            self._breach(Code.ENHANCE_YOUR_CALM, "header fields are too large")
        elif flags & frames.END_HEADERS:
            stream, self._block_stream = self._block_stream, 0
            block = self._block[0] if len(self._block) == 1 else b"".join(self._block)
            self._sink.on_headers(stream, block, ends=self._block_ends)

    def _breach(self, code: Code, why: str) -> None:
        self.stop()
        self._sink.on_breach(code, why)
