"""MRENCLAVE and MRSIGNER of an enclave, from its SIGSTRUCT (a Gramine `.sig` file).

Always true here: the structure is signed by the key that it names, so what it says of the enclave
is what the processor checks at launch (EINIT).

Specification: Intel SDM, Volume 3D §38.13 (SIGSTRUCT): RSA-3072 with exponent 3, PKCS #1 v1.5,
SHA-256, over bytes 0 to 127 and 900 to 1027.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers

from blindai.attestation.model import Platform
from blindai.attestation.reader import Reader
from blindai.errors import ConfigurationError, EvidenceError
from blindai.measure.prediction import Measured, Prediction, Unpredicted

SIGSTRUCT_SIZE: Final = 1808
_KEY_SIZE: Final = 384
_EXPONENT: Final = 3
_HEADER: Final = bytes.fromhex("06000000e10000000000010000000000")
_HEADER_2: Final = bytes.fromhex("01010000600000006000000001000000")
_DEBUG: Final = 0x02


def measure_sgx(data: bytes) -> Measured:
    """Read what a SIGSTRUCT says of its enclave.

    Args:
        data: Its 1,808 bytes.

    Raises:
        ConfigurationError: If it is malformed, not signed by its key, or of a debug enclave.
    """
    try:
        return _measure(data)
    except EvidenceError as error:
        raise ConfigurationError(str(error)) from error


def _measure(data: bytes) -> Measured:
    reader = Reader(data, "SIGSTRUCT")
    if len(data) != SIGSTRUCT_SIZE or reader.take(16, "HEADER") != _HEADER:
        msg = f"SIGSTRUCT: expected its header and {SIGSTRUCT_SIZE} bytes, found {len(data)} bytes"
        raise EvidenceError(msg)
    reader.skip(8, "VENDOR and DATE")
    if reader.take(16, "HEADER2") != _HEADER_2:
        msg = "SIGSTRUCT: another second header than expected"
        raise EvidenceError(msg)
    reader.skip(88, "SWDEFINED and reserved")
    modulus = reader.take(_KEY_SIZE, "MODULUS")
    exponent = reader.u32("EXPONENT")
    signature = reader.take(_KEY_SIZE, "SIGNATURE")
    _verify(data[:128] + data[900:1028], modulus, exponent, signature)
    reader.skip(28, "MISCSELECT, MISCMASK, reserved and ISVFAMILYID")
    attributes = reader.u64("ATTRIBUTES.FLAGS")
    reader.skip(24, "ATTRIBUTES.XFRM and ATTRIBUTEMASK")
    enclave = reader.take(32, "ENCLAVEHASH")
    reader.skip(32, "reserved and ISVEXTPRODID")
    product, version = reader.take(2, "ISVPRODID"), reader.u16("ISVSVN")
    if attributes & _DEBUG:
        msg = "SIGSTRUCT: it allows a debug enclave, whose memory anybody can read"
        raise EvidenceError(msg)
    how = "SIGSTRUCT, signed by the key that it names"
    return Measured(
        Platform.SGX,
        (
            Prediction("isv_prod_id", (product,), f"{how}; its ISVSVN is {version}"),
            Prediction("mrenclave", (enclave,), how),
            Prediction("mrsigner", (hashlib.sha256(modulus).digest(),), how),
        ),
        (Unpredicted("tcb_evaluation_data_number", "Intel's judgement of the machine it runs on"),),
    )


def _verify(signed: bytes, modulus: bytes, exponent: int, signature: bytes) -> None:
    if exponent != _EXPONENT:
        msg = f"SIGSTRUCT: expected the exponent {_EXPONENT}, found {exponent}"
        raise EvidenceError(msg)
    try:
        key = RSAPublicNumbers(exponent, int.from_bytes(modulus, "little")).public_key()
        key.verify(signature[::-1], signed, padding.PKCS1v15(), hashes.SHA256())
    except (InvalidSignature, ValueError) as error:
        msg = "SIGSTRUCT: it is not signed by the key that it names"
        raise EvidenceError(msg) from error
