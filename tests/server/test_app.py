"""HTTP without a network: what an application answers to what a connection delivers."""

import logging
from contextlib import contextmanager
from types import SimpleNamespace

import msgspec
import pytest

import blindai.errors
from blindai.errors import BlindAIError, ConnectionFailed, InvalidInput, LimitExceeded, Overloaded
from blindai.server.app import STATUS, App, Response, error_response
from blindai.server.limits import ByteBudget
from blindai.server.request import Request
from blindai.server.service import State
from tests.server.wire import Wire


async def serve(handler, wire: Wire, state: State = State.READY) -> Wire:
    app = App(
        SimpleNamespace(state=state),
        always={b"/always": {"GET": handler}},
        ready={b"/x": {"GET": handler, "POST": handler}},
    )
    await app(wire.exchange)
    return wire


async def answer(_: Request) -> Response:
    return Response(200, (b"{}",))


CLASSES = [
    item
    for item in vars(blindai.errors).values()
    if isinstance(item, type) and issubclass(item, BlindAIError)
]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_a_status(kind):
    """Each error becomes a status of 4xx or 5xx, its message and its class's name."""
    response = error_response(kind("what was wrong"))
    assert 400 <= response.status < 600
    (body,) = response.body
    assert msgspec.json.decode(body) == {"error": "what was wrong", "type": kind.__name__}


def test_statuses_of_the_contract():
    """The statuses that clients rely on."""
    found = {kind.__name__: status for kind, status in STATUS.items()}
    assert found == {
        "InvalidInput": 400,
        "AccessDenied": 401,
        "NotPermitted": 403,
        "ModelNotFound": 404,
        "ModelConflict": 409,
        "LimitExceeded": 413,
        "InvalidModel": 422,
        "SealedDataError": 503,
        "InferenceError": 500,
        "Overloaded": 503,
        "RateLimited": 429,
        "DeadlineExceeded": 504,
        "BlindAIError": 500,
    }


async def test_unexpected_error(caplog):
    """An unexpected error is 500 with an id; the log has id, type and place, never the message."""

    async def fail(_: Request) -> Response:
        msg = "secret"
        raise ZeroDivisionError(msg)

    with caplog.at_level(logging.ERROR, "blindai.server"):
        exchange = await serve(fail, Wire())
    document = msgspec.json.decode(exchange.body)
    assert exchange.status == 500
    assert document["type"] == "InferenceError"
    error_id = document["error"].removeprefix("internal error ")
    (logged,) = caplog.messages
    assert error_id in logged
    assert "ZeroDivisionError" in logged
    assert "test_app.py:" in logged
    assert "secret" not in logged + exchange.body.decode()


async def test_starting_and_stopping():
    """Models are refused before and after their time; health is not; connections end."""
    for state in (State.STARTING, State.STOPPING):
        exchange = await serve(answer, Wire(), state)
        assert (exchange.status, exchange.headers[b"retry-after"]) == (503, b"1")
        exchange = await serve(answer, Wire(path=b"/always"), state)
        assert exchange.status == 200
        closes = exchange.headers.get(b"connection") == b"close"
        assert closes is (state is State.STOPPING)


async def test_client_that_has_gone():
    """Nothing is sent to a client that has gone."""

    async def wait(request: Request) -> Response:
        async for _ in request.chunks():
            pass
        return Response(200)

    headers = [(b"content-length", b"5")]
    exchange = await serve(wait, Wire([b"ab"], ends=False, headers=headers))
    assert exchange.written == []


async def test_large_answers_are_cut():
    """Large bodies are sent in pieces that make up the whole."""
    parts = (b"a" * 700_000, b"", memoryview(b"b" * 300_001))

    async def large(_: Request) -> Response:
        return Response(200, parts)

    exchange = await serve(large, Wire())
    assert exchange.headers[b"content-length"] == b"1000001"
    assert exchange.body == b"".join(bytes(part) for part in parts)
    assert max(map(len, exchange.written)) <= 256 << 10
    assert exchange.is_over


async def test_unread_body_ends_the_connection():
    """What is not read ends the connection: politely if it ends soon, at once if it does not."""
    headers = [(b"transfer-encoding", b"chunked")]
    exchange = await serve(answer, Wire([b"ab", b""], headers=headers))
    assert exchange.headers[b"connection"] == b"close"
    assert not exchange.aborted
    endless = [bytes(1 << 20)] * 100
    exchange = await serve(answer, Wire(endless, headers=headers))
    assert exchange.aborted
    assert len(exchange.pieces) > 80


@contextmanager
def budget():
    with ByteBudget(100).share() as share:
        yield share


async def test_body_of_known_and_unknown_length():
    """A body comes whole, whatever pieces it comes in."""
    for headers in ([(b"content-length", b"6")], [(b"transfer-encoding", b"chunked")]):
        for pieces in ([b"abcdef"], [b"ab", b"", b"cdef"], [b"a", b"b", b"c", b"def", b""]):
            request = Wire(pieces, headers=headers).request
            with budget() as share:
                assert bytes(await request.body(limit=6, share=share)) == b"abcdef"
                assert share.used == 6
            assert not request.unread


@pytest.mark.parametrize(
    ("headers", "pieces", "error"),
    [
        ([(b"content-length", b"11")], [], LimitExceeded),
        ([(b"transfer-encoding", b"chunked")], [b"a" * 11], LimitExceeded),
        ([(b"transfer-encoding", b"chunked")], [b"a" * 6] * 2, LimitExceeded),
        ([(b"content-length", b"10")], [b"a" * 6], ConnectionFailed),
        ([(b"transfer-encoding", b"chunked")], [b"a" * 6], ConnectionFailed),
    ],
)
async def test_body_beyond_its_limit_or_cut_short(headers, pieces, error):
    """A body that is too large is refused as soon as that shows; one cut short is none."""
    request = Wire(pieces, ends=False, headers=headers).request
    with pytest.raises(error), budget() as share:
        await request.body(limit=10, share=share)


async def test_body_without_room():
    """A body that the budget has no room for is refused while it comes."""
    request = Wire([b"a" * 60] * 2, headers=[(b"content-length", b"120")]).request
    with pytest.raises(Overloaded), budget() as share:
        await request.body(limit=1000, share=share)


@pytest.mark.parametrize(
    ("query", "expected"),
    [(b"", {}), (b"a=1&b=", {"a": "1", "b": ""}), (b"a=%20x", {"a": " x"})],
)
def test_query(query, expected):
    """A query is names and values."""
    assert Wire(query=query).request.query() == expected


@pytest.mark.parametrize("query", [b"a", b"a=1&a=2", b"&&", b"a=%ff", b"a=\xff", b"a=1&" * 50])
def test_bad_query(query):
    """Anything else is InvalidInput."""
    with pytest.raises(InvalidInput):
        Wire(query=query).request.query()


@pytest.mark.parametrize(
    ("header", "token"),
    [
        (b"Bearer abc", b"abc"),
        (b"bearer  abc ", b"abc"),
        (b"Bearer", None),
        (b"Bearer ", None),
        (b"Basic abc", None),
        (b"abc", None),
    ],
)
def test_bearer_token(header, token):
    """The token is what stands behind the scheme Bearer (RFC 6750)."""
    assert Wire(headers=[(b"authorization", header)]).request.bearer_token == token
