"""One blocking HTTP/1.1 connection over a given TLS context.

Always true: every wait has an end, every answer a limit that holds while it is read; no
redirect is followed, no cookie kept, nothing read from the environment. Which peer may
answer is the context's to say, and it is never changed here.

Specification: RFC 9112; RFC 9110 §9.3.6 (CONNECT), §10.1.1 (Expect).
Why not a library: docs/adr/0003-client-http-library.md.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from typing import TYPE_CHECKING, Final

from blindai.client.failures import explain
from blindai.client.http1 import (
    MAX_CHUNK_LINE_BYTES,
    MAX_HEAD_BYTES,
    Head,
    body_length,
    parse_chunk_size,
    parse_head,
)
from blindai.client.messages import Response, receive_buffer, too_large
from blindai.errors import BlindAIError, ConnectionFailed, LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Iterable

    from blindai.client.address import Address, Proxy
    from blindai.client.messages import Request

_BUFFER_BYTES: Final = 64 << 10
# Below this, one write of a copy is cheaper than two writes.
_JOIN_BYTES: Final = 64 << 10
# One write has one timeout, so a write must be no larger than what any link carries in it.
_WRITE_BYTES: Final = 1 << 20
_MAX_INTERIM: Final = 8
_CONTINUE_WAIT: Final = 1.0


class Deadline:
    """A moment by which something must be over.

    Args:
        seconds: From now.
    """

    __slots__ = ("_end", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds left.

        Raises:
            TimeoutError: If there are none.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class Connection:
    """One connection to a server. Not thread-safe. Raises what sockets raise.

    Args:
        sock: Connected; TLS, or plain for the CONNECT request to a proxy.
        authority: For the Host header.
    """

    __slots__ = ("_buffer", "_end", "_host", "_start", "_view", "received", "sock", "used")

    def __init__(self, sock: socket.socket, authority: str) -> None:
        self.sock = sock
        self.used = False
        self.received = 0
        self._host = f"Host: {authority}\r\n"
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0

    def close(self) -> None:
        """Close it; what was on its way is lost."""
        self.sock.close()

    def exchange(self, request: Request, deadline: Deadline, limit: int) -> tuple[Response, bool]:
        """Send a request and return its answer, and whether the connection may be kept."""
        self.received = 0
        length = sum(map(len, request.body))
        head = self._head(request, f"Content-Length: {length}\r\n" if length else "")
        try:
            if length <= _JOIN_BYTES:
                self._write(b"".join((head, *request.body)), deadline)
            else:
                for part in (head, *request.body):
                    self._write(part, deadline)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError) as error:
            return self._refusal(error, deadline, limit), False
        found = self._read_head(deadline)
        return self._read_body(found, deadline, limit), found.keep_alive

    def upload(
        self,
        request: Request,
        chunks: Iterable[bytes | memoryview],
        size: int | None,
        *,
        idle: float,
        limit: int,
    ) -> Response:
        """Send a request whose body is made while it is sent; stop when an answer comes early.

        Args:
            request: Without a body.
            chunks: The body.
            size: Of the body in bytes; `None`: sent in HTTP chunks.
            idle: Seconds that a single write may take.
            limit: Greatest answer, in bytes.
        """
        framing = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}"
        self._write(self._head(request, framing + "\r\n"), Deadline(idle))
        found = self._continue(idle)
        if found is None:
            try:
                for chunk in chunks:
                    if self._readable(0):
                        break
                    if size is None:
                        self._write(b"%x\r\n" % len(chunk), Deadline(idle))
                    self._write(chunk, Deadline(idle))
                    if size is None:
                        self._write(b"\r\n", Deadline(idle))
                else:
                    if size is None:
                        self._write(b"0\r\n\r\n", Deadline(idle))
            except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError) as error:
                return self._refusal(error, Deadline(idle), limit)
        wait = Deadline(idle if request.timeout is None else request.timeout)
        return self._read_body(found or self._read_head(wait), wait, limit)

    def tunnel(self, target: Address, authorization: str | None, deadline: Deadline) -> None:
        """Ask a proxy for a tunnel; afterwards the socket leads to `target`.

        Raises:
            ConnectionFailed: If the proxy refuses.
        """
        head = f"CONNECT {target.authority} HTTP/1.1\r\nHost: {target.authority}\r\n"
        if authorization is not None:
            head += f"Proxy-Authorization: {authorization}\r\n"
        self._write(f"{head}\r\n".encode("ascii"), deadline)
        # Byte by byte: what follows the head belongs to TLS, and must stay in the socket.
        raw = bytearray()
        while not raw.endswith(b"\r\n\r\n"):
            self.sock.settimeout(deadline.left())
            byte = self.sock.recv(1)
            if not byte or len(raw) >= MAX_HEAD_BYTES:
                msg = f"the proxy did not answer CONNECT {target}"
                raise ConnectionFailed(msg)
            raw += byte
        status = parse_head(raw[:-4]).status
        if status != 200:  # noqa: PLR2004
            msg = f"the proxy refused CONNECT {target} with HTTP status {status}"
            raise ConnectionFailed(msg)

    def _head(self, request: Request, framing: str) -> bytes:
        lines = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        return (
            f"{request.method} {request.target} HTTP/1.1\r\n{self._host}{lines}{framing}\r\n"
        ).encode("ascii")

    def _write(self, data: bytes | memoryview, deadline: Deadline) -> None:
        if len(data) <= _WRITE_BYTES:
            self.sock.settimeout(deadline.left())
            self.sock.sendall(data)
            return
        view = memoryview(data)
        for start in range(0, len(view), _WRITE_BYTES):
            self.sock.settimeout(deadline.left())
            self.sock.sendall(view[start : start + _WRITE_BYTES])

    def _readable(self, seconds: float) -> bool:
        if self._end > self._start:
            return True
        if isinstance(self.sock, ssl.SSLSocket) and self.sock.pending():
            return True
        return _wait_readable(self.sock, seconds)

    def _continue(self, idle: float) -> Head | None:
        """Return the answer that came instead of "go on"; `None`: go on."""
        if not self._readable(min(idle, _CONTINUE_WAIT)):
            return None
        found = self._read_one_head(Deadline(idle))
        return None if found.interim else found

    def _refusal(self, error: OSError, deadline: Deadline, limit: int) -> Response:
        """Return why the server stopped listening, or raise that it did."""
        try:
            return self._read_body(self._read_head(deadline), deadline, limit)
        except (OSError, BlindAIError):
            raise error from None

    def _fill(self, deadline: Deadline) -> None:
        if self._start:
            self._view[: self._end - self._start] = self._buffer[self._start : self._end]
            self._end -= self._start
            self._start = 0
        self._end += self._receive(self._view[self._end :], deadline)

    def _receive(self, memory: memoryview, deadline: Deadline) -> int:
        self.sock.settimeout(deadline.left())
        count = self.sock.recv_into(memory)
        if not count:
            # The same however the peer closes, so callers have one case.
            raise ConnectionResetError
        self.received += count
        return count

    def _until(self, mark: bytes, limit: int, deadline: Deadline) -> bytes:
        """Take everything before `mark` out of the buffer, and the mark with it."""
        while True:
            found = self._buffer.find(mark, self._start, self._end)
            if found >= 0:
                taken = bytes(self._view[self._start : found])
                self._start = found + len(mark)
                return taken
            if self._end - self._start > limit:
                msg = f"expected at most {limit} bytes of HTTP header lines, came more"
                raise ConnectionFailed(msg)
            self._fill(deadline)

    def _read_one_head(self, deadline: Deadline) -> Head:
        return parse_head(self._until(b"\r\n\r\n", MAX_HEAD_BYTES, deadline))

    def _read_head(self, deadline: Deadline) -> Head:
        for _ in range(_MAX_INTERIM):
            head = self._read_one_head(deadline)
            if not head.interim:
                return head
        msg = f"the server sent {_MAX_INTERIM} interim answers and no final one"
        raise ConnectionFailed(msg)

    def _read_body(self, head: Head, deadline: Deadline, limit: int) -> Response:
        length = body_length(head)
        if length is None:
            return Response(head.status, head.headers, self._read_chunks(head, deadline, limit))
        if length > limit:
            raise LimitExceeded(too_large(limit))
        body = receive_buffer(head, length)
        self._read_into(body, deadline)
        return Response(head.status, head.headers, body)

    def _read_into(self, memory: memoryview, deadline: Deadline) -> None:
        done = min(len(memory), self._end - self._start)
        memory[:done] = self._view[self._start : self._start + done]
        self._start += done
        while done < len(memory):
            done += self._receive(memory[done:], deadline)

    def _read_chunks(self, head: Head, deadline: Deadline, limit: int) -> memoryview:
        parts: list[memoryview] = []
        total = 0
        while True:
            size = parse_chunk_size(self._until(b"\r\n", MAX_CHUNK_LINE_BYTES, deadline))
            total += size
            if total > limit:
                raise LimitExceeded(too_large(limit))
            if not size:
                break
            parts.append(memoryview(bytearray(size)))
            self._read_into(parts[-1], deadline)
            if self._until(b"\r\n", 0, deadline):
                msg = "a chunk of the HTTP answer is longer than it says"
                raise ConnectionFailed(msg)
        while self._until(b"\r\n", MAX_HEAD_BYTES, deadline):
            pass  # trailers: nothing here needs one
        body = receive_buffer(head, total)
        position = 0
        for part in parts:
            body[position : position + len(part)] = part
            position += len(part)
        return body


def open_connection(
    address: Address, context: ssl.SSLContext, deadline: Deadline, proxy: Proxy | None = None
) -> Connection:
    """Connect and shake hands; `context` says with whom.

    Raises:
        ssl.SSLCertVerificationError: If the peer holds another key than the context wants.
        BlindAIError: If it fails in any other way, with what was tried.
    """
    near = address if proxy is None else proxy.address
    sock: socket.socket | None = None
    try:
        sock = socket.create_connection((near.host, near.port), deadline.left())
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if proxy is not None:
            Connection(sock, near.authority).tunnel(address, proxy.authorization, deadline)
        sock.settimeout(deadline.left())
        sock = context.wrap_socket(sock, server_hostname=address.host)
    except BaseException as error:
        if sock is not None:
            sock.close()
        if isinstance(error, ssl.SSLCertVerificationError) or not isinstance(
            error, (OSError, UnicodeError)
        ):
            raise
        raise explain(error, address, proxy, deadline.seconds) from error
    return Connection(sock, address.authority)


def _wait_readable(sock: socket.socket, seconds: float) -> bool:
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    return bool(select.select([sock], [], [], seconds)[0])
