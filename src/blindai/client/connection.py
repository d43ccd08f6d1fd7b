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
from typing import TYPE_CHECKING, Final, TypeVar

from blindai.client.failures import explain
from blindai.client.incoming import Incoming, tunnel_answer
from blindai.client.messages import slices
from blindai.client.outgoing import (
    CONTINUE_WAIT,
    framed,
    last_chunk,
    outgoing,
    tunnel_head,
    upload_head,
)
from blindai.errors import BlindAIError, ConnectionFailed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from blindai.client.address import Address, Proxy
    from blindai.client.http1 import Head
    from blindai.client.incoming import Reading
    from blindai.client.messages import Request, Response

T = TypeVar("T")

# By which part a wait may be longer than is left: to say anew how long costs a system call.
_IMPRECISION: Final = 0.01
# One write has one timeout, so a write must be no larger than what any link carries in it.
_WRITE_BYTES: Final = 1 << 20


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

    __slots__ = ("_authority", "_incoming", "_timeout", "received", "sock", "used")

    def __init__(self, sock: socket.socket, authority: str) -> None:
        self.sock = sock
        self.used = False
        self.received = 0
        self._authority = authority
        self._incoming = Incoming()
        self._timeout = 0.0

    def close(self) -> None:
        """Close it; what was on its way is lost."""
        self.sock.close()

    def exchange(self, request: Request, deadline: Deadline, limit: int) -> tuple[Response, bool]:
        """Send a request and return its answer, and whether the connection may be kept."""
        self.received = 0
        try:
            for part in outgoing(request, self._authority):
                self._write(part, deadline)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError) as error:
            return self._refusal(error, deadline, limit), False
        return self._read(self._incoming.answer(limit), deadline)

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
        self._write(upload_head(request, self._authority, size), Deadline(idle))
        found = self._continue(idle)
        if found is None:
            try:
                for chunk in chunks:
                    if self._readable(0):
                        break
                    for part in framed(chunk, size):
                        self._write(part, Deadline(idle))
                else:
                    self._write(last_chunk(size), Deadline(idle))
            except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError) as error:
                return self._refusal(error, Deadline(idle), limit)
        wait = Deadline(idle if request.timeout is None else request.timeout)
        return self._read(self._incoming.answer(limit, found), wait)[0]

    def begin(self, request: Request, deadline: Deadline, limit: int) -> Head | Response:
        """Send a request and return its answer, or the head of one that comes in chunks."""
        for part in outgoing(request, self._authority):
            self._write(part, deadline)
        return self._read(self._incoming.beginning(limit), deadline)

    def chunk(self, deadline: Deadline, limit: int) -> memoryview | None:
        """Return the next chunk of an answer that `begin` began; `None`: that was all."""
        return self._read(self._incoming.chunk(limit), deadline)

    def tunnel(self, target: Address, authorization: str | None, deadline: Deadline) -> None:
        """Ask a proxy for a tunnel; afterwards the socket leads to `target`.

        Raises:
            ConnectionFailed: If the proxy refuses.
        """
        self._write(tunnel_head(target, authorization), deadline)
        try:
            self._read(tunnel_answer(target), deadline)
        except ConnectionResetError as error:
            msg = f"the proxy did not answer CONNECT {target}"
            raise ConnectionFailed(msg) from error

    def _write(self, data: bytes | memoryview, deadline: Deadline) -> None:
        if len(data) <= _WRITE_BYTES:
            self._limit_wait(deadline)
            sent = self.sock.send(data) if data else 0
            # Most requests are sent at once, and `sendall` costs a moment.
            if sent < len(data):
                self.sock.sendall(memoryview(data)[sent:])
            return
        for piece in slices([data], _WRITE_BYTES):
            self._limit_wait(deadline)
            self.sock.sendall(piece)

    def _read(self, reading: Reading[T], deadline: Deadline) -> T:
        try:
            memory = next(reading)
            while True:
                self._limit_wait(deadline)
                count = self.sock.recv_into(memory)
                if not count:
                    # The same however the peer closes, so callers have one case.
                    raise ConnectionResetError
                self.received += count
                memory = reading.send(count)
        except StopIteration as stop:
            value: T = stop.value
            return value

    def _limit_wait(self, deadline: Deadline) -> None:
        left = deadline.left()
        if abs(self._timeout - left) > _IMPRECISION * left:
            self.sock.settimeout(left)
            self._timeout = left

    def _readable(self, seconds: float) -> bool:
        if self._incoming:
            return True
        if isinstance(self.sock, ssl.SSLSocket) and self.sock.pending():
            return True
        return _wait_readable(self.sock, seconds)

    def _continue(self, idle: float) -> Head | None:
        """Return the head that came instead of "go on"; `None`: go on."""
        if not self._readable(min(idle, CONTINUE_WAIT)):
            return None
        found = self._read(self._incoming.head(), Deadline(idle))
        return None if found.interim else found

    def _refusal(self, error: OSError, deadline: Deadline, limit: int) -> Response:
        """Return why the server stopped listening, or raise that it did."""
        try:
            return self._read(self._incoming.answer(limit), deadline)[0]
        except (OSError, BlindAIError):
            raise error from None


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
