"""Carry bytes between TCP and vsock, both ways: the only network that an enclave has.

The same program runs on the parent instance (TCP in, vsock out) and inside the enclave (vsock
in, TCP out). It never looks at the bytes: TLS ends in the server, so whoever runs the proxy
sees what any router sees. It has no dependencies and no configuration file.

    vsock_proxy.py tcp:0.0.0.0:50051 vsock:16:50051     on the parent; 16 is the enclave's CID
    vsock_proxy.py vsock:any:50051 tcp:127.0.0.1:50051  inside the enclave

Always true: what one side sends is read only as fast as the other takes it; an end of one
direction is passed on and leaves the other open; an idle pair is closed; no more than
`--max-connections` are carried at once, and further ones are closed at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
from typing import NamedTuple

# VMADDR_CID_ANY of vm_sockets.h; Python has it only where its headers did.
CID_ANY = 0xFFFFFFFF
_CHUNK = 64 << 10
_BACKLOG = 128
_MAX_PORT = {"tcp": 65_535, "vsock": 0xFFFFFFFE}


class Address(NamedTuple):
    """Where to listen or connect: of TCP, vsock, or (for tests) a Unix socket."""

    family: int
    value: tuple[str, int] | tuple[int, int] | str

    def socket(self) -> socket.socket:
        """Return a new, unblocking socket of this family."""
        made = socket.socket(self.family, socket.SOCK_STREAM)
        made.setblocking(False)  # noqa: FBT003 - the library's signature
        return made

    def listen(self) -> socket.socket:
        """Return a socket that listens here.

        Raises:
            OSError: The address cannot be had.
        """
        listening = self.socket()
        try:
            if self.family in {socket.AF_INET, socket.AF_INET6}:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(self.value)
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
        return listening


def parse_address(text: str) -> Address:
    """Read `tcp:HOST:PORT`, `vsock:CID:PORT` (CID may be `any`) or `unix:PATH`.

    Raises:
        ValueError: It is none of these; says what was expected.
    """
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest:
        return Address(socket.AF_UNIX, rest)
    host, _, port = rest.rpartition(":")
    if kind not in _MAX_PORT or not host or not port.isascii() or not port.isdigit():
        msg = f"expected tcp:HOST:PORT or vsock:CID:PORT, came {text!r}"
        raise ValueError(msg)
    number = int(port)
    if not 1 <= number <= _MAX_PORT[kind]:
        msg = f"expected a port from 1 to {_MAX_PORT[kind]}, came {port}"
        raise ValueError(msg)
    if kind == "tcp":
        bare = host.removeprefix("[").removesuffix("]")
        return Address(socket.AF_INET6 if ":" in bare else socket.AF_INET, (bare, number))
    if host != "any" and not (host.isascii() and host.isdigit() and int(host) < CID_ANY):
        msg = f"expected a CID from 0 to {CID_ANY - 1} or any, came {host!r}"
        raise ValueError(msg)
    return Address(socket.AF_VSOCK, (CID_ANY if host == "any" else int(host), number))


class Proxy:
    """Carries every connection that comes to one address to another.

    Args:
        target: Where each connection is carried to.
        max_connections: At once.
        idle: Seconds without a byte in either direction after which a pair is closed.
        connect_timeout: Seconds for the target to answer.
    """

    def __init__(
        self,
        target: Address,
        *,
        max_connections: int = 1024,
        idle: float = 300.0,
        connect_timeout: float = 10.0,
    ) -> None:
        self._target = target
        self._max_connections = max_connections
        self._idle = idle
        self._connect_timeout = connect_timeout
        self._pairs: set[asyncio.Task[None]] = set()

    @property
    def carried(self) -> int:
        """Connections that are carried now."""
        return len(self._pairs)

    async def serve(self, listening: socket.socket, stop: asyncio.Event) -> None:
        """Carry what comes to a listening socket until `stop` is set, then close everything."""
        loop = asyncio.get_running_loop()
        accepting = loop.create_task(self._accept(listening))
        stopping = loop.create_task(stop.wait())
        await asyncio.wait((accepting, stopping), return_when=asyncio.FIRST_COMPLETED)
        for task in (accepting, stopping, *self._pairs):
            task.cancel()
        await asyncio.gather(accepting, stopping, *self._pairs, return_exceptions=True)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listening)
            except OSError:
                # Out of descriptors, or gone again before it was taken: others wait.
                await asyncio.sleep(0.1)
                continue
            client.setblocking(False)  # noqa: FBT003 - the library's signature
            if len(self._pairs) >= self._max_connections:
                client.close()
                continue
            pair = loop.create_task(self._carry(client))
            self._pairs.add(pair)
            pair.add_done_callback(self._pairs.discard)

    async def _carry(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with client, self._target.socket() as server, contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._connect_timeout):
                await loop.sock_connect(server, self._target.value)
            for each in (client, server):
                if each.family in {socket.AF_INET, socket.AF_INET6}:
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(self._idle) as watch:
                await asyncio.gather(
                    self._pump(client, server, watch), self._pump(server, client, watch)
                )

    async def _pump(
        self, source: socket.socket, sink: socket.socket, watch: asyncio.Timeout
    ) -> None:
        loop = asyncio.get_running_loop()
        buffer = memoryview(bytearray(_CHUNK))
        while count := await loop.sock_recv_into(source, buffer):
            # One chunk is held: a peer that reads nothing stops who sends to it.
            await loop.sock_sendall(sink, buffer[:count])
            watch.reschedule(loop.time() + self._idle)
        sink.shutdown(socket.SHUT_WR)


async def _main(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    proxy = Proxy(options.target, max_connections=options.max_connections, idle=options.idle)
    with options.source.listen() as listening:
        await proxy.serve(listening, stop)


def main() -> None:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(description="Carry bytes between TCP and vsock.")
    parser.add_argument("source", type=parse_address, help="where to listen")
    parser.add_argument("target", type=parse_address, help="where connections are carried to")
    parser.add_argument("--max-connections", type=int, default=1024)
    parser.add_argument("--idle", type=float, default=300.0, help="seconds")
    options = parser.parse_args()
    try:
        asyncio.run(_main(options))
    except OSError as error:
        sys.exit(f"cannot listen: {error}")


if __name__ == "__main__":
    main()
