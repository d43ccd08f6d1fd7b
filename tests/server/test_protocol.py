"""What a connection may do before any handler sees a request: bytes, time, framing."""

import contextlib
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from blindai.channel.tls import unverified_context
from blindai.testing.server import start_server
from tests.inference.models import identity
from tests.server.talk import infer_body, raw, read_all, request, status_of, tcp, tls

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n"
INFER = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\n"
NO_HOST = b"GET /v2 HTTP/1.1\r\n\r\n"
AMBIGUOUS = [
    INFER + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    INFER + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    INFER + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    INFER + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    INFER + b"Content-Length: 2, 2\r\n\r\n{}",
    INFER + b"Content-Length: +2\r\n\r\n{}",
    INFER + b"Content-Length: -2\r\n\r\n{}",
    INFER + b"Content-Length: 0x2\r\n\r\n{}",
    INFER + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    INFER + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    INFER + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    INFER + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    INFER + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    INFER + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    INFER + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n\r\n",
    INFER.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    LIVE + b"X: a\r\n b\r\n\r\n",
    LIVE + b"X\x00: a\r\n\r\n",
    LIVE.replace(b"\r\n", b"\n") + b"\n",
    NO_HOST,
    b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /v2 HTTP/3.0\r\nHost: a\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    LIVE + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nab",
    LIVE + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    LIVE + b"Host: b\r\n\r\n",
    LIVE + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x00" * 100 + b"\r\n\r\n",
    b"no http at all\r\n\r\n",
]


@pytest.fixture(scope="module")
def server():
    """A server with little patience."""
    limits = {"header_timeout": 1.0, "body_timeout": 1.0, "min_body_rate": 1000, "idle_timeout": 1}
    with start_server(models={"m": identity()}, max_connections=20, **limits) as running:
        yield running
        assert request(running, "GET", "/v2").status == 200


def test_kept_alive_and_pipelined(server):
    """Requests sent one behind the other are answered in their order."""
    answer = raw(server, LIVE + b"\r\n" + INFER + b"Content-Length: 2\r\n\r\n{}" + LIVE + b"\r\n")
    statuses = [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"400", b"200"]


def test_too_many_pipelined(server):
    """What is sent too far ahead ends the connection."""
    slow = INFER + b"Content-Length: 3\r\n\r\n"
    with tls(server) as connection:
        connection.sendall(slow + b"abc" + (LIVE + b"\r\n") * 200)
        assert read_all(connection).count(b"HTTP/1.1 ") < 100


def test_expect_100_continue(server):
    """A client that waits for 100 Continue gets it, and then its answer."""
    body = infer_body([1.0])
    with tls(server) as connection:
        connection.sendall(
            INFER + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_no_100_for_what_is_refused(server):
    """A client that waits for 100 Continue is told at once that its body is too large."""
    header = INFER + b"Expect: 100-continue\r\nContent-Length: 99999999999\r\n\r\n"
    with tls(server) as connection:
        connection.sendall(header)
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "headers",
    [
        b"X: " + b"a" * 40_000,
        b"".join(b"X%d: a\r\n" % i for i in range(4000))[:-2],
        b"X: " + b"a" * 400_000,
        b"X" * 40_000 + b": a",
    ],
)
def test_header_bomb(server, headers):
    """Headers beyond the limit are 431, whether one is long or many are short."""
    answer = raw(server, LIVE + headers + b"\r\n\r\n")
    assert status_of(answer) == 431
    assert b'"type":"LimitExceeded"' in answer
    assert b"connection: close" in answer


