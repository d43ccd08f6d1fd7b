"""Reads are what was asked for, or `EvidenceError`."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.attestation.reader import Reader
from blindai.errors import EvidenceError

orders = st.sampled_from(["little", "big"])


@given(st.binary(max_size=32), orders)
def test_integers(data, order):
    """Each integer is what `int.from_bytes` makes of its bytes."""
    reader = Reader(data, "test", byteorder=order)
    position = 0
    for size, read in ((1, reader.u8), (2, reader.u16), (4, reader.u32), (8, reader.u64)):
        if len(data) - position < size:
            with pytest.raises(EvidenceError, match=f"field at offset {position}"):
                read("field")
            continue
        assert read("field") == int.from_bytes(data[position : position + size], order)
        position += size
        assert reader.position == position
        assert reader.remaining == len(data) - position


@given(st.binary(max_size=16), st.integers(-(2**70), 2**70))
def test_take(data, size):
    """Any size gives exactly that many bytes, or an error that moves nothing."""
    reader = Reader(data, "test")
    if 0 <= size <= len(data):
        assert reader.take(size, "field") == data[:size]
    else:
        with pytest.raises(EvidenceError, match="test ends early: field"):
            reader.take(size, "field")
        assert reader.position == 0


@given(st.binary(max_size=40), st.sampled_from([1, 2, 4]), orders, st.integers(0, 40))
def test_sized(data, size_bytes, order, at_most):
    """A length that lies, or that is larger than allowed, is an error before anything is read."""
    reader = Reader(data, "test", byteorder=order)
    length = int.from_bytes(data[:size_bytes], order)
    good = len(data) >= size_bytes and length <= at_most and length <= len(data) - size_bytes
    if good:
        content = reader.sized(size_bytes, "field", at_most=at_most)
        assert content == data[size_bytes : size_bytes + length]
    else:
        with pytest.raises(EvidenceError, match="field"):
            reader.sized(size_bytes, "field", at_most=at_most)


def test_zeros_and_end():
    """Reserved bytes have to be zero, and nothing may follow the structure."""
    reader = Reader(bytes(4) + b"\x01", "test")
    reader.zeros(4, "reserved")
    with pytest.raises(EvidenceError, match="1 unexpected bytes"):
        reader.end()
    with pytest.raises(EvidenceError, match="reserved must be zero"):
        reader.zeros(1, "reserved")
    reader.end()


def test_skip():
    """What is passed over is bounds-checked too."""
    reader = Reader(b"ab", "test")
    reader.skip(1, "field")
    with pytest.raises(EvidenceError):
        reader.skip(2, "field")


@given(
    st.binary(max_size=64),
    st.lists(st.tuples(st.sampled_from(["u8", "u16", "u32", "u64"]), st.integers()), max_size=20),
)
def test_never_anything_else(data, calls):
    """No sequence of reads raises anything but `EvidenceError` or passes the end."""
    reader = Reader(bytearray(data), "test")
    for name, size in calls:
        for read in (getattr(reader, name), lambda field, size=size: reader.take(size, field)):
            try:
                read("field")
            except EvidenceError:
                continue
            assert 0 <= reader.position <= len(data)


def test_a_copy_is_returned():
    """What was read does not change when a reused buffer does."""
    buffer = bytearray(struct.pack("<I", 7))
    taken = Reader(buffer, "test").take(4, "field")
    buffer[:] = bytes(4)
    assert taken == b"\x07\0\0\0"
