"""Header blocks are decoded as the `hpack` package decodes them, and no bytes break the decoder."""

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import InvalidInput, LimitExceeded
from blindai.server.grpc.hpack import HeaderDecoder, encode_fields

FIELD = st.tuples(st.binary(max_size=40), st.binary(max_size=80))
BLOCKS = st.lists(st.tuples(st.lists(FIELD, max_size=8), st.booleans()), max_size=6)


def theirs():
    """Return the other decoder, as strict about lists as ours is told to be."""
    return hpack.Decoder(max_header_list_size=1 << 20)


@given(BLOCKS)
def test_blocks_of_another_encoder(blocks):
    """What `hpack` encodes, with its table and with Huffman's code, is read as it was."""
    encoder, decoder = hpack.Encoder(), HeaderDecoder(1 << 20)
    for fields, huffman in blocks:
        assert list(decoder.decode(encoder.encode(fields, huffman=huffman))) == fields


@given(st.lists(FIELD, max_size=6))
def test_encoded_fields(fields):
    """What the server sends, another decoder reads, and its table stays empty."""
    decoder = theirs()
    assert decoder.decode(encode_fields(*fields), raw=True) == fields
    assert not decoder.header_table.dynamic_entries


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
def test_any_bytes(blocks):
    """Any bytes are fields or one of two errors; what we read, the other decoder reads too."""
    ours, other = HeaderDecoder(1 << 20), theirs()
    for block in blocks:
        try:
            fields = ours.decode(block)
        except (InvalidInput, LimitExceeded):
            return
        assert list(fields) == [tuple(field) for field in other.decode(block, raw=True)]


def test_same_block_is_the_same_object():
    """A block of indices is decoded once, and again after the table changed under it."""
    decoder = HeaderDecoder(1 << 20)
    decoder.decode(b"\x40\x01a\x01b")
    first = decoder.decode(b"\x82\xbe")
    assert decoder.decode(b"\x82\xbe") is first
    decoder.decode(b"\x40\x01c\x01d")
    assert decoder.decode(b"\x82\xbe") == ((b":method", b"GET"), (b"c", b"d"))


def test_table_is_bounded():
    """Entries leave the table as soon as it is full, and a field larger than it empties it."""
    encoder, decoder = hpack.Encoder(), HeaderDecoder(1 << 20)
    for number in range(300):
        fields = [(b"name%d" % number, b"v" * 100)]
        assert list(decoder.decode(encoder.encode(fields))) == fields
    assert decoder._size <= 4096
    decoder.decode(encoder.encode([(b"n", b"v" * 5000)]))
    assert (decoder._size, decoder._table) == (0, [])


def test_list_is_bounded():
    """A large field in the table cannot be repeated by one byte each beyond the limit."""
    decoder = HeaderDecoder(10_000)
    decoder.decode(encode_indexed(b"n", b"v" * 3000))
    with pytest.raises(LimitExceeded, match="at most 10000 bytes"):
        decoder.decode(b"\xbe" * 4)


def encode_indexed(name: bytes, value: bytes) -> bytes:
    """Return a field that goes into the table."""
    return b"\x40" + encode_fields((name, value))[1:]


@pytest.mark.parametrize(
    ("block", "what"),
    [
        (b"\x80", "expected an index of 1 to 61, came 0"),
        (b"\xbe", "expected an index of 1 to 61, came 62"),
        (b"\xff\xff\xff\xff\xff\xff\x0f", "below 2\\*\\*28"),
        (b"\x00\x05ab", "ends inside a field"),
        (b"\x00", "ends inside a field"),
        (b"\xff", "ends inside a field"),
        (b"\x82\x20", "before the first field"),
        (b"\x3f\xe2\x1f", "at most 4096 bytes, came 4097"),
        (b"\x00\x81\x00\x00", "padding of at most seven ones"),
        (b"\x00\x82\xff\xff\x00", "padding of at most seven ones"),
        (b"\x00\x84\xff\xff\xff\xff\x00", "no end of string"),
    ],
)
def test_malformed(block, what):
    """Each thing that RFC 7541 forbids is refused by name."""
    with pytest.raises(InvalidInput, match=what):
        HeaderDecoder(1 << 20).decode(block)


def test_table_can_shrink():
    """A change of the table's size drops what no longer fits."""
    decoder = HeaderDecoder(1 << 20)
    decoder.decode(encode_indexed(b"name", b"value"))
    assert decoder.decode(b"\x20") == ()
    with pytest.raises(InvalidInput, match="expected an index"):
        decoder.decode(b"\xbe")
