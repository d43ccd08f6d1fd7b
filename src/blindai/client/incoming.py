"""A peer's bytes, taken apart as they come, for whichever connection brings them.

Always true: nothing here reads or waits. A reading is a generator that yields the memory
into which the next bytes belong and is sent how many came. So the blocking and the asyncio
client share every rule, each limit holds while it is read, and the body of an answer goes
straight into the memory that the caller gets.

Specification: RFC 9112 §6 and §7.1; RFC 9110 §9.3.6 (CONNECT), §15.2 (interim answers).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Final, TypeVar

from blindai.client.http1 import (
    MAX_CHUNK_LINE_BYTES,
    MAX_HEAD_BYTES,
    Head,
    body_length,
    parse_chunk_size,
    parse_head,
)
from blindai.client.messages import Response, receive_buffer, too_large
from blindai.errors import ConnectionFailed, LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Callable

    from blindai.client.address import Address

T = TypeVar("T")
Reading = Generator[memoryview, int, T]

_BUFFER_BYTES: Final = 64 << 10
_MAX_INTERIM: Final = 8


class Incoming:
    """What a connection has brought and nobody has taken yet."""

    __slots__ = ("_buffer", "_end", "_start", "_view")

    def __init__(self) -> None:
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0

    def __len__(self) -> int:
        return self._end - self._start

    def head(self) -> Reading[Head]:
        """Read one head, be it final or interim."""
        while (head := self._take_head()) is None:
            count = yield self._room()  # which moves the end
            self._end += count
        return head

    def answer(
        self,
        limit: int,
        head: Head | None = None,
        *,
        on_interim: Callable[[], None] | None = None,
    ) -> Reading[tuple[Response, bool]]:
        """Read an answer, and whether the connection may be kept after it.

        Args:
            limit: Greatest body, in bytes.
            head: Its head, if that was read already.
            on_interim: Called for each interim answer that comes first.

        Raises:
            ConnectionFailed: If what comes is no answer.
            LimitExceeded: If it is larger than `limit`.
        """
        if head is None:
            head = yield from self._final_head(on_interim)
        length = body_length(head)
        if length is None:
            body = yield from self._chunks(head, limit)
        elif length > limit:
            raise LimitExceeded(too_large(limit))
        else:
            body = receive_buffer(head, length)
            done = self._take_into(body)
            while done < length:
                done += yield body[done:]
        return Response(head.status, head.headers, body), head.keep_alive

    def beginning(self, limit: int) -> Reading[Head | Response]:
        """Read an answer, or, if it comes in chunks, its head; `chunk` reads what follows.

        Args:
            limit: Greatest body, in bytes.

        Raises:
            ConnectionFailed: If what comes is no answer.
            LimitExceeded: If it is larger than `limit`.
        """
        head = yield from self._final_head(None)
        if body_length(head) is None:
            return head
        return (yield from self.answer(limit, head))[0]

    def chunk(self, limit: int) -> Reading[memoryview | None]:
        """Read one chunk; `None`: that was all.

        Args:
            limit: Greatest chunk, in bytes.

        Raises:
            ConnectionFailed: If what comes is no chunk.
            LimitExceeded: If it is larger than `limit`.
        """
        size = parse_chunk_size((yield from self._line(MAX_CHUNK_LINE_BYTES)))
        if size > limit:
            raise LimitExceeded(too_large(limit))
        if not size:
            while (yield from self._line(MAX_HEAD_BYTES)):
                pass  # trailers: nothing here needs one
            return None
        part = memoryview(bytearray(size))
        done = self._take_into(part)
        while done < size:
            done += yield part[done:]
        if (yield from self._line(0)):
            msg = "a chunk of the HTTP answer is longer than it says"
            raise ConnectionFailed(msg)
        return part

    def _final_head(self, on_interim: Callable[[], None] | None) -> Reading[Head]:
        interim = 0
        # Not by `head`: a generator inside another costs each answer a moment.
        while (head := self._take_head()) is None or head.interim:
            if head is None:
                count = yield self._room()  # which moves the end
                self._end += count
                continue
            interim += 1
            if interim == _MAX_INTERIM:
                msg = f"the server sent {_MAX_INTERIM} interim answers and no final one"
                raise ConnectionFailed(msg)
            if on_interim is not None:
                on_interim()
        return head

    def _take_head(self) -> Head | None:
        data = self._take_until(b"\r\n\r\n", MAX_HEAD_BYTES)
        return None if data is None else parse_head(data)

    def _take_until(self, mark: bytes, limit: int) -> bytes | None:
        """Take everything before `mark` out, and the mark with it; `None`: more has to come."""
        found = self._buffer.find(mark, self._start, self._end)
        if found >= 0:
            taken = bytes(self._view[self._start : found])
            self._start = found + len(mark)
            return taken
        if self._end - self._start > limit:
            msg = f"expected at most {limit} bytes of HTTP header lines, came more"
            raise ConnectionFailed(msg)
        return None

    def _room(self) -> memoryview:
        """Return where more bytes can go."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start:
            self._view[: self._end - self._start] = self._buffer[self._start : self._end]
            self._end -= self._start
            self._start = 0
        return self._view[self._end :]

    def _take_into(self, memory: memoryview) -> int:
        """Move what is there of a body into its memory, and return how much that was."""
        count = min(len(memory), self._end - self._start)
        memory[:count] = self._view[self._start : self._start + count]
        self._start += count
        return count

    def _line(self, limit: int) -> Reading[bytes]:
        while (line := self._take_until(b"\r\n", limit)) is None:
            count = yield self._room()  # which moves the end
            self._end += count
        return line

    def _chunks(self, head: Head, limit: int) -> Reading[memoryview]:
        parts: list[memoryview] = []
        total = 0
        while (part := (yield from self.chunk(limit - total))) is not None:
            total += len(part)
            parts.append(part)
        body = receive_buffer(head, total)
        position = 0
        for part in parts:
            body[position : position + len(part)] = part
            position += len(part)
        return body


def tunnel_answer(target: Address) -> Reading[None]:
    """Read what a proxy answers to CONNECT; afterwards the connection leads to `target`.

    Raises:
        ConnectionFailed: If it refuses.
    """
    # Byte by byte: what follows the head belongs to TLS, and must stay in the socket.
    raw, byte = bytearray(), memoryview(bytearray(1))
    while not raw.endswith(b"\r\n\r\n"):
        if len(raw) >= MAX_HEAD_BYTES:
            msg = f"the proxy did not answer CONNECT {target}"
            raise ConnectionFailed(msg)
        yield byte
        raw += byte
    status = parse_head(bytes(raw[:-4])).status
    if status != 200:  # noqa: PLR2004
        msg = f"the proxy refused CONNECT {target} with HTTP status {status}"
        raise ConnectionFailed(msg)
