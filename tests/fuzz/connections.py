"""Whole connections as fuzz targets: bytes in pieces, on an event loop, without a network.

Input is a number of bytes that are read at a time, and then what a client sends.
"""

from __future__ import annotations

import asyncio

import hpack

from blindai.server.app import App, Response, json_response
from blindai.server.config import Limits
from blindai.server.grpc import frames
from blindai.server.limits import ByteBudget
from blindai.server.protocol import BoundedProtocol, Port
from blindai.server.service import State
from tests.server.grpc.talk import headers, message
from tests.server.grpc.test_connection import BEGINNING, ECHO, STREAM, FakeTransport, Session

LIMITS = Limits(max_header_bytes=2048, max_body_bytes=200_000)
MAX_STEP = 4096


class Ready:
    """A service that is ready, and has no models."""

    state = State.READY


class HttpTransport(FakeTransport):
    """A transport of HTTP/1.1: it may also be told to read no more."""

    def pause_reading(self):
        """Take note."""

    def resume_reading(self):
        """Take note."""

    def is_closing(self):
        """Say whether it is closed."""
        return self.is_closed

    def write(self, data):
        """Take it, if there is somebody to take it."""
        if not self.is_closed:
            super().write(bytes(data))


async def echo(request) -> Response:
    """Answer with how much came."""
    with ByteBudget(1 << 20).share() as share:
        body = await request.body(limit=LIMITS.max_body_bytes, share=share)
        return json_response({"bytes": len(body), "name": request.name, "query": request.query()})


ROUTES = {b"/v2/models/{name}/infer": {"POST": echo, "GET": echo}, b"/v2": {"GET": echo}}


def feed_http1(data: bytes) -> None:
    """Speak HTTP/1.1; every answer has to be one, and nothing may be left under way."""
    asyncio.run(_http1(data))


async def _http1(data: bytes) -> None:
    port = Port(LIMITS)
    port.stamp = b"date: x\r\nserver: blindai"
    connection = BoundedProtocol(port, App(Ready(), always={}, ready=ROUTES))
    transport = HttpTransport()
    connection.connection_made(transport)
    step, data = _step(data)
    while data and not transport.is_closed:
        room = connection.get_buffer(-1)
        count = min(len(room), len(data), step)
        room[:count] = data[:count]
        connection.buffer_updated(count)
        data = data[count:]
        await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)
    transport.is_closed = True
    connection.connection_lost(None)
    if tasks := list(port.tasks.values()):
        done, waiting = await asyncio.wait(tasks, timeout=5)
        assert not waiting, "a request outlives its connection"
        for task in done:
            task.result()
    assert not port.tasks
    assert not port.connections
    assert not transport.sent or transport.sent.startswith(b"HTTP/1.1 ")
    assert b" 500 " not in transport.sent.split(b"\r\n", 1)[0]


def http1_seeds() -> list[bytes]:
    """Return requests, one after the other, in pieces of several sizes."""
    post = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\n"
    return [
        b"\xff\x00GET /v2?a=b HTTP/1.1\r\nHost: a\r\n\r\nGET /v2 HTTP/1.0\r\n\r\n",
        b"\x05\x00" + post + b"Content-Length: 4\r\n\r\nabcdGET /v2 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\xff\x0f" + post + b"Transfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\nX: y\r\n\r\n",
        b"\xff\x0f" + post + b"Expect: 100-continue\r\nContent-Length: 70000\r\n\r\n" + bytes(999),
        b"\xff\x0f" + post + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    ]


def feed_http2(data: bytes) -> None:
    """Speak HTTP/2 to the gRPC port; nothing may be left in the budget."""
    asyncio.run(_http2(data))


async def _http2(data: bytes) -> None:
    session = Session()
    step, data = _step(data)
    for start in range(0, len(data), step):
        session.feed(data[start : start + step])
        await asyncio.sleep(0)
    await session.end()


def http2_seeds() -> list[bytes]:
    """Return calls, one by one and in streams."""
    encoder = hpack.Encoder()
    calls = b""
    for stream, path in ((1, ECHO), (3, STREAM), (5, "/nothing")):
        block = encoder.encode(headers(path))
        calls += frames.frame(frames.HEADERS, frames.END_HEADERS, stream, block)
        calls += frames.frame(frames.DATA, frames.END_STREAM, stream, message(b"abc") * 2)
    rest = frames.frame(frames.PING, 0, 0, bytes(8)) + frames.window_frame(0, 9)
    rest += frames.reset_frame(3, 8) + frames.goaway_frame(0, 0, "bye")
    return [b"\xff\x0f" + BEGINNING + calls + rest, b"\x07\x00" + BEGINNING + calls]


def _step(data: bytes) -> tuple[int, bytes]:
    """Return how many bytes to read at a time, and the bytes."""
    return max(1, int.from_bytes(data[:2], "little") % (MAX_STEP + 1)), data[2:]
