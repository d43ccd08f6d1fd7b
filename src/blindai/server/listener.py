"""One port: a socket, HTTP or TLS and HTTP on it, and a tick that watches the connections.

Always true: time is bounded for a connection that says nothing, for its handshake and for its
end; a tick, and no timer of their own, looks after all connections.

Specification: RFC 8446 (TLS 1.3); RFC 9110 §6.6.1 (Date).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING, Final

from blindai.errors import ConfigurationError
from blindai.server.protocol import BoundedProtocol, Port

if TYPE_CHECKING:
    import ssl

    from blindai.server.app import App
    from blindai.server.config import Limits

_BACKLOG: Final = 1024
_TICK_SECONDS: Final = 1.0
# Counts from the last write on: what is in buffers then has to arrive within it.
_TLS_CLOSE_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 2.0


def bind(host: str, port: int, setting: str) -> socket.socket:
    """Return a listening socket.

    Args:
        host: Name or address.
        port: 0 picks a free one.
        setting: What the port is called where the user sets it.

    Raises:
        ConfigurationError: It cannot be had; the message says what to do.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        msg = f"cannot listen on {host!r}: {error.strerror}; set host to an address of this machine"
        raise ConfigurationError(msg) from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.settimeout(0)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise ConfigurationError(_advice(error, host, port, setting)) from error
    return listening


def _advice(error: OSError, host: str, port: int, setting: str) -> str:
    what = f"cannot listen on {host} port {port}: {error.strerror}"
    if error.errno == errno.EADDRINUSE:
        return f"{what}. End the program that uses it, or set {setting} to another one, or to 0"
    if error.errno == errno.EACCES:
        return f"{what}. Set {setting} to 1024 or above, or to 0 for a free one"
    return f"{what}. Set host to an address of this machine"


class Listener:
    """Serves one port.

    Args:
        listening: As `bind` returns it; closed with the listener.
        limits: Of its connections.

    Attributes:
        address: Host and port.
    """

    def __init__(self, listening: socket.socket, limits: Limits) -> None:
        self.address: tuple[str, int] = listening.getsockname()[:2]
        self._socket = listening
        self._limits = limits
        self._port = Port(limits)
        self._server: asyncio.AbstractServer | None = None
        self._ticking: asyncio.Task[None] | None = None

    async def serve(self, app: App, context: ssl.SSLContext | None) -> None:
        """Begin to serve, or serve new connections with another application and key.

        Connections that are open keep the application and the key that they have.

        Args:
            app: Answers.
            context: Of TLS; `None` for plain HTTP.
        """
        before = self._server
        # A copy each: closing a server closes its socket, and this one has to stay.
        self._server = await asyncio.get_running_loop().create_server(
            partial(BoundedProtocol, self._port, app),
            sock=self._socket.dup(),
            ssl=context,
            backlog=_BACKLOG,
            ssl_handshake_timeout=None if context is None else self._limits.header_timeout,
            ssl_shutdown_timeout=None if context is None else _TLS_CLOSE_SECONDS,
        )
        if before is not None:
            before.close()
        if self._ticking is None:
            self._set_stamp()
            self._ticking = asyncio.create_task(self._tick())

    def connections(self) -> list[BoundedProtocol]:
        """Return the connections that are open now."""
        return list(self._port.connections)

    def stop_accepting(self) -> None:
        """Take no more connections; those that are open go on."""
        if self._server is not None:
            self._server.close()
        self._socket.close()

    async def finish(self, seconds: float) -> bool:
        """Wait for the requests under way; return whether all of them ended in time."""
        ends = time.monotonic() + seconds
        while running := [task for task in self._port.tasks.values() if not task.done()]:
            left = ends - time.monotonic()
            if left <= 0:
                return False
            await asyncio.wait(running, timeout=left)
        return True

    async def close(self) -> None:
        """End all connections, at once where they do not end soon."""
        self.stop_accepting()
        for connection in self.connections():
            connection.shutdown()
        ends = time.monotonic() + _CLOSE_SECONDS
        while self._port.connections and time.monotonic() < ends:  # noqa: ASYNC110 - none tells
            await asyncio.sleep(0.02)
        for connection in self.connections():
            connection.transport.abort()
        # To the end of what they clean up, or their threads would wait for them for ever.
        if not await self.finish(_CLOSE_SECONDS):
            for task in list(self._port.tasks.values()):
                task.cancel()
            await self.finish(_CLOSE_SECONDS)
        if self._ticking is not None:
            self._ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticking

    def _set_stamp(self) -> None:
        date = formatdate(time.time(), usegmt=True)
        self._port.stamp = f"date: {date}\r\nserver: blindai".encode()

    async def _tick(self) -> None:
        limits = self._limits
        shortest = min(limits.header_timeout, limits.body_timeout, limits.idle_timeout)
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(_TICK_SECONDS, shortest / 4))
            self._set_stamp()
            for connection in self.connections():
                connection.check(loop.time())
