"""HTTP/1.1 as clients may speak it: every form of the same request gets the same answer.

Over TLS, against the real server; answers are read by a reader that forgives nothing. What must
be refused is in test_smuggling.py, what is bounded in test_protocol.py.

Specification: RFC 9112 (messages), RFC 9110 §9 (methods), §10.1.1 (Expect).
"""

import json
import random
import time

import pytest

from blindai.testing.server import start_server
from tests.inference.models import identity
from tests.server.answers import LIVE, ask_all, parse_answers
from tests.server.talk import infer_body, public_tcp, raw, read_all, tcp, tls

GET = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n"
POST = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\n"
END = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
BODY = infer_body([1.5, -2.0])
LARGE = infer_body([0.5] * 60_000)


@pytest.fixture(scope="module")
def server():
    """A server with one model."""
    patience = {"header_timeout": 5.0, "body_timeout": 5.0, "idle_timeout": 5.0}
    with start_server(models={"m": identity()}, **patience) as running:
        yield running


def known(body: bytes) -> bytes:
    """Return a request with a body of announced length."""
    return POST + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(body: bytes, size: int, *, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    """Return the same request with its body in chunks."""
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    chunks = [b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces]
    coded = b"".join([*chunks, b"0", extension, b"\r\n", trailers, b"\r\n"])
    return POST + b"Transfer-Encoding: chunked\r\n\r\n" + coded


def values(answer) -> list[float]:
    """Return what the identity answered."""
    return json.loads(answer.body)["outputs"][0]["data"]


SAME = [
    GET + b"\r\n",
    GET + b"Connection: keep-alive\r\n\r\n",
    GET + b"Content-Length: 0\r\n\r\n",
    GET + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    GET + b"X:\r\n\r\n",
    GET + b"X:    a \t \r\n\r\n",
    GET + b"X: \xe9\xff\r\n\r\n",
    GET + b"!#$%&'*+-.^_`|~09azAZ: a\r\n\r\n",
    GET + b"X: a\r\nX: b\r\n\r\n",
    GET + b"Accept: */*\r\nUser-Agent: x\r\nAccept: a\r\n\r\n",
    GET + b"Upgrade: h2c\r\n\r\n",
    GET + b"Expect: something\r\n\r\n",
    GET + b"TE: trailers\r\n\r\n",
    b"GET /v2/health/live HTTP/1.1\r\nHOST:a\r\n\r\n",
    b"GET /v2/health/live HTTP/1.1\r\nhost: \r\n\r\n",
    b"GET /v2/health/live?a=b HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://a/v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET https://a:1/v2/health/live?x HTTP/1.1\r\nHost: b\r\n\r\n",
    b"\r\n" + GET + b"\r\n",
]


@pytest.mark.parametrize("request_bytes", SAME, ids=range(len(SAME)))
def test_same_request(server, request_bytes):
    """Each form is served, and the connection with it goes on."""
    first, second = parse_answers(raw(server, request_bytes + END))
    assert first.status == second.status == 200
    assert first.body == second.body
    assert b"connection" not in first.headers
    assert second.headers[b"connection"] == b"close"
    assert first.headers[b"server"] == b"blindai"


CODED = [
    known(BODY),
    chunked(BODY, 1),
    chunked(BODY, 7),
    chunked(BODY, len(BODY)),
    chunked(BODY, 5, extension=b";a"),
    chunked(BODY, 5, extension=b";a=b;c"),
    chunked(BODY, 5, extension=b';a="b c"'),
    chunked(BODY, 9, trailers=b"X: a\r\nHost: b\r\n"),
    chunked(BODY, 200).replace(
        b"\r\n\r\n%x\r\n" % min(200, len(BODY)), b"\r\n\r\n000%X\r\n" % 200, 1
    )
    if len(BODY) > 200
    else chunked(BODY, 15).replace(b"\r\nf\r\n", b"\r\n000F\r\n"),
    known(BODY).replace(b"Content-Length: ", b"Content-Length: 000"),
    known(BODY).replace(b"Content-Length: ", b"CONTENT-LENGTH:\t"),
    chunked(BODY, 9).replace(b"chunked", b"Chunked"),
]


@pytest.mark.parametrize("request_bytes", CODED, ids=range(len(CODED)))
def test_same_body(server, request_bytes):
    """A body is the same however it is framed, and the next request is read behind it."""
    first, second = parse_answers(raw(server, request_bytes + END))
    assert (first.status, second.status) == (200, 200)
    assert values(first) == [1.5, -2.0]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 11, 64])
def test_any_pieces(server, size):
    """Wherever the network cuts, the answers are the same."""
    data = known(BODY) + chunked(BODY, 6, extension=b";x", trailers=b"A: b\r\n") + END
    with tls(server) as connection:
        for start in range(0, len(data), size):
            connection.sendall(data[start : start + size])
        answers = parse_answers(read_all(connection))
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert values(answers[0]) == values(answers[1]) == [1.5, -2.0]


