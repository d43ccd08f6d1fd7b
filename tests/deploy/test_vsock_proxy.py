"""The proxy carries bytes both ways, no faster than they are taken, and ends what is idle."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.deploy.programs import load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

vsock_proxy = load("nitro/vsock_proxy.py")


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back, and the end too."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write(b" bye")
    writer.close()


@contextlib.asynccontextmanager
async def carried(folder: Path, handler=echo, **options) -> AsyncIterator[tuple[object, str]]:
    """Yield a proxy from one Unix socket to another, where `handler` answers."""
    source, target = (str(folder / name) for name in ("source", "target"))
    server = await asyncio.start_unix_server(handler, target)
    proxy = vsock_proxy.Proxy(vsock_proxy.parse_address(f"unix:{target}"), **options)
    stop = asyncio.Event()
    with vsock_proxy.parse_address(f"unix:{source}").listen() as listening:
        serving = asyncio.create_task(proxy.serve(listening, stop))
        yield proxy, source
        stop.set()
        await serving
    server.close()
    assert proxy.carried == 0


async def test_half_close(tmp_path):
    """A client that has said all it has to say still gets the whole answer."""
    async with carried(tmp_path) as (_, source):
        reader, writer = await asyncio.open_unix_connection(source)
        sent = os.urandom(3 << 20)
        reading = asyncio.create_task(reader.read(-1))
        writer.write(sent)
        await writer.drain()
        writer.write_eof()
        assert await reading == sent + b" bye"
        writer.close()


async def test_slow_reader_stops_the_sender(tmp_path):
    """What nobody reads is held in the sockets' buffers and one chunk, not in the proxy."""
    sent = 0

    async def flood(reader, writer):
        nonlocal sent
        del reader
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(bytes(1 << 16))
                await writer.drain()
                sent += 1 << 16

    async with carried(tmp_path, flood) as (_, source):
        _, writer = await asyncio.open_unix_connection(source, limit=1 << 16)
        for _ in range(50):
            before = sent
            await asyncio.sleep(0.05)
            if before == sent > 0:
                break
        assert 0 < sent < 8 << 20
        writer.close()


async def test_more_connections_than_allowed(tmp_path):
    """Those beyond the limit are closed; one that ends makes room."""
    async with carried(tmp_path, max_connections=2) as (proxy, source):
        pairs = [await asyncio.open_unix_connection(source) for _ in range(2)]
        for reader, writer in pairs:
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
        reader, writer = await asyncio.open_unix_connection(source)
        assert await reader.read() == b""
        writer.close()
        pairs[0][1].close()
        async with asyncio.timeout(5):
            while proxy.carried > 1:  # noqa: ASYNC110 - it has no event for tests
                await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_unix_connection(source)
        writer.write(b"again")
        assert await reader.readexactly(5) == b"again"
        writer.close()
        pairs[1][1].close()


async def test_idle_pair_is_closed(tmp_path):
    """A byte now and then keeps a pair; silence ends it."""
    async with carried(tmp_path, idle=0.3) as (_, source):
        reader, writer = await asyncio.open_unix_connection(source)
        for _ in range(4):
            await asyncio.sleep(0.15)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_nobody_listens_behind_it(tmp_path):
    """A client is told by an end, and the proxy goes on."""
    proxy = vsock_proxy.Proxy(vsock_proxy.parse_address(f"unix:{tmp_path / 'nobody'}"))
    stop, source = asyncio.Event(), str(tmp_path / "source")
    with vsock_proxy.parse_address(f"unix:{source}").listen() as listening:
        serving = asyncio.create_task(proxy.serve(listening, stop))
        for _ in range(3):
            reader, writer = await asyncio.open_unix_connection(source)
            assert await reader.read() == b""
            writer.close()
        stop.set()
        await serving


async def test_vsock_on_this_machine(tmp_path):
    """Over a real vsock, where the kernel carries one to itself."""
    try:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as probe:
            probe.bind((1, 50999))
            probe.listen()
            with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as other:
                other.settimeout(1)
                other.connect((1, 50999))
    except OSError as error:
        pytest.skip(f"no vsock loopback in this kernel: {error}")
    target = str(tmp_path / "target")
    server = await asyncio.start_unix_server(echo, target)
    stop = asyncio.Event()
    proxy = vsock_proxy.Proxy(vsock_proxy.parse_address(f"unix:{target}"))
    address = vsock_proxy.parse_address("vsock:1:50998")
    loop = asyncio.get_running_loop()
    with address.listen() as listening, address.socket() as client:
        serving = asyncio.create_task(proxy.serve(listening, stop))
        await loop.sock_connect(client, address.value)
        await loop.sock_sendall(client, b"over vsock")
        assert await loop.sock_recv(client, 100) == b"over vsock"
        stop.set()
        await serving
    server.close()


@pytest.mark.parametrize(
    ("text", "family", "value"),
    [
        ("tcp:127.0.0.1:50051", socket.AF_INET, ("127.0.0.1", 50051)),
        ("tcp:[::1]:50051", socket.AF_INET6, ("::1", 50051)),
        ("vsock:16:50051", socket.AF_VSOCK, (16, 50051)),
        ("vsock:any:50051", socket.AF_VSOCK, (0xFFFFFFFF, 50051)),
    ],
)
def test_addresses(text, family, value):
    """Addresses are what the manual pages call them."""
    assert vsock_proxy.parse_address(text) == (family, value)


@pytest.mark.parametrize(
    "text", ["", "tcp", "tcp:1", "udp:a:1", "tcp:a:0", "tcp:a:70000", "vsock:x:1", "vsock:-1:1"]
)
def test_bad_addresses(text):
    """The error says what was expected."""
    with pytest.raises(ValueError, match="expected"):
        vsock_proxy.parse_address(text)


@given(st.text(max_size=40))
def test_any_address(text):
    """No text makes anything else of the parser."""
    with contextlib.suppress(ValueError):
        vsock_proxy.parse_address(text)
