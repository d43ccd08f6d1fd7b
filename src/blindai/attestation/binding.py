"""The 32 bytes that tie evidence to a server's keys and to a caller's nonce.

The only place where they are computed or compared. `binding = SHA-256(deterministic CBOR of
["blindai attestation v1", nonce, keyset, [device evidence digests]])`. 32 bytes fit every
platform. Where a platform signs more, the rest is zero and is checked to be zero; nothing is
padded or cut silently.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

import cbor2

from blindai.errors import BindingError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

NONCE_SIZE: Final = 32
BINDING_SIZE: Final = 32
_CONTEXT: Final = "blindai attestation v1"
_DEVICE_CONTEXT: Final = "blindai device v1"


def binding(nonce: bytes | None, keyset: bytes, device_digests: Sequence[bytes] = ()) -> bytes:
    """Return the 32 bytes that evidence must carry.

    Args:
        nonce: The caller's 32 fresh bytes, or `None` for evidence nobody asked for.
        keyset: The keyset, as deterministic CBOR.
        device_digests: SHA-256 of each device's evidence, in the order of the bundle.

    Raises:
        ConfigurationError: If the nonce does not have 32 bytes.
    """
    check_nonce(nonce)
    statement = [_CONTEXT, nonce, keyset, list(device_digests)]
    return hashlib.sha256(cbor2.dumps(statement, canonical=True)).digest()


def device_nonce(nonce: bytes | None, keyset: bytes) -> bytes:
    """Return the 32 bytes that a device (GPU) signs, so that its evidence is as fresh as ours."""
    check_nonce(nonce)
    return hashlib.sha256(cbor2.dumps([_DEVICE_CONTEXT, nonce, keyset], canonical=True)).digest()


def check_nonce(nonce: bytes | None) -> None:
    """Refuse a nonce that is not exactly 32 bytes."""
    if nonce is not None and len(nonce) != NONCE_SIZE:
        msg = f"a nonce has {NONCE_SIZE} bytes, this one has {len(nonce)}"
        raise ConfigurationError(msg)


def check_report_data(report_data: bytes, expected: bytes) -> None:
    """Refuse signed caller's data that is not `expected`, followed by zeros only.

    Raises:
        BindingError: If it is another key's, another nonce's, or padded with anything.
    """
    bound, rest = report_data[:BINDING_SIZE], report_data[BINDING_SIZE:]
    if not hmac.compare_digest(bound, expected):
        msg = (
            "the evidence is bound to another key or nonce: "
            f"expected {expected.hex()}, it carries {bound.hex()}"
        )
        raise BindingError(msg)
    if any(rest):
        msg = f"the evidence carries {len(rest)} bytes after the binding that are not zero"
        raise BindingError(msg)