@pytest.mark.parametrize("seed", range(6))
def test_large_bodies_in_random_pieces(server, seed):
    """Large bodies, known and chunked, one behind the other, cut anywhere: nothing is mixed up."""
    dice = random.Random(seed)
    bodies = [infer_body([i * 0.25] * dice.choice([1, 3000, 40_000])) for i in range(6)]
    data = b"".join(
        known(body) if dice.random() < 0.6 else chunked(body, dice.choice([500, 70_000]))
        for body in bodies
    )
    data += END
    with tls(server) as connection:
        position = 0
        while position < len(data):
            size = dice.choice([1, 100, 16_000, 65_536, 200_000])
            connection.sendall(data[position : position + size])
            position += size
        answers = parse_answers(read_all(connection))
    assert [answer.status for answer in answers] == [200] * 7
    for body, answer in zip(bodies, answers, strict=False):
        assert values(answer) == json.loads(body)["inputs"][0]["data"]


def test_pipelined_with_large_bodies(server):
    """Requests sent ahead, with bodies larger than any buffer, are answered in order."""
    answers = parse_answers(raw(server, known(LARGE) + known(BODY) + known(LARGE) + END))
    assert [answer.status for answer in answers] == [200] * 4
    assert [len(values(answer)) for answer in answers[:3]] == [60_000, 2, 60_000]


def test_many_on_one_connection(server):
    """A connection serves hundreds of requests, fifteen ahead at a time."""
    with tls(server) as connection:
        received = b""
        for _ in range(20):
            connection.sendall(LIVE * 15)
            while received.count(b"HTTP/1.1 200 OK") % 15 or not received.endswith(b"}"):
                received += connection.recv(65536)
            assert len(parse_answers(received)) == 15
            received = b""


def test_head(server):
    """HEAD gets what GET gets, without the body, and the connection goes on."""
    head = GET.replace(b"GET", b"HEAD") + b"\r\n"
    first, second, third = parse_answers(raw(server, head + LIVE + END), heads=(0,))
    assert first.status == second.status == third.status == 200
    assert first.headers[b"content-length"] == b"%d" % len(second.body)


def test_http_1_0(server):
    """HTTP/1.0 needs no Host, gets a whole answer and the end of the connection."""
    old = b"GET /v2/health/live HTTP/1.0\r\n"
    for headers in (b"\r\n", b"Host: a\r\n\r\n", b"Connection: keep-alive\r\n\r\n"):
        (answer,) = parse_answers(raw(server, old + headers + LIVE))
        assert answer.status == 200
        assert answer.headers[b"connection"] == b"close"


def test_expect_continue_of_1_0_is_ignored(server):
    """HTTP/1.0 knows no 100 (RFC 9110 §10.1.1): its body is read without one."""
    old = (
        known(BODY)
        .replace(b"HTTP/1.1", b"HTTP/1.0")
        .replace(b"\r\nHost", b"\r\nExpect: 100-continue\r\nHost")
    )
    (answer,) = parse_answers(raw(server, old))
    assert answer.status == 200


def test_expect_continue_with_body_at_once(server):
    """A client that does not wait for 100 gets one answer, with or without a 100 before it."""
    eager = known(BODY).replace(b"\r\nHost", b"\r\nExpect: 100-Continue\r\nHost")
    statuses = [answer.status for answer in parse_answers(raw(server, eager + END))]
    assert [status for status in statuses if status != 100] == [200, 200]
    assert statuses.count(100) <= 1


def test_methods(server):
    """A method that is not served is 405 with those that are; an unknown one is 400."""
    cases = [
        b"%s /v2/health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % method
        for method in (b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"PROPFIND")
    ]
    for (answer,) in ask_all(server, cases).values():
        assert answer.status == 405
        assert b"GET" in answer.headers[b"allow"]
    (answer,) = parse_answers(raw(server, LIVE.replace(b"GET", b"BREW")))
    assert answer.status == 400
    (answer,) = parse_answers(
        raw(server, b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    )
    assert answer.status in {400, 404}


def test_early_answer_comes_before_the_body_ends(server):
    """What is refused is told while the body still comes, and the rest is not waited for."""
    with tls(server) as connection:
        connection.sendall(POST.replace(b"/m/", b"/none/") + b"Content-Length: 1000000\r\n\r\nab")
        began = time.monotonic()
        (answer,) = parse_answers(read_all(connection))
    assert answer.status == 404
    assert answer.headers[b"connection"] == b"close"
    assert time.monotonic() - began < 10


def test_body_cut_short_is_no_request(server):
    """A client that leaves in the middle of its body leaves a server that serves others."""
    for request_bytes in (known(LARGE)[:-10], chunked(LARGE, 5000)[:-10], POST):
        with tls(server) as connection:
            connection.sendall(request_bytes)
    assert parse_answers(raw(server, END))[0].status == 200


def test_reader_that_takes_its_time(server):
    """A client that reads slowly, but not too slowly, gets all of a large answer."""
    received = b""
    with tls(server) as connection:
        connection.sendall(known(LARGE) + END)
        while chunk := connection.recv(40_000):
            received += chunk
            time.sleep(0.02)
    first, second = parse_answers(received)
    assert values(first) == [0.5] * 60_000
    assert second.status == 200


def test_plain_port(server):
    """The unattested port speaks the same HTTP, without TLS."""
    with public_tcp(server) as connection:
        for byte in LIVE:
            connection.sendall(bytes([byte]))
        connection.sendall(b"\r\n" + LIVE * 3 + END)
        answers = parse_answers(read_all(connection))
    assert [answer.status for answer in answers] == [200] * 5


def test_no_tls_at_all(server):
    """What is neither TLS nor HTTP gets no connection, and says nothing back but an alert."""
    with tcp(server) as connection:
        connection.sendall(b"\x00" * 100)
        assert not read_all(connection).startswith(b"HTTP/1.1 2")
