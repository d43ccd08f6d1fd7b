r"""Policies with a detached signature, for clients that get their policy from others.

The signature is Ed25519 (RFC 8032) over `"blindai policy v1\\0"` and the file's bytes, 64 raw
bytes in a file of the same name with `.sig` added. The context keeps a signature of
something else from passing for one of a policy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from blindai.errors import PolicyError

if TYPE_CHECKING:
    from pathlib import Path

CONTEXT: Final = b"blindai policy v1\0"
SUFFIX: Final = ".sig"
SIGNATURE_SIZE: Final = 64


def sign_policy(content: bytes, key: Ed25519PrivateKey) -> bytes:
    """Return the signature over a policy file's content."""
    return key.sign(CONTEXT + content)


def check_policy_signature(content: bytes, signature: bytes, key: Ed25519PublicKey) -> None:
    """Refuse a policy that `key` did not sign.

    Raises:
        PolicyError: If the signature is of another key, or of another content.
    """
    try:
        key.verify(signature, CONTEXT + content)
    except InvalidSignature as error:
        msg = "the policy is not signed by the key that you pinned"
        raise PolicyError(msg) from error


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Read an Ed25519 private key from a PEM file.

    Raises:
        PolicyError: If the file cannot be read or holds something else.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        msg = f"{path}: expected an Ed25519 private key in PEM without a password"
        raise PolicyError(msg) from error
    if not isinstance(key, Ed25519PrivateKey):
        msg = f"{path}: expected an Ed25519 private key, found {type(key).__name__}"
        raise PolicyError(msg)
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Read an Ed25519 public key from a PEM file.

    Raises:
        PolicyError: If the file cannot be read or holds something else.
    """
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        msg = f"{path}: expected an Ed25519 public key in PEM"
        raise PolicyError(msg) from error
    if not isinstance(key, Ed25519PublicKey):
        msg = f"{path}: expected an Ed25519 public key, found {type(key).__name__}"
        raise PolicyError(msg)
    return key
