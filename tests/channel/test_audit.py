"""A line of an audit log has one encoding; anything else is refused."""

import io
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from blindai.channel.audit import MAX_LINE_BYTES, Entry, Head, parse_entry, read_lines, sign_entry
from blindai.errors import EvidenceError, SignatureError
from tests.audit_logs import NOW

KEY = Ed25519PrivateKey.generate()
ENTRY = Entry(
    seq=1, time=NOW, previous="0" * 64, event="upload", outcome="begun", subject='é \u2028 "',
    measurements={"pcr0": "00"}, evidence=b"\x00\xff",
)  # fmt: skip


def test_there_and_back():
    """What was signed is read as it was, and its signature holds."""
    entry = parse_entry(sign_entry(ENTRY, KEY))
    entry.check_signature(KEY.public_key().public_bytes_raw())
    assert entry.subject == ENTRY.subject
    assert entry.evidence == ENTRY.evidence
    with pytest.raises(SignatureError):
        entry.check_signature(b"\x00" * 32)
    with pytest.raises(SignatureError):
        ENTRY.check_signature(KEY.public_key().public_bytes_raw())


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace(b'"seq":1', b'"seq": 1'),
        lambda line: line.replace(b'"seq":1', b'"seq":1.0'),
        lambda line: line.replace(b'"seq":1', b'"seq":1,"seq":1'),
        lambda line: line.replace(b"12:00:00Z", b"12:00:00+00:00"),
        lambda line: line.replace(b"12:00:00Z", b"13:00:00+01:00"),
        lambda line: line.replace(b"12:00:00Z", b"12:00:00"),
        lambda line: line.replace(b'"upload"', b'"uploaded"'),
        lambda line: line.replace(b'"upload"', b'"\\u0075pload"'),
        lambda line: line[:-1] + b',"more":1}',
        lambda line: b" " + line,
        lambda line: line + b"\r",
        lambda line: json.dumps(json.loads(line), sort_keys=True).encode(),
    ],
)
def test_other_spellings(change):
    """The same entry, written in another way, is none."""
    line = sign_entry(ENTRY, KEY)
    assert change(line) != line
    with pytest.raises(EvidenceError):
        parse_entry(change(line))


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_garbage(line):
    """Whatever the bytes, there is an entry or an EvidenceError."""
    with pytest.raises(EvidenceError):
        Head().follow(line)


@given(st.data())
def test_mutations(data):
    """A line with some bytes changed is refused, or fails its signature."""
    line = bytearray(sign_entry(ENTRY, KEY))
    position = data.draw(st.integers(0, len(line) - 1))
    line[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises((EvidenceError, SignatureError)):
        parse_entry(bytes(line)).check_signature(KEY.public_key().public_bytes_raw())


def test_long_line():
    """No more is read of a line than an entry can have."""
    file = io.BytesIO(b"x" * (MAX_LINE_BYTES + 2))
    with pytest.raises(EvidenceError, match="longer"):
        list(read_lines(file))