def test_long_path(server):
    """The request line counts as a header."""
    assert status_of(raw(server, b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n")) == 431


def test_headers_without_end(server):
    """Headers that never end are cut off at the limit: far less than was sent is taken."""
    sent = 0
    with tls(server) as connection:
        connection.sendall(LIVE)
        with pytest.raises(OSError):  # noqa: PT012 - which of the sends fails is the network's
            while sent < 1 << 30:
                connection.sendall(b"X: " + b"a" * 10_000 + b"\r\n")
                sent += 10_000
    assert sent < 1 << 30


def test_trailers_are_bounded_and_dropped(server):
    """Trailers of a chunked body reach no handler, and endless ones end the connection."""
    chunked = INFER + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    answer = raw(server, chunked + b"Authorization: Bearer x\r\n\r\n")
    assert status_of(answer) == 400
    many = b"".join(b"X%d: a\r\n" % i for i in range(10_000))
    answer = raw(server, chunked + many + b"\r\n")
    assert status_of(answer) == 431


def test_endless_chunk_extension(server):
    """A chunk extension that never ends is cut off."""
    start = INFER + b"Transfer-Encoding: chunked\r\n\r\n2;"
    with tls(server) as connection:
        connection.sendall(start)
        began = time.monotonic()
        with pytest.raises(OSError):  # noqa: PT012 - which of the sends fails is the network's
            while time.monotonic() - began < 15:
                connection.sendall(b"a" * 10_000)


# Wrong in itself, but where it ends is beyond doubt.
WELL_FRAMED = [a for a in AMBIGUOUS if a == NO_HOST or b"Host: b" in a or b"Bearer" in a]


@pytest.fixture(scope="module")
def answers(server):
    """What the server says to each of them, asked side by side: each lingers a second."""
    with ThreadPoolExecutor(16) as clients:
        requests = [ambiguous + LIVE + b"\r\n" for ambiguous in AMBIGUOUS]
        return dict(zip(AMBIGUOUS, clients.map(partial(raw, server), requests), strict=True))


@pytest.mark.parametrize("ambiguous", AMBIGUOUS)
def test_ambiguous_framing(answers, ambiguous):
    """What two parsers could read in two ways is 400, the connection ends, nothing follows."""
    answer = answers[ambiguous]
    assert status_of(answer) == 400
    assert b'"type":"InvalidInput"' in answer
    if ambiguous not in WELL_FRAMED:
        assert b'"live"' not in answer


def test_no_answer_in_another_ones_place(server):
    """Garbage behind a request that is being answered ends the connection without a 400 first."""
    body = infer_body([1.0])
    good = INFER + b"Content-Length: %d\r\n\r\n" % len(body) + body
    answer = raw(server, good + b"garbage\r\n\r\n")
    assert b"HTTP/1.1 400" not in answer.split(b"HTTP/1.1 200")[0]


def test_slow_headers(server):
    """A client that sends headers byte by byte is cut off within seconds (slowloris)."""
    began = time.monotonic()
    with tls(server) as connection:
        try:
            for byte in LIVE * 100:
                connection.sendall(bytes([byte]))
                time.sleep(0.1)
        except OSError:
            pass
    assert time.monotonic() - began < 10


def test_silent_connections(server):
    """A client that says nothing is cut off: before TLS, after it, and between requests."""
    for silent in (tcp, tls):
        began = time.monotonic()
        with silent(server) as connection:
            read_all(connection)
        assert time.monotonic() - began < 8
    assert b"HTTP/1.1 200" in raw(server, LIVE + b"\r\n")


def test_slow_body(server):
    """A body below the least rate is cut off, and the request ends."""
    began = time.monotonic()
    with tls(server) as connection:
        connection.sendall(INFER + b"Content-Length: 100000\r\n\r\n")
        try:
            while time.monotonic() - began < 15:
                connection.sendall(b"a" * 10)
                time.sleep(0.1)
        except OSError:
            pass
    assert time.monotonic() - began < 10


def test_client_that_takes_no_answer():
    """A client that never reads its answer loses its connection to others."""
    body = infer_body([0.5] * 5_000_000)
    limits = {"body_timeout": 1.0, "max_connections": 1}
    with start_server(models={"m": identity()}, **limits) as server, tcp(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with unverified_context().wrap_socket(connection) as encrypted:
            encrypted.sendall(INFER + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert request(server, "GET", "/v2").status == 503
            ends = time.monotonic() + 30
            while (status := request(server, "GET", "/v2").status) == 503:
                assert time.monotonic() < ends
                time.sleep(0.2)
            assert status == 200


@pytest.fixture
def small():
    """A server of four connections."""
    with start_server(models={"m": identity()}, max_connections=4) as running:
        yield running


def test_too_many_connections(small):
    """One too many takes the place of the one that waited longest of those that never asked."""
    with contextlib.ExitStack() as stack:
        known, *waiting = (stack.enter_context(tls(small)) for _ in range(4))
        known.sendall(LIVE + b"\r\n")
        assert status_of(known.recv(1000)) == 200
        for number in range(2):
            late = stack.enter_context(tls(small))
            late.sendall(LIVE + b"\r\n")
            assert status_of(late.recv(1000)) == 200
            assert read_all(waiting[number]) == b""
        for each in (known, waiting[-1]):
            each.sendall(LIVE + b"\r\n")
            assert status_of(each.recv(1000)) == 200


def test_too_many_requests_at_once(small):
    """Where all connections are at work, the one too many is told so, and the others go on."""
    with contextlib.ExitStack() as stack:
        busy = [stack.enter_context(tls(small)) for _ in range(4)]
        for each in busy:
            each.sendall(INFER + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n")
            assert status_of(each.recv(1000)) == 100
        late = stack.enter_context(tls(small))
        assert status_of(late.recv(1000)) == 503
        busy[0].sendall(b"not JSON.")
        assert status_of(busy[0].recv(1000)) == 400


def test_tls_1_2_is_refused(server):
    """A client that speaks TLS 1.2 at most gets no connection."""
    context = unverified_context()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with tcp(server) as connection, pytest.raises(ssl.SSLError):
        context.wrap_socket(connection)


def test_no_session_is_resumed(server):
    """Each connection shows the key: no ticket is given to come back without."""
    with tls(server) as connection:
        connection.sendall(LIVE + b"Connection: close\r\n\r\n")
        read_all(connection)
        assert not connection.session_reused
        assert connection.session is None or not connection.session.has_ticket
