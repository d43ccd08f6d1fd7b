"""What two parsers could read in two ways is refused, and what comes behind it is not read.

A proxy in front that takes a request to end elsewhere than this server does lets one client put
a request into another's connection. The cases are those of llhttp's and h11's test suites and
of the published attacks (CL.TE, TE.CL, TE.TE, TE.0, 0.CL, chunk extensions, bare CR and LF);
each is sent with a request behind it, over TLS, to the real server.

Specification: RFC 9112 §2.2, §3 to §7 and §11.2.
"""

import pytest

from blindai.testing.server import start_server
from tests.inference.models import identity
from tests.server.answers import LIVE, Answer, ask_all, parse_answers
from tests.server.talk import infer_body, raw, read_all, tls

POST = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\n"
GET = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"

CONTENT_LENGTHS = [
    b"Content-Length: +2",
    b"Content-Length: -2",
    b"Content-Length: 0x2",
    b"Content-Length: 2_0",
    b"Content-Length: 2.0",
    b"Content-Length: 2e0",
    b"Content-Length: 2 2",
    b"Content-Length: 2,2",
    b"Content-Length: 2, 2",
    b"Content-Length: 2;",
    b'Content-Length: "2"',
    b"Content-Length: two",
    b"Content-Length: ",
    b"Content-Length: \xb2",
    b"Content-Length: \xd9\xa2",
    b"Content-Length: 2\x00",
    b"Content-Length: \x0b2",
    b"Content-Length: 2\x0c",
    b"Content-Length: 18446744073709551618",
    b"Content-Length: 99999999999999999999999999",
    b"Content-Length : 2",
    b"Content-Length\t: 2",
    b" Content-Length: 2",
    b"Content-Length:\r\n 2",
    b"Content-Length\r\n: 2",
    b"Content-Length: 2\r\n 0",
    b"Content-Length: 2\r\nContent-Length: 2",
    b"Content-Length: 2\r\nContent-Length: 0",
    b"Content-Length: 0\r\ncontent-length: 2",
    b"Content-Length: 2\r\nX: a\r\nCONTENT-LENGTH: 3",
]
TRANSFER_ENCODINGS = [
    b"Transfer-Encoding: chunked\r\nContent-Length: 5",
    b"Content-Length: 5\r\nTransfer-Encoding: chunked",
    b"Content-Length: 0\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\nTransfer-Encoding: identity",
    b"Transfer-Encoding: identity\r\nContent-Length: 5",
    b"Transfer-Encoding: x\r\nContent-Length: 5",
    b"Transfer-Encoding: \r\nContent-Length: 5",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: chunked, gzip",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: ,chunked",
    b"Transfer-Encoding: chunked,",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: gzip",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: chunkedx",
    b"Transfer-Encoding: chunked x",
    b"Transfer-Encoding: chunked;q=1",
    b"Transfer-Encoding: 'chunked'",
    b'Transfer-Encoding: "chunked"',
    b"Transfer-Encoding: \x0bchunked",
    b"Transfer-Encoding: \x0cchunked",
    b"Transfer-Encoding: \x00chunked",
    b"Transfer-Encoding: chunked\x00",
    b"Transfer-Encoding: chunked\x0b",
    b"Transfer-Encoding: \xa0chunked",
    b"Transfer-Encoding: \xffchunked",
    b"Transfer-Encoding: chun\xc5\xbfed",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding\t: chunked",
    b"Transfer-Encoding\x00: chunked",
    b" Transfer-Encoding: chunked",
    b"\tTransfer-Encoding: chunked",
    b"Transfer-Encoding:\r\n chunked",
    b"Transfer-Encoding:\n chunked",
    b"Transfer-Encoding\r\n : chunked",
    b"Transfer-Encoding: chunked\r\n , identity",
    b"X: a\rTransfer-Encoding: chunked",
    b"X: a\nTransfer-Encoding: chunked",
    b"X: a\r\r\nTransfer-Encoding: chunked",
    b"X: a\x00Transfer-Encoding: chunked",
]
CHUNKS = [
    b"2\n{}\r\n" + END,
    b"2\r{}\r\n" + END,
    b"2\r\n{}" + END,
    b"2\r\n{}\n" + END,
    b"2\r\n{}\r" + END,
    b"2\r\n{}\rX" + END,
    b"2\r\n{}xx" + END,
    b"2\r\n{}x\r\n" + END,
    b"1\r\n{}\r\n" + END,
    b"\r\n{}\r\n" + END,
    b"-2\r\n{}\r\n" + END,
    b"+2\r\n{}\r\n" + END,
    b"0x2\r\n{}\r\n" + END,
    b"0X2\r\n{}\r\n" + END,
    b"2_\r\n{}\r\n" + END,
    b"2h\r\n{}\r\n" + END,
    b" 2\r\n{}\r\n" + END,
    b"\t2\r\n{}\r\n" + END,
    b"2 \r\n{}\r\n" + END,
    b"2\t\r\n{}\r\n" + END,
    b"2 ;a\r\n{}\r\n" + END,
    b"2\x00\r\n{}\r\n" + END,
    b"2\xa0\r\n{}\r\n" + END,
    b"2 2\r\n{}\r\n" + END,
    b"2,2\r\n{}\r\n" + END,
    b"10000000000000002\r\n{}\r\n" + END,
    b"fffffffffffffffff\r\n{}\r\n" + END,
    b"2;a\n{}\r\n" + END,
    b"2;a\nb\r\n{}\r\n" + END,
    b"2;a\rb\r\n{}\r\n" + END,
    b"2;\n\r\n{}\r\n" + END,
    b"2;\x00\r\n{}\r\n" + END,
    b'2;a="\n"\r\n{}\r\n' + END,
    b"2\r\n{}\r\n0\n\r\n",
    b"2\r\n{}\r\n0\r\n\n",
    b"2\r\n{}\r\n0\r\n\rX",
    b"2\r\n{}\r\n0\r\nX: a\n\r\n",
    b"2\r\n{}\r\n0\r\nX : a\r\n\r\n",
    b"2\r\n{}\r\n0\r\n X: a\r\n\r\n",
    b"2\r\n{}\r\n0\r\nX: a\r\n b\r\n\r\n",
    b"2\r\n{}\r\n0\r\nX: a\x00\r\n\r\n",
    b"2\r\n{}\r\n0\r\nContent-Length: 3\r\n\r\n",
    b"2\r\n{}\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"2\r\n{}\r\n0\r\nno field\r\n\r\n",
]
HEADERS = [
    b"X : a",
    b"X\t: a",
    b" X: a",
    b"\tX: a",
    b": a",
    b"X",
    b"X\r\n: a",
    b"X: a\r\n b",
    b"X: a\r\n\tb",
    b"X: a\n b",
    b"X: a\rb",
    b"X: a\nY: b",
    b"X: a\r\rY: b",
    b"X: a\x00",
    b"X: a\x01b",
    b"X: \x7f",
    b"X\x00: a",
    b"X\x80: a",
    b"X Y: a",
    b"X(: a",
    b'X": a',
    b"X/: a",
    b"X=a",
    b"X;: a",
    b"{X}: a",
    b"Host: b",
    b"Authorization: Bearer a\r\nAuthorization: Bearer b",
    b"Connection: Upgrade\r\nUpgrade: h2c",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA",
    b"Connection: Upgrade\r\nUpgrade: websocket",
]
REQUEST_LINES = [
    b"GET\t/v2 HTTP/1.1",
    b"GET /v2\tHTTP/1.1",
    b"GET /v2 HTTP/1.1 ",
    b"GET /v2 HTTP/1.1 x",
    b" GET /v2 HTTP/1.1",
    b"\tGET /v2 HTTP/1.1",
    b"GET /v2",
    b"GET",
    b"GET /v2 HTTP/1",
    b"GET /v2 HTTP/1.",
    b"GET /v2 HTTP/1.1.1",
    b"GET /v2 HTTP/1.10",
    b"GET /v2 HTTP/11.1",
    b"GET /v2 HTTP/01.1",
    b"GET /v2 HTTP/1.2",
    b"GET /v2 HTTP/0.9",
    b"GET /v2 HTTP/2.0",
    b"GET /v2 HTTP/3.0",
    b"GET /v2 HTTP/9.9",
    b"GET /v2 http/1.1",
    b"GET /v2 HTTPS/1.1",
    b"GET /v2 HTTP 1.1",
    b"GET /v2 ICE/1.0",
    b"get /v2 HTTP/1.1",
    b"Get /v2 HTTP/1.1",
    b"G\x00T /v2 HTTP/1.1",
    b"G(T /v2 HTTP/1.1",
    b"NONE /v2 HTTP/1.1",
    b"GET\x00 /v2 HTTP/1.1",
    b"GET v2 HTTP/1.1",
    b"GET /v\x002 HTTP/1.1",
    b"GET /v\x7f2 HTTP/1.1",
    b"GET /v\xff2 HTTP/1.1",
    b"GET /v\r2 HTTP/1.1",
    b"GET /v\n2 HTTP/1.1",
    b"GET /v2#a HTTP/1.1",
    b"GET http:// HTTP/1.1",
    b"GET http:///v2 HTTP/1.1",
    b"CONNECT a:1 HTTP/1.1",
    b"CONNECT /v2 HTTP/1.1",
    b"PRI * HTTP/2.0",
    b"HTTP/1.1 200 OK",
]
LINE_ENDS = [
    GET[:-2] + b"\n\n",
    GET.replace(b"\r\n", b"\n") + b"\n",
    GET.replace(b"\r\n", b"\r") + b"\r",
    GET + b"\n",
    GET + b"X: a\n\r\n",
    GET + b"X: a\r\n\n",
    GET + b"\r\r\n",
    b"\x00" + GET + b"\r\n",
    b"\xef\xbb\xbf" + GET + b"\r\n",
    b"\r\n \r\n" + GET + b"\r\n",
]
OLD = [
    POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + END,
    POST.replace(b"1.1", b"1.0")
    + b"Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"
    + END,
]
CASES = [
    *(POST + line + b"\r\n\r\n{}" for line in CONTENT_LENGTHS),
    *(POST + lines + b"\r\n\r\n" + END for lines in TRANSFER_ENCODINGS),
    *(CHUNKED + chunks for chunks in CHUNKS),
    *(GET + line + b"\r\n\r\n" for line in HEADERS),
    *(line + b"\r\nHost: a\r\n\r\n" for line in REQUEST_LINES),
    *LINE_ENDS,
    *OLD,
]


