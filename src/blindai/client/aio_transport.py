"""Requests over connections that are kept: the asyncio client's way to a server.

Always true: a connection serves only the TLS context that it was made with, and only the
event loop and the process that made it. There are never more than `MAX_CONNECTIONS` for
requests; who comes when all are in use waits, within its own time limit.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from blindai.client.aio_connection import AsyncConnection, open_connection
from blindai.client.failures import explain
from blindai.errors import BlindAIError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator

    from blindai.client.address import Address, Proxy
    from blindai.client.http1 import Head
    from blindai.client.messages import Request, Response

MAX_CONNECTIONS: Final = 100


class AsyncTransport:
    """Sends requests to one server, over connections that are kept. For one loop at a time.

    Args:
        address: Of the server.
        proxy: On the way, or `None`.
    """

    def __init__(self, address: Address, proxy: Proxy | None) -> None:
        self._address = address
        self._proxy = proxy
        self._home: tuple[asyncio.AbstractEventLoop, int] | None = None
        self._idle: list[tuple[ssl.SSLContext, AsyncConnection]] = []
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)

    async def send(
        self,
        request: Request,
        context: ssl.SSLContext,
        *,
        timeout: float,  # noqa: ASYNC109 - explained to the user with the address
        limit: int,
    ) -> Response:
        """Send a request over a connection that `context` accepts, and return the answer.

        Args:
            request: Sent once more if a kept connection turns out closed, where it may be.
            context: Only connections made with it are used.
            timeout: Seconds for all of it.
            limit: Greatest body of an answer, in bytes.

        Raises:
            ssl.SSLCertVerificationError: If the peer holds another key; nothing was sent.
            ConnectionFailed: If the server cannot be reached or goes away.
            LimitExceeded: If the answer is larger than `limit`.
        """
        self._come_home()
        with self._explained(timeout):
            async with asyncio.timeout(timeout), self._slots:
                return await self._send(request, context, timeout, limit)

    async def upload(
        self,
        request: Request,
        chunks: AsyncIterator[bytes],
        size: int | None,
        context: ssl.SSLContext,
        *,
        idle: float,
        limit: int,
    ) -> Response:
        """Send a request whose body is made on the way, over a connection of its own.

        Raises:
            ssl.SSLCertVerificationError: If the peer holds another key; nothing was sent
                and `chunks` was not touched.
            ConnectionFailed: If the server cannot be reached or goes away.
        """
        with self._explained(idle):
            async with asyncio.timeout(idle) as progress:
                connection = await open_connection(self._address, context, idle, self._proxy)
                try:
                    return await connection.upload(
                        request, chunks, size, limit=limit, progress=progress, idle=idle
                    )
                finally:
                    connection.abort()

    async def stream(
        self,
        request: Request,
        context: ssl.SSLContext,
        *,
        timeout: float,  # noqa: ASYNC109 - explained to the user with the address
        limit: int,
    ) -> AsyncGenerator[Head | Response | memoryview]:
        """Send a request over a connection of its own; see `Transport.stream`."""
        with self._explained(timeout):
            async with asyncio.timeout(timeout):
                connection = await open_connection(self._address, context, timeout, self._proxy)
        try:
            with self._explained(timeout):
                async with asyncio.timeout(timeout):
                    await connection.begin(request, limit)
                    found = await connection.arrival()
            while found is not None:
                yield found
                with self._explained(timeout):
                    async with asyncio.timeout(timeout):
                        found = await connection.arrival()
        finally:
            connection.abort()

    async def close(self) -> None:
        """Close the kept connections."""
        idle, self._idle = self._idle, []
        if self._is_home():
            for _, connection in idle:
                await connection.close()

    async def _send(
        self, request: Request, context: ssl.SSLContext, seconds: float, limit: int
    ) -> Response:
        connection = self._take(context) if request.repeatable else None
        while True:
            if connection is None:
                connection = await open_connection(self._address, context, seconds, self._proxy)
            try:
                response, keep = await connection.exchange(request, limit)
            except BaseException as error:
                connection.abort()
                stale = connection.used and not connection.received
                if stale and isinstance(error, ConnectionError | ssl.SSLError):
                    # Closed while it lay idle: the request reached nobody.
                    connection = None
                    continue
                raise
            if keep and connection.is_open:
                connection.used = True
                self._idle.append((context, connection))
            else:
                connection.abort()
            return response

    def _take(self, context: ssl.SSLContext) -> AsyncConnection | None:
        while self._idle:
            made_with, connection = self._idle.pop()
            if made_with is context and connection.is_open:
                return connection
            connection.abort()
        return None

    def _is_home(self) -> bool:
        return self._home == (asyncio.get_running_loop(), os.getpid())

    def _come_home(self) -> None:
        """Forget what belongs to another event loop, or to the process this one was forked of."""
        if not self._is_home():
            self._home = asyncio.get_running_loop(), os.getpid()
            self._idle = []
            self._slots = asyncio.Semaphore(MAX_CONNECTIONS)

    @contextmanager
    def _explained(self, seconds: float) -> Iterator[None]:
        try:
            yield
        except (ssl.SSLCertVerificationError, BlindAIError):
            raise
        except (OSError, UnicodeError) as error:
            raise explain(error, self._address, self._proxy, seconds) from error
