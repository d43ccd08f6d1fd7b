"""Requests over connections that are kept: the blocking client's way to a server.

Always true: a connection serves only the TLS context that it was made with, and only the
process that made it.
"""

from __future__ import annotations

import os
import ssl
import threading
from typing import TYPE_CHECKING, Final

from blindai.client.connection import Connection, Deadline, open_connection
from blindai.client.failures import explain
from blindai.client.messages import Response

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from blindai.client.address import Address, Proxy
    from blindai.client.http1 import Head
    from blindai.client.messages import Request

# As many as `run_many` can use.
_MAX_IDLE: Final = 64


class Transport:
    """Sends requests to one server, over connections that are kept. Thread-safe.

    Args:
        address: Of the server.
        proxy: On the way, or `None`.
    """

    def __init__(self, address: Address, proxy: Proxy | None) -> None:
        self._address = address
        self._proxy = proxy
        self._lock = threading.Lock()
        self._idle: list[tuple[ssl.SSLContext, Connection]] = []
        self._process = os.getpid()
        self._closed = False

    def send(
        self, request: Request, context: ssl.SSLContext, *, timeout: float, limit: int
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
        deadline = Deadline(timeout)
        connection = self._take(context) if request.repeatable else None
        while True:
            if connection is None:
                connection = open_connection(self._address, context, deadline, self._proxy)
            try:
                response, keep = connection.exchange(request, deadline, limit)
            except BaseException as error:
                connection.close()
                stale = connection.used and not connection.received
                if stale and isinstance(error, ConnectionError | ssl.SSLError):
                    # Closed while it lay idle: the request reached nobody.
                    connection = None
                    continue
                if isinstance(error, OSError):
                    raise explain(error, self._address, self._proxy, timeout) from error
                raise
            if keep:
                self._keep(context, connection)
            else:
                connection.close()
            return response

    def upload(
        self,
        request: Request,
        chunks: Iterable[bytes | memoryview],
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
        connection = open_connection(self._address, context, Deadline(idle), self._proxy)
        try:
            return connection.upload(request, chunks, size, idle=idle, limit=limit)
        except (OSError, ssl.SSLError) as error:
            raise explain(error, self._address, self._proxy, idle) from error
        finally:
            connection.close()

    def stream(
        self, request: Request, context: ssl.SSLContext, *, timeout: float, limit: int
    ) -> Generator[Head | Response | memoryview]:
        """Send a request over a connection of its own, and yield its answer as it comes.

        Args:
            request: Sent once.
            context: Of the connection.
            timeout: Seconds for each part of the answer.
            limit: Greatest chunk, in bytes.

        Yields:
            The whole answer, if it does not come in chunks; otherwise its head, then its chunks.

        Raises:
            ssl.SSLCertVerificationError: If the peer holds another key; nothing was sent.
            ConnectionFailed: If the server cannot be reached or goes away.
            LimitExceeded: If a chunk is larger than `limit`.
        """
        deadline = Deadline(timeout)
        connection = open_connection(self._address, context, deadline, self._proxy)
        try:
            found = connection.begin(request, deadline, limit)
            yield found
            if isinstance(found, Response):
                return
            while (chunk := connection.chunk(Deadline(timeout), limit)) is not None:
                yield chunk
        except OSError as error:
            raise explain(error, self._address, self._proxy, timeout) from error
        finally:
            connection.close()

    def close(self) -> None:
        """Close the kept connections; those in use are closed when their request is done."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def _take(self, context: ssl.SSLContext) -> Connection | None:
        outdated: list[Connection] = []
        with self._lock:
            if self._process != os.getpid():
                # After a fork both processes hold the same TLS state, and using it twice
                # would repeat nonces. The parent keeps it.
                self._process, self._idle = os.getpid(), []
            found = None
            while self._idle and found is None:
                made_with, connection = self._idle.pop()
                if made_with is context:
                    found = connection
                else:
                    outdated.append(connection)
        for connection in outdated:
            connection.close()
        return found

    def _keep(self, context: ssl.SSLContext, connection: Connection) -> None:
        connection.used = True
        with self._lock:
            if not self._closed and len(self._idle) < _MAX_IDLE:
                self._idle.append((context, connection))
                return
        connection.close()
