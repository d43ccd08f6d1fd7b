"""One key, one nonce, one list of devices: one binding."""

import hashlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from blindai.attestation.binding import (
    BINDING_SIZE,
    NONCE_SIZE,
    binding,
    check_nonce,
    check_report_data,
    device_nonce,
)
from blindai.errors import BindingError, ConfigurationError

nonces = st.none() | st.binary(min_size=NONCE_SIZE, max_size=NONCE_SIZE)
digest_lists = st.lists(st.binary(min_size=32, max_size=32), max_size=3)
statements = st.tuples(nonces, st.binary(max_size=80), digest_lists)


def test_known_value():
    """The binding is SHA-256 of the documented statement, written out by hand."""
    nonce = bytes(range(32))
    statement = b"\x84\x76blindai attestation v1\x58\x20" + nonce + b"\x46keyset\x81\x58\x20"
    statement += b"\x07" * 32
    assert binding(nonce, b"keyset", [b"\x07" * 32]) == hashlib.sha256(statement).digest()


def test_known_device_nonce():
    """What a device signs is SHA-256 of a statement of its own."""
    statement = b"\x83\x71blindai device v1\xf6\x46keyset"
    assert device_nonce(None, b"keyset") == hashlib.sha256(statement).digest()


@given(statements, statements)
def test_no_two_statements_share_a_binding(one, other):
    """Bytes cannot move between nonce, keyset and digests without changing the binding."""
    assert (binding(*one) == binding(*other)) == (one == other)


@given(nonces, st.binary(max_size=80), digest_lists)
def test_a_device_never_answers_for_a_machine(nonce, keyset, digests):
    """What a device signs is never what a machine has to sign."""
    assert device_nonce(nonce, keyset) != binding(nonce, keyset, digests)


@given(st.binary(max_size=100))
def test_nonce_size(nonce):
    """Only 32 bytes are a nonce; nothing is padded or cut."""
    assume(len(nonce) != NONCE_SIZE)
    for function in (check_nonce, lambda n: binding(n, b""), lambda n: device_nonce(n, b"")):
        with pytest.raises(ConfigurationError, match="32 bytes"):
            function(nonce)


@given(st.binary(min_size=BINDING_SIZE, max_size=BINDING_SIZE), st.binary(max_size=64))
def test_report_data(expected, rest):
    """The binding is accepted alone or with zeros after it, and with nothing else."""
    check_report_data(expected, expected)
    check_report_data(expected + bytes(32), expected)
    if any(rest):
        with pytest.raises(BindingError, match="not zero"):
            check_report_data(expected + rest, expected)
    for length in range(BINDING_SIZE):
        with pytest.raises(BindingError):
            check_report_data(expected[:length], expected)


@given(st.binary(min_size=32, max_size=64), st.integers(0, 255))
def test_every_bit_counts(report_data, bit):
    """One flipped bit of the binding is another binding."""
    expected = bytearray(report_data[:32])
    expected[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BindingError, match="another key or nonce"):
        check_report_data(report_data, bytes(expected))
