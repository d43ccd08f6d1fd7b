"""One request and its answer, without a network: where bodies go, and how answers are framed."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindai.errors import ConnectionFailed, InferenceError
from blindai.server.request import Request
from tests.server.wire import Wire


async def test_body_goes_straight_into_its_memory():
    """What came before there was memory for it is put there, and the rest needs no copy."""
    wire = Wire([b"ab", b"cd"], method="POST")
    exchange = wire.exchange
    exchange.feed(b"12")
    assert exchange.room is None
    target = bytearray(8)
    counted = []
    filling = asyncio.ensure_future(exchange.fill(memoryview(target)[:6], counted.append))
    await asyncio.sleep(0)
    assert len(exchange.room) == 4
    exchange.room[:1] = b"x"
    exchange.advance(1)
    wire.pieces = [b"yz!"]
    await filling
    assert bytes(target) == b"12xyz!\0\0"
    assert sum(counted) == 6
    assert exchange.room is None
    assert exchange.is_exhausted


async def test_body_that_its_owner_refuses():
    """What the counting raises ends the filling, and what still comes goes elsewhere."""
    wire = Wire([b"ab", b"cd"], method="POST")

    def refuse(count: int) -> None:
        if count:
            msg = "no room"
            raise OverflowError(msg)

    target = bytearray(4)
    with pytest.raises(OverflowError):
        await wire.exchange.fill(memoryview(target), refuse)
    assert bytes(target) == b"ab\0\0"
    assert await wire.exchange.receive() == b"cd"


async def test_client_that_leaves():
    """Who waits for a body is told, and so is who only watches: at once, once, or not at all."""
    wire = Wire([], ends=False, method="POST")
    with pytest.raises(ConnectionFailed):
        await wire.exchange.receive()
    calls = []
    wire.exchange.watch(lambda: calls.append("late"))
    assert calls == ["late"]
    present = Wire([b"a"]).exchange
    present.watch(lambda: calls.append("present"))
    present.watch(None)
    present.lose()
    assert calls == ["late"]
    watched = Wire([b"a"]).exchange
    watched.watch(lambda: calls.append("watched"))
    watched.lose()
    assert calls == ["late", "watched"]


@pytest.mark.parametrize("value", [b"a\r\nX: b", b"a\nb", b"a\rb", b"a\r\n\r\nHTTP/1.1 200 OK"])
async def test_header_that_ends_its_line(value):
    """A header that would become two is no answer, and nothing is sent."""
    wire = Wire()
    for header in ((b"x", value), (value, b"x")):
        with pytest.raises(InferenceError):
            await wire.exchange.respond(200, [header], b"")
    assert wire.written == []


async def test_answer_as_long_as_it_said():
    """An answer longer or shorter than announced is an error before the client is misled."""
    exchange = Wire().exchange
    head = exchange.start(200, [], 3)
    await exchange.send(head, b"ab")
    with pytest.raises(InferenceError):
        await exchange.send(b"", b"cd")
    with pytest.raises(InferenceError):
        exchange.end()
    await exchange.send(b"", b"c")
    exchange.end()
    assert exchange.is_complete


async def test_answers_without_a_body():
    """HEAD says how long the body would be; 204 has none and says nothing of it."""
    head = Wire(method="HEAD")
    await head.exchange.respond(200, [], b"abc")
    assert head.written[0].endswith(b"content-length: 3\r\n\r\n")
    none = Wire(method="DELETE")
    await none.exchange.respond(204, [], b"")
    assert b"content-length" not in none.written[0]
    large = Wire(method="HEAD")
    await large.exchange.send(large.exchange.start(200, [], 1 << 20), bytes(1 << 20))
    large.exchange.end()
    assert len(b"".join(large.written)) < 200


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.binary(max_size=40), max_size=8),
    early=st.lists(st.binary(max_size=40), max_size=3),
    in_place=st.booleans(),
)
def test_any_pieces_make_the_body(pieces, early, in_place):
    """However a body is cut, and whichever way it is read, it is the same body."""
    whole = b"".join([*early, *pieces])

    async def read() -> bytes:
        wire = Wire(pieces, method="POST", headers=[(b"transfer-encoding", b"chunked")])
        wire.exchange.more_body = True
        for piece in early:
            wire.exchange.feed(piece)
        if in_place:
            target = bytearray(len(whole))
            await wire.exchange.fill(memoryview(target), lambda _: None)
            return bytes(target)
        return b"".join([chunk async for chunk in Request(wire.exchange).chunks()])

    assert asyncio.run(read()) == whole
