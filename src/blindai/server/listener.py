"""One port: a socket, uvicorn's protocol on it, and a tick that watches the connections.

uvicorn's own `Server` is not used: it serves one port, takes over the process's signals, and
sets no limit to a TLS handshake. What is left of it here is `Config`, `ServerState` and the
protocol, which do the HTTP.
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

import uvicorn
from uvicorn.server import ServerState

from blindai.errors import ConfigurationError
from blindai.server.protocol import BoundedProtocol

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
        self._state = ServerState()
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
            partial(BoundedProtocol, self._limits, self._config(app), self._state),
            sock=self._socket.dup(),
            ssl=context,
            backlog=_BACKLOG,
            ssl_handshake_timeout=None if context is None else self._limits.header_timeout,
            ssl_shutdown_timeout=None if context is None else _TLS_CLOSE_SECONDS,
        )
        if before is not None:
            before.close()
        if self._ticking is None:
            self._set_headers()
            self._ticking = asyncio.create_task(self._tick())

    def connections(self) -> list[BoundedProtocol]:
        """Return the connections that are open now."""
        return list(self._state.connections)  # type: ignore[arg-type]

    def stop_accepting(self) -> None:
        """Take no more connections; those that are open go on."""
        if self._server is not None:
            self._server.close()
        self._socket.close()

    async def finish(self, seconds: float) -> bool:
        """Wait for the requests under way; return whether all of them ended in time."""
        ends = time.monotonic() + seconds
        while self._state.tasks:
            left = ends - time.monotonic()
            if left <= 0:
                return False
            await asyncio.wait(list(self._state.tasks), timeout=left)
        return True

    async def close(self) -> None:
        """End all connections, at once where they do not end soon."""
        self.stop_accepting()
        for connection in self.connections():
            connection.shutdown()
        ends = time.monotonic() + _CLOSE_SECONDS
        while self._state.connections and time.monotonic() < ends:  # noqa: ASYNC110 - none tells
            await asyncio.sleep(0.02)
        for connection in self.connections():
            connection.transport.abort()
        # To the end of what they clean up, or their threads would wait for them for ever.
        if not await self.finish(_CLOSE_SECONDS):
            for task in list(self._state.tasks):
                task.cancel()
            await self.finish(_CLOSE_SECONDS)
        if self._ticking is not None:
            self._ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticking

    def _config(self, app: App) -> uvicorn.Config:
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            # Its warnings are one line for each bad request of anybody; `App` logs errors.
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            # The whole seconds that uvicorn wants.
            timeout_keep_alive=max(1, round(self._limits.idle_timeout)),
        )
        config.load()
        return config

    def _set_headers(self) -> None:
        date = formatdate(time.time(), usegmt=True).encode()
        self._state.default_headers = [(b"date", date), (b"server", b"blindai")]

    async def _tick(self) -> None:
        shortest = min(self._limits.header_timeout, self._limits.body_timeout)
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(_TICK_SECONDS, shortest / 4))
            self._set_headers()
            for connection in self.connections():
                connection.check(loop.time())
