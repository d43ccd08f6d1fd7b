"""What a client says of an RPC is read strictly, and messages are cut as they were sent."""

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import InvalidInput, LimitExceeded
from blindai.server.grpc.request import PREFIX, Assembler, Head, parse_head

FIELDS = (
    (b":method", b"POST"),
    (b":scheme", b"https"),
    (b":path", b"/a.B/C"),
    (b":authority", b"host"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
)


def test_head():
    """Path, time, token and encoding are found; what nobody asked for is not."""
    more = (
        (b"grpc-timeout", b"250m"),
        (b"authorization", b"Bearer secret"),
        (b"grpc-encoding", b"gzip"),
        (b"x-other", b"1"),
    )
    assert parse_head(FIELDS + more) == Head(b"/a.B/C", 200, 0.25, b"secret", b"gzip")
    assert parse_head(FIELDS) == Head(b"/a.B/C")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 0.004), (b"5u", 5e-6), (b"6n", 6e-9)],
)
def test_timeout(text, seconds):
    """Each unit of time is understood."""
    assert parse_head((*FIELDS, (b"grpc-timeout", text))).timeout == pytest.approx(seconds)


@pytest.mark.parametrize("text", [b"", b"1", b"S", b"-1S", b"123456789S", b"1s", b"1 S", b"1S "])
def test_bad_timeout(text):
    """What is no time is refused, not taken for none."""
    with pytest.raises(InvalidInput, match="grpc-timeout"):
        parse_head((*FIELDS, (b"grpc-timeout", text)))


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        (b":method", b"GET", 405),
        (b"content-type", b"application/json", 415),
        (b"content-type", b"application/grpc-web", 415),
        (b"content-type", b"application/grpc+proto", 200),
        (b"content-type", b"application/grpc;charset=utf-8", 200),
    ],
)
def test_what_is_no_grpc(name, value, status):
    """A browser, or REST's client at the wrong port, gets a status of HTTP."""
    fields = tuple((n, value if n == name else v) for n, v in FIELDS)
    assert parse_head(fields).http_status == status


@pytest.mark.parametrize(
    "fields",
    [
        FIELDS[1:],
        FIELDS[:2] + FIELDS[3:],
        (*FIELDS, (b":path", b"/x")),
        (*FIELDS[:3], FIELDS[4], FIELDS[3]),
        (FIELDS[0], *FIELDS),
        (*FIELDS, (b":status", b"200")),
        (*FIELDS, (b"Upper", b"x")),
        (*FIELDS, (b"", b"x")),
        (*FIELDS, (b"connection", b"close")),
        (*FIELDS, (b"transfer-encoding", b"chunked")),
        (*FIELDS, (b"x", b"a\r\nb: c")),
        (*FIELDS, (b"x", b"a\0")),
        (*FIELDS, (b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")),
    ],
)
def test_malformed_head(fields):
    """What could be read in two ways is not read at all."""
    with pytest.raises(InvalidInput):
        parse_head(fields)


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=8))
def test_any_fields(fields):
    """Any fields are a head or one error."""
    with contextlib.suppress(InvalidInput):
        assert isinstance(parse_head((*FIELDS, *fields)), Head)


@given(
    st.lists(st.tuples(st.integers(0, 1), st.binary(max_size=100)), max_size=6),
    st.lists(st.integers(0, 700), max_size=10),
)
def test_messages_in_any_pieces(messages, cuts):
    """Wherever the bytes are cut, the same messages come out."""
    stream = b"".join(PREFIX.pack(flag, len(data)) + data for flag, data in messages)
    assembler = Assembler(100)
    found = []
    bounds = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for start, end in itertools.pairwise(bounds):
        found += assembler.feed(memoryview(stream)[start:end])
    assert [(flag, bytes(data)) for flag, data in found] == messages
    assert not assembler.is_partial


def test_message_is_received_where_it_stays():
    """The rest of a message that began may be written into it, and then it is complete."""
    assembler = Assembler(100)
    assert assembler.room(10) is None
    assert assembler.feed(memoryview(PREFIX.pack(1, 10) + b"abc")) == []
    room = assembler.room(100)
    assert len(room) == 7
    room[:] = b"defghij"
    assert assembler.filled(4) == []
    assert len(assembler.room(2)) == 2
    ((flag, data),) = assembler.filled(3)
    assert (flag, bytes(data)) == (1, b"abcdefghij")
    assert not assembler.is_partial


def test_what_came_may_change():
    """Nothing is kept of the memory that bytes came in."""
    memory = bytearray(PREFIX.pack(0, 3) + b"abc" + PREFIX.pack(0, 3) + b"d")
    assembler = Assembler(100)
    ((_, first),) = assembler.feed(memoryview(memory))
    memory[:] = bytes(len(memory))
    ((_, second),) = assembler.feed(memoryview(b"ef"))
    assert (bytes(first), bytes(second)) == (b"abc", b"def")


def test_announced_length_takes_no_memory():
    """A message is refused by its announced length, before its bytes."""
    with pytest.raises(LimitExceeded, match="at most 10 bytes, came 11"):
        Assembler(10).feed(memoryview(PREFIX.pack(0, 11)))


def test_flag():
    """A flag that there is not is refused."""
    with pytest.raises(InvalidInput, match="came 2"):
        Assembler(10).feed(memoryview(PREFIX.pack(2, 1)))
