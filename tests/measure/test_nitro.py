"""Registers of an enclave image file."""

import hashlib
from datetime import UTC, datetime, timedelta

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from blindai.errors import ConfigurationError
from blindai.measure.nitro import measure_nitro
from tests.measure.images import eif

KERNEL, LINE, RAM, SIGNATURE, METADATA = range(1, 6)
PARTS = ((KERNEL, b"kernel"), (LINE, b"line"), (METADATA, b"{}"), (RAM, b"init"), (RAM, b"app"))


def register(*parts):
    inner = hashlib.sha384(b"".join(parts)).digest()
    return hashlib.sha384(bytes(48) + inner).digest()


def values(data):
    return {line.name: line.values[0] for line in measure_nitro(data).predictions}


def test_registers_are_of_the_sections_they_stand_for():
    """Computed by hand, as AWS's tools do."""
    assert values(eif(*PARTS)) == {
        "pcr0": register(b"kernel", b"line", b"init", b"app"),
        "pcr1": register(b"kernel", b"line", b"init"),
        "pcr2": register(b"app"),
    }


def test_a_signed_image_has_the_register_of_its_certificate():
    """PCR8 is of the certificate's DER, as the attestation document shows it."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "signer")])
    now = datetime(2026, 1, 1, tzinfo=UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name)
        .public_key(key.public_key()).serial_number(1)
        .not_valid_before(now).not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA384())
    )  # fmt: skip
    pem = list(certificate.public_bytes(Encoding.PEM))
    section = cbor2.dumps([{"signing_certificate": pem, "signature": []}])
    found = values(eif(*PARTS, (SIGNATURE, section)))
    assert found["pcr8"] == register(certificate.public_bytes(Encoding.DER))
    assert found["pcr0"] == values(eif(*PARTS))["pcr0"]


def test_what_depends_on_the_instance_is_named():
    """Role and instance are not in the image."""
    assert [left.name for left in measure_nitro(eif(*PARTS)).unpredicted] == ["pcr3", "pcr4"]


@given(st.integers(0, len(eif(*PARTS)) - 1))
def test_any_changed_byte_is_refused(at):
    """The checksum is over everything."""
    changed = bytearray(eif(*PARTS))
    changed[at] ^= 0x40
    with pytest.raises(ConfigurationError):
        measure_nitro(bytes(changed))


@given(st.binary(max_size=700) | st.integers(0, 600).map(lambda n: eif(*PARTS)[:n]))
def test_garbage_is_a_configuration_error(garbage):
    """As is every image that ends early."""
    with pytest.raises(ConfigurationError):
        measure_nitro(garbage)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (((KERNEL, b"k"),), "one kernel and one command line"),
        ((*PARTS, (KERNEL, b"k")), "one kernel and one command line"),
        ((*PARTS, (9, b"")), "unknown kind 9"),
        ((*PARTS, (SIGNATURE, b"\xff")), "no certificate"),
        ((*PARTS, (SIGNATURE, cbor2.dumps([{}]))), "no certificate"),
    ],
)
def test_what_is_no_image_of_the_format_is_refused(parts, says):
    """By name of what is wrong."""
    with pytest.raises(ConfigurationError, match=says):
        measure_nitro(eif(*parts))
