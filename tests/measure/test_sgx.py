"""MRENCLAVE and MRSIGNER from a SIGSTRUCT."""

import hashlib
from functools import cache

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from blindai.errors import ConfigurationError
from blindai.measure.sgx import SIGSTRUCT_SIZE, measure_sgx
from tests.measure.images import little, sigstruct


@cache
def key():
    return rsa.generate_private_key(3, 3072)


@cache
def good():
    return sigstruct(key())


def test_what_is_read_is_what_was_signed():
    """MRSIGNER is SHA-256 of the modulus in the order that the processor has."""
    assert len(good()) == SIGSTRUCT_SIZE
    found = {line.name: line.values[0] for line in measure_sgx(good()).predictions}
    modulus = little(key().public_key().public_numbers().n, 384)
    assert found == {
        "mrenclave": b"\x11" * 32,
        "mrsigner": hashlib.sha256(modulus).digest(),
        "isv_prod_id": b"\x07\0",
    }


@settings(max_examples=40)
@given(st.integers(0, 1027))
def test_any_changed_byte_is_refused(at):
    """All up to ISVSVN is signed, or is the key or the signature."""
    changed = bytearray(good())
    changed[at] ^= 1
    with pytest.raises(ConfigurationError):
        measure_sgx(bytes(changed))


def test_a_debug_enclave_is_refused():
    """A policy for it would accept an enclave that anybody can look into."""
    with pytest.raises(ConfigurationError, match="debug"):
        measure_sgx(sigstruct(key(), attributes=0x06))


def test_another_exponent_is_refused():
    """The processor takes 3 alone."""
    with pytest.raises(ConfigurationError, match="exponent"):
        measure_sgx(sigstruct(rsa.generate_private_key(65537, 3072)))


@given(st.binary(max_size=64) | st.binary(min_size=1808, max_size=1808))
def test_garbage_is_a_configuration_error(garbage):
    """No bytes at all end in another error."""
    with pytest.raises(ConfigurationError):
        measure_sgx(garbage)
