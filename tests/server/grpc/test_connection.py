"""No bytes, in no pieces, break a connection or leave anything behind."""

import asyncio

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.server.config import Limits
from blindai.server.grpc import frames
from blindai.server.grpc.call import Method
from blindai.server.grpc.connection import Connection, Port
from blindai.server.limits import ByteBudget
from tests.server.grpc.talk import headers, message

ECHO, STREAM = "/a.B/Echo", "/a.B/Stream"
BEGINNING = frames.PREFACE + frames.settings_frame({frames.SETTING_WINDOW: frames.MAX_WINDOW})


class FakeTransport:
    """Takes everything at once."""

    def __init__(self):
        self.sent = b""
        self.is_closed = False

    def get_extra_info(self, _name):
        return None

    def set_write_buffer_limits(self, high):
        assert high > 0

    def get_write_buffer_size(self):
        return 0

    def write(self, data):
        assert not self.is_closed
        self.sent += data

    def close(self):
        self.is_closed = True

    abort = close


async def echo(_call, data):
    """Answer with what came."""
    return [bytes(data)]


async def echo_all(call):
    """Answer each message with itself."""
    async for data in call.messages():
        await call.send([bytes(data)])
        call.forget(data)


class Session:
    """A connection in memory."""

    def __init__(self, **limits):
        self.budget = ByteBudget(1 << 20)
        methods = {ECHO.encode(): Method(unary=echo), STREAM.encode(): Method(stream=echo_all)}
        limits = Limits(**{"max_body_bytes": 300_000, **limits})
        self.port = Port(methods, limits, self.budget, lambda: "", set())
        self.connection = Connection(self.port)
        self.transport = FakeTransport()
        self.connection.connection_made(self.transport)

    def feed(self, data):
        """Receive bytes as an event loop would: as many at a time as there is room for."""
        while data and not self.transport.is_closed:
            room = self.connection.get_buffer(-1)
            count = min(len(room), len(data))
            room[:count] = data[:count]
            self.connection.buffer_updated(count)
            data = data[count:]

    async def end(self):
        """Lose the connection, and see that nothing is left of it."""
        self.connection.connection_lost(None)
        for _ in range(5):
            await asyncio.sleep(0)
        assert self.budget.used == 0
        assert not self.port.connections


def run(coroutine):
    """Run one example on a loop of its own."""
    return asyncio.run(coroutine)


@st.composite
def frame(draw):
    """Return a frame, or what looks like one."""
    kind = draw(st.integers(0, 10))
    flags = draw(st.sampled_from([0, 1, 4, 5, 8, 9, 13, 0x20, 0x2D, 0xFF]))
    stream = draw(st.sampled_from([0, 1, 1, 1, 2, 3, 5, 7, 0x7FFFFFFF]))
    if kind == frames.HEADERS and draw(st.booleans()):
        payload = hpack.Encoder().encode(headers(draw(st.sampled_from([ECHO, STREAM, "/x"]))))
        flags = draw(st.sampled_from([4, 5]))
    elif kind == frames.DATA and draw(st.booleans()):
        payload = message(draw(st.binary(max_size=50))) * draw(st.integers(0, 3))
    elif kind in {3, 4, 6, 8} and draw(st.booleans()):
        payload = draw(st.binary(min_size=4, max_size=4)) * draw(st.sampled_from([1, 2, 3]))
    else:
        payload = draw(st.binary(max_size=60))
    return frames.frame(kind, flags, stream, payload)


@given(st.lists(st.one_of(frame(), st.binary(max_size=20)), max_size=20), st.integers(1, 200))
def test_any_frames(pieces, step):
    """Any frames in any pieces: nothing raises, and nothing stays in the budget."""

    async def example():
        session = Session()
        data = BEGINNING + b"".join(pieces)
        for start in range(0, len(data), step):
            session.feed(data[start : start + step])
            await asyncio.sleep(0)
        session.connection.tick(asyncio.get_running_loop().time() + 1)
        await session.end()

    run(example())


@given(st.binary(max_size=100))
def test_any_beginning(data):
    """Any bytes instead of HTTP/2's beginning end the connection or wait for more."""

    async def example():
        session = Session()
        session.feed(data)
        assert session.transport.is_closed or frames.PREFACE.startswith(data)
        await session.end()

    run(example())


@given(
    st.lists(st.sampled_from([0, 1, 100, 70_000, 200_000]), min_size=1, max_size=4),
    st.sampled_from([9, 1000, 16_384, 65_537, 1 << 20]),
    st.sampled_from([1, 7, 4096, 100_000, 1 << 20]),
)
def test_same_answers_in_any_pieces(sizes, frame_size, step):
    """Wherever messages are cut into frames, and frames into reads, they come back whole."""
    step = max(step, sum(sizes) // 2000)
    frame_size = max(frame_size, sum(sizes) // 1000)

    async def example():
        session = Session()
        messages = [bytes([number]) * size for number, size in enumerate(sizes)]
        stream = b"".join(map(message, messages))
        block = hpack.Encoder().encode(headers(STREAM))
        data = BEGINNING + frames.window_frame(0, 1 << 30)
        data += frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block)
        for start in range(0, len(stream), frame_size):
            piece = stream[start : start + frame_size]
            ends = int(start + frame_size >= len(stream))
            data += frames.frame(frames.DATA, ends, 1, piece)
        for start in range(0, len(data), step):
            session.feed(data[start : start + step])
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert answer_of(session.transport.sent, 1) == stream
        await session.end()

    run(example())


def answer_of(sent, stream):
    """Return the DATA of a stream, to its end."""
    data = b""
    while sent:
        length = int.from_bytes(sent[:3])
        kind, flags, number = sent[3], sent[4], int.from_bytes(sent[5:9])
        payload, sent = sent[9 : 9 + length], sent[9 + length :]
        if number == stream and kind == frames.DATA:
            data += payload
        if number == stream and kind == frames.HEADERS and flags & frames.END_STREAM:
            return data
    return None


@pytest.mark.parametrize("path", [ECHO, STREAM])
def test_what_ends_before_it_began_gives_its_room_back(path):
    """A call that is taken back in the same packet, before its work began, holds nothing."""

    async def example():
        session = Session()
        block = hpack.Encoder().encode(headers(path))
        call = frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block)
        call += frames.frame(frames.DATA, frames.END_STREAM, 1, message(b"x" * 1000))
        session.feed(BEGINNING + call + frames.reset_frame(1, frames.Code.CANCEL))
        for _ in range(5):
            await asyncio.sleep(0)
        assert session.budget.used == 0
        await session.end()

    run(example())
