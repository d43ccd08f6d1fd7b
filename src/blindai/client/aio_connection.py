"""One asyncio HTTP/1.1 connection over a given TLS context.

Always true: as in `connection`: every answer has a limit that holds while it is read, no
redirect is followed, nothing is read from the environment, and which peer may answer is the
context's to say. Bytes that nobody asked for end the connection. Whoever awaits here brings
the time limit (`asyncio.timeout`); a connection that was left in the middle is aborted.

Specification: RFC 9112; RFC 9110 §9.3.6 (CONNECT), §10.1.1 (Expect).
Why not a library: docs/adr/0003-client-http-library.md.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import TYPE_CHECKING, Final, TypeVar, cast

from blindai.client.http1 import Head
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
    import ssl
    from collections.abc import AsyncIterator, Iterable

    from blindai.client.address import Address, Proxy
    from blindai.client.incoming import Reading
    from blindai.client.messages import Request, Response

T = TypeVar("T")

# Chunks of an answer that nobody has taken; then the connection pauses.
_MAX_ARRIVED: Final = 16
# asyncio encrypts what it is given at once, so a piece is what lies in memory twice.
_PIECE_BYTES: Final = 256 << 10


class AsyncConnection(asyncio.BufferedProtocol):
    """One connection to a server, for one request at a time. Raises what sockets raise.

    Args:
        authority: For the Host header.
    """

    def __init__(self, authority: str) -> None:
        self.used = False
        self.received = 0
        self._authority = authority
        self._loop = asyncio.get_running_loop()
        self._incoming = Incoming()
        self._transport: asyncio.Transport | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()
        # What is being read, what it becomes, and where its next bytes go.
        self._reading: Reading[object] | None = None
        self._outcome: asyncio.Future[object] = self._loop.create_future()
        self._unasked = memoryview(bytearray(1))
        self._memory = self._unasked
        self._ended = False
        self._paused = False
        self._wakening: asyncio.Future[None] | None = None
        # Of an answer that is taken as it comes: what came, and whether that is enough for now.
        self._arrived: deque[Head | Response | memoryview] = deque()
        self._announcement: asyncio.Future[None] | None = None
        self._is_full = False

    @property
    def is_open(self) -> bool:
        """Whether a request can be sent, as far as anybody knows."""
        transport = self._transport
        return transport is not None and not transport.is_closing() and not self._ended

    async def close(self) -> None:
        """Close it and wait until it is; what was on its way is lost."""
        self.abort()
        if self._transport is not None:
            await self._closed

    def abort(self) -> None:
        """Close it without waiting."""
        if self._transport is not None:
            self._transport.abort()

    async def exchange(self, request: Request, limit: int) -> tuple[Response, bool]:
        """Send a request and return its answer, and whether the connection may be kept."""
        self.received = 0
        answer = self._begin(self._incoming.answer(limit))
        complete = True
        for piece in slices(outgoing(request, self._authority), _PIECE_BYTES):
            if not (complete := await self._write(piece)):
                break
        response, keep = await answer
        return response, keep and complete

    async def upload(
        self,
        request: Request,
        chunks: AsyncIterator[bytes],
        size: int | None,
        *,
        limit: int,
        progress: asyncio.Timeout,
        idle: float,
    ) -> Response:
        """Send a request whose body is made while it is sent; stop when an answer comes early.

        Args:
            request: Without a body.
            chunks: The body.
            size: Of the body in bytes; `None`: sent in HTTP chunks.
            limit: Greatest answer, in bytes.
            progress: Put off by `idle` seconds with each piece of the body that went out.
            idle: In seconds.
        """
        go_on = asyncio.Event()
        answer = self._begin(self._incoming.answer(limit, on_interim=go_on.set))
        self._outcome.add_done_callback(lambda _: go_on.set())
        await self._write(upload_head(request, self._authority, size))
        try:
            async with asyncio.timeout(min(idle, CONTINUE_WAIT)):
                await go_on.wait()
        except TimeoutError:
            pass  # RFC 9110 §10.1.1: a client does not wait for ever
        if not self._outcome.done():
            await self._write_chunks(chunks, size, progress, idle)
        wait = idle if request.timeout is None else request.timeout
        progress.reschedule(self._loop.time() + wait)
        return (await answer)[0]

    async def begin(self, request: Request, limit: int) -> None:
        """Send a request whose answer `arrival` returns, as it comes.

        Args:
            request: With its whole body.
            limit: Greatest chunk, or answer that does not come in chunks, in bytes.
        """
        answer = self._begin(self._pieces(limit))
        answer.add_done_callback(lambda _: self._announce())
        for piece in slices(outgoing(request, self._authority), _PIECE_BYTES):
            if not await self._write(piece):
                return

    async def arrival(self) -> Head | Response | memoryview | None:
        """Return what came next: the answer, or its head and then its chunks; `None`: all came."""
        while not self._arrived:
            if self._outcome.done():
                self._outcome.result()
                return None
            self._announcement = self._loop.create_future()
            await self._announcement
        found = self._arrived.popleft()
        if self._transport is not None and self._is_full:
            self._is_full = len(self._arrived) > _MAX_ARRIVED
            if not self._is_full:
                self._transport.resume_reading()
        return found

    def _pieces(self, limit: int) -> Reading[None]:
        found = yield from self._incoming.beginning(limit)
        self._arrive(found)
        if isinstance(found, Head):
            while (chunk := (yield from self._incoming.chunk(limit))) is not None:
                self._arrive(chunk)

    def _arrive(self, piece: Head | Response | memoryview) -> None:
        self._arrived.append(piece)
        self._announce()
        if len(self._arrived) > _MAX_ARRIVED and self._transport is not None:
            # The server then finds no room for what it makes, and waits.
            self._is_full = True
            self._transport.pause_reading()

    def _announce(self) -> None:
        if self._announcement is not None and not self._announcement.done():
            self._announcement.set_result(None)

    async def tunnel(
        self, target: Address, authorization: str | None, context: ssl.SSLContext, seconds: float
    ) -> None:
        """Ask a proxy for a tunnel, and shake hands with `target` through it.

        Raises:
            ConnectionFailed: If the proxy refuses.
        """
        answer = self._begin(tunnel_answer(target))
        await self._write(tunnel_head(target, authorization))
        try:
            await answer
        except ConnectionResetError as error:
            msg = f"the proxy did not answer CONNECT {target}"
            raise ConnectionFailed(msg) from error
        plain = cast("asyncio.Transport", self._transport)
        self._transport = await self._loop.start_tls(
            plain,
            self,
            context,
            server_hostname=target.host,
            ssl_handshake_timeout=seconds,
        )
        self._authority = target.authority

    async def _write_chunks(
        self,
        chunks: AsyncIterator[bytes],
        size: int | None,
        progress: asyncio.Timeout,
        idle: float,
    ) -> None:
        async for chunk in chunks:
            for piece in slices(list(framed(chunk, size)), _PIECE_BYTES):
                if not await self._write(piece):
                    return
                progress.reschedule(self._loop.time() + idle)
        await self._write(last_chunk(size))

    def _begin(self, reading: Reading[T]) -> asyncio.Future[T]:
        """Start to read; the future has what it becomes."""
        if self._ended:
            raise ConnectionResetError
        self._outcome = self._loop.create_future()
        self._reading = reading
        self._step(None)
        return cast("asyncio.Future[T]", self._outcome)

    async def _write(self, data: bytes | memoryview) -> bool:
        """Write, and wait while the peer takes no more; `False`: an answer, or the end, came."""
        if self._outcome.done() or self._transport is None:
            return False
        if data:
            self._transport.write(data)
        if self._paused:
            self._wakening = self._loop.create_future()
            await self._wakening
        return not self._outcome.done()

    def _step(self, count: int | None) -> None:
        """Tell the reading how many bytes came, and learn where the next ones go."""
        if self._reading is None:
            return
        try:
            # A generator starts with None, which its type cannot say.
            self._memory = self._reading.send(count)  # type: ignore[arg-type]
        except StopIteration as stop:
            self._reading, self._memory = None, self._unasked
            if not self._outcome.done():
                self._outcome.set_result(stop.value)
            self._wake()
        except BlindAIError as error:
            self._fail(error)
            self.abort()

    def _fail(self, error: Exception) -> None:
        self._reading, self._memory = None, self._unasked
        if not self._outcome.done():
            self._outcome.set_exception(error)
            # Seen: nobody may be waiting for it, as after a timeout.
            self._outcome.exception()
        self._wake()

    def _wake(self) -> None:
        if self._wakening is not None and not self._wakening.done():
            self._wakening.set_result(None)
        self._wakening = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's name
        """Return where the next bytes belong."""
        return self._memory

    def buffer_updated(self, nbytes: int) -> None:
        """Take note of bytes that came."""
        self.received += nbytes
        if self._reading is None:
            self.abort()
        else:
            self._step(nbytes)

    def eof_received(self) -> None:
        """Take note that no more bytes come."""
        # The same however the peer closes, so callers have one case.
        self._ended = True
        self._fail(ConnectionResetError())

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note that the connection is gone."""
        self._ended = True
        self._fail(exc or ConnectionResetError())
        if not self._closed.done():
            self._closed.set_result(None)

    def pause_writing(self) -> None:
        """Take note that the peer takes no more for now."""
        self._paused = True

    def resume_writing(self) -> None:
        """Take note that it does again."""
        self._paused = False
        self._wake()


