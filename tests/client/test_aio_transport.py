"""Kept asyncio connections, and what ends them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time

import numpy as np
import pytest
import uvloop

from blindai.channel.tls import pinned_context
from blindai.client.address import Address
from blindai.client.aio_transport import AsyncTransport
from blindai.client.messages import Request
from blindai.errors import ConnectionFailed, LimitExceeded

LIST = Request("GET", "/blindai/v1/models")


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    """Return what runs a coroutine, on asyncio's own loop and on uvloop."""
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run


@pytest.fixture
def transport(server, run):
    """Return a transport to `server`."""
    made = AsyncTransport(Address("127.0.0.1", server.port), None)
    yield made
    run(made.close())


@pytest.fixture
def context(server):
    """Return a context pinned to the server's key."""
    return pinned_context(server.identity.certificate)


def send(transport, context, request=LIST, *, limit=1 << 20, timeout=5):
    return transport.send(request, context, timeout=timeout, limit=limit)


def test_a_connection_is_kept(run, transport, context, server):
    """Requests one after another share a connection."""
    for _ in range(5):
        assert run(send(transport, context)).status == 200
    assert server.connections == 1


def test_a_connection_belongs_to_its_context(run, transport, server):
    """Another context, and so another attestation, gets a connection of its own."""
    for _ in range(2):
        run(send(transport, pinned_context(server.identity.certificate)))
    assert server.connections == 2


def test_another_key_is_refused_before_anything_is_sent(run, transport, server):
    """A handshake with another key fails as such, and the server sees no request."""
    context = pinned_context(server.identity.certificate)
    server.rotate()
    with pytest.raises(ssl.SSLCertVerificationError):
        run(send(transport, context))
    assert server.requests == []


def test_what_was_left_unread_never_becomes_an_answer(run, transport, context, server):
    """A connection is not kept after an error, and not against the server's wish."""
    with pytest.raises(LimitExceeded):
        run(send(transport, context, limit=10))
    assert run(send(transport, context)).status == 200
    assert server.connections == 2
    server.answer = lambda *_: (200, {"Connection": "close"}, b"")
    run(send(transport, context))
    run(send(transport, context))
    assert server.connections == 3


def test_bytes_that_nobody_asked_for(run, transport, context, server):
    """A server that speaks before it is asked loses the connection; the next answer is right."""

    def two(sock):
        one = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"
        sock.sendall(one + b"1")
        time.sleep(0.1)
        sock.sendall(one + b"2")
        time.sleep(0.3)

    async def main():
        first = await send(transport, context)
        await asyncio.sleep(0.3)
        server.answer = lambda *_: (200, {}, b"3")
        return bytes(first.body), bytes((await send(transport, context)).body)

    server.answer = lambda *_: two
    assert run(main()) == (b"1", b"3")
    assert server.connections == 2


def test_an_idle_connection_that_the_server_closed(run, transport, context, server):
    """It is replaced, also for a loop that had no time to notice."""

    async def main(seconds):
        await send(transport, context)
        server.drop()
        time.sleep(0.1)  # noqa: ASYNC251 - the loop is not to notice
        await asyncio.sleep(seconds)
        return (await send(transport, context)).status

    assert run(main(0.1)) == run(main(0)) == 200


def test_a_request_that_is_not_to_be_repeated(run, transport, context, server):
    """A DELETE that kills the connection is an error, and reached the server once."""
    run(send(transport, context))
    server.requests.clear()
    server.answer = lambda *_: None
    request = Request("DELETE", "/blindai/v1/models/m", repeatable=False)
    with pytest.raises(ConnectionFailed, match="closed the connection"):
        run(send(transport, context, request))
    assert server.verbs == [("DELETE", "/blindai/v1/models/m")]


def test_a_fresh_connection_that_dies_is_not_tried_again(run, transport, context, server):
    """A GET over a connection of its own is sent once, unlike what many libraries do."""
    server.answer = lambda *_: None
    with pytest.raises(ConnectionFailed, match="closed the connection"):
        run(send(transport, context))
    assert len(server.verbs) == 1


def test_a_request_that_is_cancelled(run, transport, context, server):
    """Its connection is given up, so its answer never reaches anybody else."""
    server.answer = lambda *_: time.sleep(0.3) or (200, {}, b"late")

    async def main():
        task = asyncio.create_task(send(transport, context))
        await asyncio.sleep(0.1)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        server.answer = lambda *_: (200, {}, b"own")
        return bytes((await send(transport, context)).body)

    assert run(main()) == b"own"
    assert server.connections == 2


def test_large_bodies_that_nobody_reads(run, transport, context, server):
    """A peer that stops reading ends in the time limit, and not in memory."""

    def one(sock, file):
        file.readline()
        time.sleep(1)
        return False

    server._one = one
    body = np.zeros(64 << 20, np.uint8).data
    with pytest.raises(ConnectionFailed, match=r"within 0\.5 s"):
        run(send(transport, context, Request("POST", "/x", body=[body]), timeout=0.5))


def test_an_answer_that_comes_early(run, transport, context, server):
    """A refusal is read while most of the body was never taken."""

    def one(sock, file):
        while file.readline().strip():
            pass
        sock.sendall(b"HTTP/1.1 413 X\r\nContent-Length: 2\r\n\r\nno")
        time.sleep(0.3)
        return False

    server._one = one
    body = np.zeros(64 << 20, np.uint8).data
    response = run(send(transport, context, Request("POST", "/x", body=[body])))
    assert (response.status, bytes(response.body)) == (413, b"no")


def test_chunked_answers_are_joined(run, transport, context, server):
    """An answer in chunks, with extensions and trailers, after an interim one, is one body."""

    def chunks(sock):
        sock.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        sock.sendall(b"3;a=b\r\nabc\r\n")
        sock.sendall(b"2\r\nde\r\n0\r\nTrailer: x\r\n\r\n")

    server.answer = lambda *_: chunks
    assert bytes(run(send(transport, context)).body) == b"abcde"


def test_each_address_of_a_host_is_tried(run, server, context):
    """A name with an IPv6 address where nobody listens leads to the IPv4 one."""
    transport = AsyncTransport(Address("localhost", server.port), None)
    assert run(send(transport, context)).status == 200
    run(transport.close())


def test_one_transport_in_two_loops(server, context):
    """A second event loop gets a connection of its own."""
    transport = AsyncTransport(Address("127.0.0.1", server.port), None)

    async def main():
        status = (await send(transport, context)).status
        await transport.close()
        return status

    assert [asyncio.run(main()), asyncio.run(main())] == [200, 200]


def test_a_handshake_that_hangs(run):
    """A peer that accepts and says nothing ends at the time limit."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        transport = AsyncTransport(Address("127.0.0.1", silent.getsockname()[1]), None)
        with pytest.raises(ConnectionFailed, match=r"within 0\.2 s"):
            run(send(transport, pinned_context_of_nobody(), timeout=0.2))


def pinned_context_of_nobody():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    return context
