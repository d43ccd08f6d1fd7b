"""The head and framing of HTTP answers."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blindai.client.http1 import Head, body_length, parse_chunk_size, parse_head
from blindai.errors import ConnectionFailed


def test_reads_an_ordinary_head():
    """Status, lower-case names and trimmed values come out."""
    head = parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: 5 \r\nX-A:b\r\nx-a:\tc")
    assert head == Head(200, {"content-length": "5", "x-a": "b, c"}, keep_alive=True)
    assert body_length(head) == 5


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6",
        b"HTTP/2 200 OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 600 OK",
        b"HTTP/1.1 200 OK\nContent-Length: 1",
        b"HTTP/1.1 200 OK\r\nContent-Length : 1",
        b"HTTP/1.1 200 OK\r\n Content-Length: 1",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded: c",
        b"HTTP/1.1 200 OK\r\nA: b\nC: d",
        b"HTTP/1.1 200 OK\r\nA: b\rC: d",
        b"HTTP/1.1 200 OK\r\nA: b\0",
        b"HTTP/1.1 200 OK\r\nno colon",
        b"HTTP/1.1 200 OK\r\n: no name",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\ncontent-length: 1",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    ],
)
def test_refuses_what_is_ambiguous_or_no_http(data):
    """Whatever another reader might understand otherwise is refused."""
    with pytest.raises(ConnectionFailed):
        parse_head(data)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-length": "-1"},
        {"content-length": "+1"},
        {"content-length": "1, 1"},
        {"content-length": "0x10"},
        {"content-length": "9" * 30},
        {"content-length": "²"},
        {"content-length": "1", "transfer-encoding": "chunked"},
        {"transfer-encoding": "gzip, chunked"},
        {"transfer-encoding": "identity"},
    ],
)
def test_refuses_unclear_lengths(headers):
    """An answer whose end is not clear is refused, not read until it closes."""
    with pytest.raises(ConnectionFailed):
        body_length(Head(200, headers, keep_alive=True))


@pytest.mark.parametrize("status", [100, 204, 304])
def test_answers_without_a_body_have_length_zero(status):
    """A status that has no body has none, whatever the fields say."""
    assert body_length(Head(status, {"content-length": "7"}, keep_alive=True)) == 0


@pytest.mark.parametrize(
    ("line", "closing"),
    [
        (b"HTTP/1.0 200", True),
        (b"HTTP/1.1 200\r\nConnection: Close", True),
        (b"HTTP/1.1 200", False),
    ],
)
def test_says_whether_the_connection_may_be_kept(line, closing):
    """HTTP/1.0 and "Connection: close" end the connection."""
    assert parse_head(line).keep_alive is not closing


@pytest.mark.parametrize("line", [b"", b"g", b"-1", b"0x1", b"1 1", b"f" * 16, b"1\n"])
def test_refuses_chunk_sizes(line):
    """A chunk's size is plain hexadecimal of bounded length."""
    with pytest.raises(ConnectionFailed):
        parse_chunk_size(line)


def test_reads_chunk_sizes():
    """Either case and extensions are allowed."""
    assert parse_chunk_size(b"1aF;name=value") == 0x1AF


@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda b: b"HTTP/1.1 200 OK\r\n" + b))
@example(b"HTTP/1.1 200 OK\r\n")
def test_any_head_gives_a_value_or_connection_failed(data):
    """Any bytes give a Head with clean values, or ConnectionFailed."""
    try:
        head = parse_head(data)
        body_length(head)
    except ConnectionFailed:
        return
    assert all("\r" not in v and "\n" not in v for v in head.headers.values())


@given(st.binary(max_size=40))
def test_any_chunk_line_gives_a_size_or_connection_failed(data):
    """Any bytes give a size from 0 up, or ConnectionFailed."""
    with contextlib.suppress(ConnectionFailed):
        assert parse_chunk_size(data) >= 0
