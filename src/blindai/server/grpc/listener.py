"""The gRPC port: a socket, our HTTP/2 on it, and a tick that watches the connections.

Specification: as `blindai.server.listener`, of which it is the twin.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from blindai.server.grpc.connection import Connection, Port
from blindai.server.service import State

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Mapping

    from blindai.server.config import Limits
    from blindai.server.grpc.call import Method
    from blindai.server.limits import ByteBudget
    from blindai.server.service import Service

_BACKLOG: Final = 1024
_TICK_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.02
# Counts from the last write on: what is in buffers then has to arrive within it.
_TLS_CLOSE_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 2.0


class GrpcListener:
    """Serves the gRPC port.

    Args:
        listening: As `blindai.server.listener.bind` returns it; closed with the listener.
        limits: Of its connections.
        service: Says where in its life the server is.
        bodies: Counts what all calls hold.

    Attributes:
        address: Host and port.
    """

    def __init__(
        self, listening: socket.socket, limits: Limits, service: Service, bodies: ByteBudget
    ) -> None:
        self.address: tuple[str, int] = listening.getsockname()[:2]
        self._socket = listening
        self._limits = limits
        self._service = service
        self._bodies = bodies
        self._connections: set[Connection] = set()
        self._server: asyncio.AbstractServer | None = None
        self._ticking: asyncio.Task[None] | None = None

    async def serve(self, methods: Mapping[bytes, Method], context: ssl.SSLContext) -> None:
        """Begin to serve, or serve new connections with other methods and another key.

        Connections that are open keep the methods and the key that they have.

        Args:
            methods: By path.
            context: Of TLS, with "h2" as its only protocol.
        """
        before = self._server
        port = Port(
            methods,
            self._limits,
            self._bodies,
            self._why_not,
            self._connections,
            self._service.traffic.answers["grpc"],
        )
        # A copy each: closing a server closes its socket, and this one has to stay.
        self._server = await asyncio.get_running_loop().create_server(
            partial(Connection, port),
            sock=self._socket.dup(),
            ssl=context,
            backlog=_BACKLOG,
            ssl_handshake_timeout=self._limits.header_timeout,
            ssl_shutdown_timeout=_TLS_CLOSE_SECONDS,
        )
        if before is not None:
            before.close()
        if self._ticking is None:
            self._ticking = asyncio.create_task(self._tick())

    def connections(self) -> list[Connection]:
        """Return the connections that are open."""
        return list(self._connections)

    def stop_accepting(self) -> None:
        """Take no new connections, and no new calls on those that are open."""
        if self._server is not None:
            self._server.close()
        self._socket.close()
        for connection in self.connections():
            connection.shutdown()

    async def finish(self, seconds: float) -> bool:
        """Wait until all calls are answered; return whether they were in time."""
        ends = time.monotonic() + seconds
        while any(connection.is_busy for connection in self._connections):
            if time.monotonic() >= ends:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True

    async def close(self) -> None:
        """End all connections, at once where they do not end soon."""
        self.stop_accepting()
        ends = time.monotonic() + _CLOSE_SECONDS
        while self._connections and time.monotonic() < ends:  # noqa: ASYNC110 - none tells
            await asyncio.sleep(_POLL_SECONDS)
        for connection in self.connections():
            connection.abort()
        await asyncio.sleep(0)  # for what ends with them
        if self._ticking is not None:
            self._ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticking

    def _why_not(self) -> str:
        state = self._service.state
        return "" if state is State.READY else f"the server is {state.value}"

    async def _tick(self) -> None:
        shortest = min(self._limits.header_timeout, self._limits.body_timeout)
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(_TICK_SECONDS, shortest / 4))
            for connection in self.connections():
                connection.tick(loop.time())