async def open_connection(
    address: Address, context: ssl.SSLContext, seconds: float, proxy: Proxy | None = None
) -> AsyncConnection:
    """Connect and shake hands; `context` says with whom. Raises what sockets raise.

    Args:
        address: Of the server.
        context: For the handshake.
        seconds: For the handshake; the caller limits all of it.
        proxy: On the way, or `None`.

    Raises:
        ssl.SSLCertVerificationError: If the peer holds another key than the context wants.
        ConnectionFailed: If the proxy refuses.
    """
    loop = asyncio.get_running_loop()
    if proxy is None:
        sock = await _connect(address)
        _, connection = await loop.create_connection(
            lambda: AsyncConnection(address.authority),
            sock=sock,
            ssl=context,
            server_hostname=address.host,
            ssl_handshake_timeout=seconds,
        )
        return connection
    sock = await _connect(proxy.address)
    _, connection = await loop.create_connection(
        lambda: AsyncConnection(proxy.address.authority), sock=sock
    )
    try:
        await connection.tunnel(address, proxy.authorization, context, seconds)
    except BaseException:
        connection.abort()
        raise
    return connection


async def _connect(near: Address) -> socket.socket:
    """Return a socket to the first of the host's addresses that answers."""
    loop = asyncio.get_running_loop()
    failure: OSError = ConnectionRefusedError()
    found: Iterable[tuple[int, int, int, str, tuple[object, ...]]]
    found = await loop.getaddrinfo(near.host, near.port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, target in found:
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # such as a machine without IPv6
            failure = error
            continue
        try:
            sock.setblocking(False)  # noqa: FBT003 - the library's own
            await loop.sock_connect(sock, target)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure
