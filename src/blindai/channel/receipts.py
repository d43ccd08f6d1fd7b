"""Receipts: what a server ran, or took in, signed with a key that lives in its TEE.

A `Receipt` is a `Statement` (`blindai.channel.statement`) under a COSE_Sign1 signature of the
keyset's Ed25519 key; or, where one signature stands for many, the statement, the signed root of
a Merkle tree, and the proof that the statement is in it. What is signed names its kind in the
protected header, so a root never passes for a statement.

Nothing here says whose key it is: `blindai.receipt` ties a receipt to evidence.

Specification: RFC 9052 §4.2 and §4.4 (COSE_Sign1), RFC 9053 §2.2 (EdDSA), RFC 9162 §2.1
(Merkle trees).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from blindai.attestation.wire import load_cbor
from blindai.channel.merkle import MAX_LEAVES, MAX_PATH, build_tree, leaf_hash, root_from_path
from blindai.channel.statement import (
    MAX_STATEMENT_BYTES,
    RECEIPT_VERSION,
    Statement,
    read_bytes,
    read_digest,
    read_fields,
)
from blindai.errors import EvidenceError, LimitExceeded, SignatureError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

STATEMENT_TYPE: Final = "application/vnd.blindai.receipt+cbor"
ROOT_TYPE: Final = "application/vnd.blindai.receipt-root+cbor"
MAX_RECEIPT_BYTES: Final = MAX_STATEMENT_BYTES + (4 << 10)
_MAX_ENVELOPE_BYTES: Final = MAX_STATEMENT_BYTES + (1 << 10)
_TAG_18: Final = b"\xd2"
_ALGORITHM, _CONTENT_TYPE, _EDDSA = 1, 3, -8
# The protected header has one encoding for each content type.
_PROTECTED: Final = {
    content_type: cbor2.dumps({_ALGORITHM: _EDDSA, _CONTENT_TYPE: content_type}, canonical=True)
    for content_type in (STATEMENT_TYPE, ROOT_TYPE)
}
_ENVELOPE_PARTS: Final = 4
_SIGNATURE_SIZE: Final = 64


@dataclass(frozen=True, slots=True)
class Inclusion:
    """Where in a signed Merkle tree a statement stands.

    Attributes:
        index: Its place, from 0.
        path: The nodes beside the way up, 32 bytes each, from the leaf upwards.
    """

    index: int
    path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """A statement and who signed it.

    Attributes:
        statement: What is stated. Not to be believed before `check_signature`.
        envelope: The COSE_Sign1 structure, tagged: of the statement, or of a tree's root.
        inclusion: The statement's place in the tree; `None`: it is signed itself.
    """

    statement: Statement
    envelope: bytes
    inclusion: Inclusion | None = None

    def dump(self) -> bytes:
        """Return the receipt as deterministic CBOR."""
        inclusion = self.inclusion
        return cbor2.dumps(
            {
                "statement": None if inclusion is None else self.statement.dump(),
                "envelope": self.envelope,
                "inclusion": None if inclusion is None else [inclusion.index, *inclusion.path],
            },
            canonical=True,
        )

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a receipt.

        Raises:
            EvidenceError: If it is anything but the canonical encoding of a receipt.
        """
        document = load_cbor(data, "receipt", at_most=MAX_RECEIPT_BYTES)
        fields = read_fields(document, {"statement", "envelope", "inclusion"})
        envelope = read_bytes(fields, "envelope", at_most=_MAX_ENVELOPE_BYTES)
        inclusion = _inclusion(fields["inclusion"])
        _, payload, _ = _parse_envelope(envelope, inclusion)
        if (fields["statement"] is None) is not (inclusion is None):
            msg = "receipt: a statement stands beside the envelope only with an inclusion proof"
            raise EvidenceError(msg)
        if inclusion is not None:
            _parse_root(payload)
            payload = read_bytes(fields, "statement", at_most=MAX_STATEMENT_BYTES)
        receipt = cls(Statement.parse(payload), envelope, inclusion)
        if receipt.dump() != data:
            msg = "receipt: not in canonical form"
            raise EvidenceError(msg)
        return receipt

    def check_signature(self, public_key: bytes) -> None:
        """Refuse a receipt that `public_key` did not sign.

        Args:
            public_key: 32 raw bytes, Ed25519.

        Raises:
            SignatureError: If it is signed by another key, or states something else.
            EvidenceError: If the inclusion proof fits no tree of the signed size.
        """
        protected, payload, signature = _parse_envelope(self.envelope, self.inclusion)
        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(
                signature, _to_be_signed(protected, payload)
            )
        except (InvalidSignature, ValueError) as error:
            msg = "the server's key did not sign this receipt: it was changed, or is another's"
            raise SignatureError(msg) from error
        stated = self.statement.dump()
        if self.inclusion is None:
            if stated != payload:
                msg = "the receipt's key signed another statement"
                raise SignatureError(msg)
            return
        root, size = _parse_root(payload)
        found = root_from_path(leaf_hash(stated), self.inclusion.index, size, self.inclusion.path)
        if found != root:
            msg = "the statement is not among those under the root that the receipt's key signed"
            raise SignatureError(msg)


def sign(statement: Statement, key: Ed25519PrivateKey) -> Receipt:
    """Sign one statement.

    Raises:
        LimitExceeded: If it has more tensors, or longer names, than a receipt may.
    """
    return Receipt(statement, _seal(statement.dump(), STATEMENT_TYPE, key))


def sign_batch(statements: Sequence[Statement], key: Ed25519PrivateKey) -> list[Receipt]:
    """Sign many statements with one signature; each gets a receipt that stands alone.

    Args:
        statements: 1 to 65,536.
        key: The keyset's receipt key.

    Raises:
        LimitExceeded: If there are more, or one has more tensors than a receipt may.
    """
    if not 1 <= len(statements) <= MAX_LEAVES:
        msg = f"one signature covers 1 to {MAX_LEAVES} receipts, asked were {len(statements)}"
        raise LimitExceeded(msg)
    if len(statements) == 1:
        return [sign(statements[0], key)]
    root, paths = build_tree([leaf_hash(statement.dump()) for statement in statements])
    tree = {"version": RECEIPT_VERSION, "root": root, "size": len(statements)}
    envelope = _seal(cbor2.dumps(tree, canonical=True), ROOT_TYPE, key)
    return [
        Receipt(statement, envelope, Inclusion(index, tuple(path)))
        for index, (statement, path) in enumerate(zip(statements, paths, strict=True))
    ]


def _seal(payload: bytes, content_type: str, key: Ed25519PrivateKey) -> bytes:
    protected = _PROTECTED[content_type]
    signature = key.sign(_to_be_signed(protected, payload))
    return _TAG_18 + cbor2.dumps([protected, {}, payload, signature], canonical=True)


def _to_be_signed(protected: bytes, payload: bytes) -> bytes:
    """Return the Sig_structure (RFC 9052 §4.4): what the signature covers."""
    return cbor2.dumps(["Signature1", protected, b"", payload], canonical=True)


def _parse_envelope(data: bytes, inclusion: Inclusion | None) -> tuple[bytes, bytes, bytes]:
    """Return protected header, payload and signature of a COSE_Sign1 structure.

    With an inclusion proof it has to be of a root, and without of a statement.
    """
    if not data.startswith(_TAG_18):
        msg = "receipt: expected a tagged COSE_Sign1 structure"
        raise EvidenceError(msg)
    parts = load_cbor(data[1:], "receipt envelope", at_most=_MAX_ENVELOPE_BYTES)
    if not isinstance(parts, list) or len(parts) != _ENVELOPE_PARTS:
        msg = f"receipt envelope: expected an array of {_ENVELOPE_PARTS}"
        raise EvidenceError(msg)
    protected, unprotected, payload, signature = parts
    if not all(isinstance(part, bytes) for part in (protected, payload, signature)):
        msg = "receipt envelope: header, payload and signature have to be bytes"
        raise EvidenceError(msg)
    if unprotected != {} or len(signature) != _SIGNATURE_SIZE:
        msg = f"receipt envelope: expected no unprotected header, {_SIGNATURE_SIZE} signature bytes"
        raise EvidenceError(msg)
    content_type = STATEMENT_TYPE if inclusion is None else ROOT_TYPE
    if protected != _PROTECTED[content_type]:
        msg = f"receipt header: expected EdDSA (-8) and {content_type}, and nothing else"
        raise EvidenceError(msg)
    if cbor2.dumps(parts, canonical=True) != data[1:]:
        msg = "receipt envelope: not in canonical form"
        raise EvidenceError(msg)
    return protected, payload, signature


def _parse_root(payload: bytes) -> tuple[bytes, int]:
    fields = read_fields(load_cbor(payload, "receipt", at_most=256), {"version", "root", "size"})
    root, size = read_digest(fields["root"], "root"), fields["size"]
    if fields["version"] != RECEIPT_VERSION or type(size) is not int or not 0 < size <= MAX_LEAVES:
        msg = f"receipt: expected a root of version {RECEIPT_VERSION} over 1 to {MAX_LEAVES} leaves"
        raise EvidenceError(msg)
    if cbor2.dumps(fields, canonical=True) != payload:
        msg = "receipt: the root is not in canonical form"
        raise EvidenceError(msg)
    return root, size


def _inclusion(data: object) -> Inclusion | None:
    if data is None:
        return None
    if not isinstance(data, list) or not 1 <= len(data) <= 1 + MAX_PATH:
        msg = f"receipt: an inclusion proof is an index and at most {MAX_PATH} nodes"
        raise EvidenceError(msg)
    index, path = data[0], data[1:]
    if type(index) is not int or not 0 <= index < MAX_LEAVES:
        msg = "receipt: an inclusion proof begins with the place of a leaf"
        raise EvidenceError(msg)
    return Inclusion(index, tuple(read_digest(node, "inclusion") for node in path))