@pytest.fixture(scope="module")
def server():
    """A server that does not wait for long for what a case may have made it expect."""
    patience = {"header_timeout": 3.0, "body_timeout": 3.0, "idle_timeout": 3.0}
    with start_server(models={"m": identity()}, **patience) as running:
        yield running


@pytest.fixture(scope="module")
def answers(server):
    """What came for each case, with another request behind it."""
    received = ask_all(server, [case + LIVE for case in CASES])
    return {case: received[case + LIVE] for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_refused(answers, case):
    """One refusal with a reason, and not a word to what is behind it."""
    first, *rest = answers[case]
    assert first.status in {400, 501, 505}
    assert first.headers[b"content-type"] == b"application/json"
    assert b'"type":"InvalidInput"' in first.body
    assert rest == []
    assert first.headers[b"connection"] == b"close"


# What llhttp takes that a strict reader would not: each is one request, whoever reads it.
LENIENT = [
    b"GET  /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /v2/health/live  HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\n" + GET + b"\r\n",
    b"\r" + GET + b"\r\n",
    b"\r\n\r\n" + GET + b"\r\n",
]


@pytest.mark.parametrize("case", LENIENT)
def test_lenient_where_no_end_is_in_doubt(server, case):
    """Blanks and empty lines around a request line change nothing (RFC 9112 §2.2 and §3)."""
    end = LIVE[:-2] + b"Connection: close\r\n\r\n"
    assert [answer.status for answer in parse_answers(raw(server, case + end))] == [200, 200]


def test_another_protocol_ends_the_connection(server):
    """RTSP is taken for HTTP/1.0, after which nothing is read."""
    for line in (b"GET /v2 RTSP/1.0", b"DESCRIBE /v2 RTSP/1.0"):
        answers = parse_answers(raw(server, line + b"\r\nHost: a\r\n\r\n" + LIVE))
        assert [answer.status for answer in answers] in ([200], [405])


def test_no_case_stands_twice():
    """Each case is another one."""
    assert len(set(CASES)) == len(CASES) > 180


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_refused_in_pieces(server, size):
    """A header that smuggles is refused however the network cuts it."""
    data = POST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + END + LIVE
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert [answer.status for answer in send_pieces(server, pieces)] == [400]


def send_pieces(server, pieces) -> list[Answer]:
    """Send each piece in a TLS record of its own."""
    with tls(server) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except OSError:
            pass
        return parse_answers(read_all(connection))


def test_body_of_one_is_no_request_of_another(server):
    """A request inside a body is a body, whether its length is announced or it is chunked."""
    hidden = LIVE * 3
    known = POST + b"Content-Length: %d\r\n\r\n" % len(hidden) + hidden
    chunked = CHUNKED + b"%x\r\n%s\r\n" % (len(hidden), hidden) + END
    for request in (known, chunked):
        answers = parse_answers(raw(server, request + LIVE[:-2] + b"Connection: close\r\n\r\n"))
        assert [answer.status for answer in answers] == [400, 200]


def test_unread_body_ends_the_connection(server):
    """What is refused before its body was read leaves no body behind to be read as requests."""
    missing = POST.replace(b"/m/", b"/none/")
    body = LIVE * 100
    for headers in (
        b"Content-Length: %d" % len(body),
        b"Expect: 100-continue\r\nContent-Length: 9",
    ):
        answers = parse_answers(raw(server, missing + headers + b"\r\n\r\n" + body))
        assert [answer.status for answer in answers] == [404]
        assert answers[0].headers[b"connection"] == b"close"


def test_answer_for_answer(server):
    """Every answer stands in its request's place, with garbage behind the last."""
    body = infer_body([1.5])
    good = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    answers = parse_answers(raw(server, good + LIVE + good + b"garbage\r\n\r\n" + LIVE))
    statuses = [answer.status for answer in answers]
    assert statuses in ([200, 200, 200, 400], [200, 200, 200], [200])
    assert b"1.5" in answers[0].body
