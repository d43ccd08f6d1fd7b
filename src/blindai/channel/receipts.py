"""Receipts: what a server ran, or took in, signed with a key that lives in its TEE.

A `Statement` is deterministic CBOR and has one encoding. A `Receipt` is the statement under a
COSE_Sign1 signature of the keyset's Ed25519 key; or, where one signature stands for many, the
statement, the signed root of a Merkle tree, and the proof that the statement is in it. What is
signed names its kind in the protected header, so a root never passes for a statement.

Nothing here says whose key it is: `blindai.receipt` ties a receipt to evidence.

Specification: RFC 9052 §4.2 and §4.4 (COSE_Sign1), RFC 9053 §2.2 (EdDSA), RFC 9162 §2.1
(Merkle trees), RFC 8949 §4.2 (deterministic CBOR), design.md §9.7.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from blindai.attestation.model import Platform
from blindai.attestation.wire import load_cbor
from blindai.channel.merkle import (
    HASH_SIZE,
    MAX_LEAVES,
    MAX_PATH,
    build_tree,
    leaf_hash,
    root_from_path,
)
from blindai.errors import EvidenceError, LimitExceeded, SignatureError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from blindai.attestation.model import EvidenceBundle

RECEIPT_VERSION: Final = 1
STATEMENT_TYPE: Final = "application/vnd.blindai.receipt+cbor"
ROOT_TYPE: Final = "application/vnd.blindai.receipt-root+cbor"
MAX_NONCE: Final = 64
MAX_STATEMENT_BYTES: Final = 256 << 10
MAX_RECEIPT_BYTES: Final = MAX_STATEMENT_BYTES + (4 << 10)
_MAX_ENVELOPE_BYTES: Final = MAX_STATEMENT_BYTES + (1 << 10)
# Names, types, sizes and digests: what `load_cbor` reads of one statement, with some room.
_MAX_TENSOR_ITEMS: Final = 8000
_MAX_VERSION_TEXT: Final = 64
_MAX_TIME_MS: Final = 253_402_300_799_999  # 9999-12-31, the last moment datetime can hold
_TENSOR_CONTEXT: Final = "blindai tensor v1"
_EVIDENCE_CONTEXT: Final = "blindai evidence v1"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_TAG_18: Final = b"\xd2"
_ALGORITHM, _CONTENT_TYPE, _EDDSA = 1, 3, -8
_ENVELOPE_PARTS: Final = 4
_TENSOR_PARTS: Final = 4
_SIGNATURE_SIZE: Final = 64


class Kind(StrEnum):
    """What a receipt is for."""

    RUN = "run"
    UPLOAD = "upload"


@dataclass(frozen=True, slots=True)
class TensorDigest:
    """A tensor without its elements.

    Attributes:
        name: Of the model's input or output.
        datatype: As the Open Inference Protocol spells it.
        shape: Size of each dimension.
        sha256: Over name, datatype, shape and elements; see `digest_tensor`.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    sha256: bytes


def digest_tensor(
    name: str, datatype: str, shape: Sequence[int], data: bytes | bytearray | memoryview
) -> TensorDigest:
    """Return what stands for a tensor in a receipt.

    The SHA-256 is over the deterministic CBOR of ["blindai tensor v1", name, datatype, shape,
    number of bytes], and then the elements: no other tensor, and no other cut between two
    tensors, gives the same bytes.

    Args:
        name: Of the model's input or output.
        datatype: As the Open Inference Protocol spells it.
        shape: Size of each dimension.
        data: The elements in the protocol's binary form: row-major, little-endian.
    """
    dims = [int(dim) for dim in shape]
    size = memoryview(data).nbytes
    digest = hashlib.sha256(
        cbor2.dumps([_TENSOR_CONTEXT, name, str(datatype), dims, size], canonical=True)
    )
    digest.update(data)
    return TensorDigest(name, str(datatype), tuple(dims), digest.digest())


def digest_evidence(bundle: EvidenceBundle) -> bytes:
    """Return the SHA-256 by which a receipt names the evidence of its server.

    Over what the hardware signed, and the keyset, without attachments: what vendors say may be
    added to evidence later, and does not make it other evidence.
    """
    shown = [[str(each.platform), each.body] for each in (bundle.evidence, *bundle.devices)]
    document = [_EVIDENCE_CONTEXT, shown, bundle.keyset]
    return hashlib.sha256(cbor2.dumps(document, canonical=True)).digest()


@dataclass(frozen=True, slots=True)
class Statement:
    """What a server states of one run or one upload.

    Attributes:
        kind: Which of the two.
        model_sha256: Of the model's file.
        inputs: That the model got, in the order of the request; none for an upload.
        outputs: That it gave, in the order of the answer; none for an upload.
        request_sha256: Of the request's body as it was sent; the model's file, for an upload.
        response_sha256: Of the answer's body as it was sent.
        nonce: That the client sent along, at most 64 bytes; empty: none.
        time: By the server's clock, with a time zone; counts to the millisecond.
        server_version: Of BlindAI.
        platform: Where the server runs.
        keyset_sha256: Of the keyset whose receipt key signs.
        evidence_sha256: Of the evidence for that keyset; see `digest_evidence`.
        simulated: Whether no hardware stands behind any of this.
    """

    kind: Kind
    model_sha256: bytes
    inputs: tuple[TensorDigest, ...]
    outputs: tuple[TensorDigest, ...]
    request_sha256: bytes
    response_sha256: bytes
    nonce: bytes
    time: datetime
    server_version: str
    platform: Platform
    keyset_sha256: bytes
    evidence_sha256: bytes
    simulated: bool

    def dump(self) -> bytes:
        """Return the statement as deterministic CBOR.

        Raises:
            LimitExceeded: If it has more tensors, or longer names, than a receipt may.
        """
        tensors = (*self.inputs, *self.outputs)
        items = sum(1 + _TENSOR_PARTS + len(tensor.shape) for tensor in tensors)
        data = cbor2.dumps(
            {
                "version": RECEIPT_VERSION,
                "kind": str(self.kind),
                "model_sha256": self.model_sha256,
                "inputs": [_tensor_to_data(tensor) for tensor in self.inputs],
                "outputs": [_tensor_to_data(tensor) for tensor in self.outputs],
                "request_sha256": self.request_sha256,
                "response_sha256": self.response_sha256,
                "nonce": self.nonce,
                "time": (self.time - _EPOCH) // _MILLISECOND,
                "server_version": self.server_version,
                "platform": str(self.platform),
                "keyset_sha256": self.keyset_sha256,
                "evidence_sha256": self.evidence_sha256,
                "simulated": self.simulated,
            },
            canonical=True,
        )
        if items > _MAX_TENSOR_ITEMS or len(data) > MAX_STATEMENT_BYTES:
            msg = (
                f"a receipt describes tensors in at most {MAX_STATEMENT_BYTES} bytes and "
                f"{_MAX_TENSOR_ITEMS} items, these {len(tensors)} take {len(data)} and {items}"
            )
            raise LimitExceeded(msg)
        return data

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a statement.

        Raises:
            EvidenceError: If it is anything but the canonical encoding of a version 1 statement.
        """
        document = load_cbor(data, "receipt", at_most=MAX_STATEMENT_BYTES)
        fields = _fields(document, {"version", *cls.__slots__})
        if fields["version"] != RECEIPT_VERSION:
            msg = f"receipt: expected version {RECEIPT_VERSION}"
            raise EvidenceError(msg)
        statement = cls(
            kind=Kind(_one_of(fields, "kind", Kind)),
            inputs=_tensors(fields["inputs"], "inputs"),
            outputs=_tensors(fields["outputs"], "outputs"),
            nonce=_bytes(fields, "nonce", at_most=MAX_NONCE),
            time=_time(fields["time"]),
            server_version=_text(fields["server_version"], "server_version", _MAX_VERSION_TEXT),
            platform=Platform(_one_of(fields, "platform", Platform)),
            simulated=_flag(fields, "simulated"),
            model_sha256=_digest(fields["model_sha256"], "model_sha256"),
            request_sha256=_digest(fields["request_sha256"], "request_sha256"),
            response_sha256=_digest(fields["response_sha256"], "response_sha256"),
            keyset_sha256=_digest(fields["keyset_sha256"], "keyset_sha256"),
            evidence_sha256=_digest(fields["evidence_sha256"], "evidence_sha256"),
        )
        if _dump_or_refuse(statement) != data:
            msg = "receipt: not in canonical form"
            raise EvidenceError(msg)
        return statement


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
        fields = _fields(document, {"statement", "envelope", "inclusion"})
        envelope = _bytes(fields, "envelope", at_most=_MAX_ENVELOPE_BYTES)
        inclusion = _inclusion(fields["inclusion"])
        _, content_type, payload, _ = _parse_envelope(envelope)
        expected = STATEMENT_TYPE if inclusion is None else ROOT_TYPE
        if content_type != expected:
            msg = f"receipt: expected a signed {expected}"
            raise EvidenceError(msg)
        if (fields["statement"] is None) is not (inclusion is None):
            msg = "receipt: a statement stands beside the envelope only with an inclusion proof"
            raise EvidenceError(msg)
        if inclusion is not None:
            _parse_root(payload)
            payload = _bytes(fields, "statement", at_most=MAX_STATEMENT_BYTES)
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
        protected, _, payload, signature = _parse_envelope(self.envelope)
        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(
                signature, _to_be_signed(protected, payload)
            )
        except (InvalidSignature, ValueError) as error:
            msg = "the receipt is not what the server's receipt key signed"
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
    protected = cbor2.dumps({_ALGORITHM: _EDDSA, _CONTENT_TYPE: content_type}, canonical=True)
    signature = key.sign(_to_be_signed(protected, payload))
    return _TAG_18 + cbor2.dumps([protected, {}, payload, signature], canonical=True)


def _to_be_signed(protected: bytes, payload: bytes) -> bytes:
    """Return the Sig_structure (RFC 9052 §4.4): what the signature covers."""
    return cbor2.dumps(["Signature1", protected, b"", payload], canonical=True)


def _parse_envelope(data: bytes) -> tuple[bytes, str, bytes, bytes]:
    """Return protected header, content type, payload and signature of a COSE_Sign1 structure."""
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
    header = load_cbor(protected, "receipt header", at_most=len(protected))
    if not isinstance(header, dict) or set(header) != {_ALGORITHM, _CONTENT_TYPE}:
        msg = "receipt header: expected algorithm and content type, and nothing else"
        raise EvidenceError(msg)
    if header[_ALGORITHM] != _EDDSA or not isinstance(header[_CONTENT_TYPE], str):
        msg = "receipt header: expected algorithm EdDSA (-8) and a content type in words"
        raise EvidenceError(msg)
    again = cbor2.dumps(header, canonical=True), cbor2.dumps(parts, canonical=True)
    if again != (protected, data[1:]):
        msg = "receipt envelope: not in canonical form"
        raise EvidenceError(msg)
    return protected, header[_CONTENT_TYPE], payload, signature


def _parse_root(payload: bytes) -> tuple[bytes, int]:
    fields = _fields(load_cbor(payload, "receipt", at_most=256), {"version", "root", "size"})
    root, size = _digest(fields["root"], "root"), fields["size"]
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
    return Inclusion(index, tuple(_digest(node, "inclusion") for node in path))


def _tensor_to_data(tensor: TensorDigest) -> list[object]:
    return [tensor.name, tensor.datatype, list(tensor.shape), tensor.sha256]


def _tensors(data: object, name: str) -> tuple[TensorDigest, ...]:
    if not isinstance(data, list):
        msg = f"receipt: {name} has to be a list of tensors"
        raise EvidenceError(msg)
    return tuple(_tensor(entry, f"{name}[{index}]") for index, entry in enumerate(data))


def _tensor(data: object, name: str) -> TensorDigest:
    if not isinstance(data, list) or len(data) != _TENSOR_PARTS:
        msg = f"receipt: {name} has to be name, datatype, shape and digest"
        raise EvidenceError(msg)
    title, datatype, shape, digest = data
    if not isinstance(shape, list) or not all(type(dim) is int and dim >= 0 for dim in shape):
        msg = f"receipt: the shape of {name} has to be whole numbers from 0 up"
        raise EvidenceError(msg)
    return TensorDigest(
        _text(title, f"the name of {name}", MAX_STATEMENT_BYTES),
        _text(datatype, f"the datatype of {name}", _MAX_VERSION_TEXT),
        tuple(shape),
        _digest(digest, name),
    )


def _fields(data: object, expected: set[str]) -> dict[str, Any]:
    if not isinstance(data, dict) or set(data) != expected:
        msg = f"receipt: expected a map of exactly {', '.join(sorted(expected))}"
        raise EvidenceError(msg)
    return data


def _digest(value: object, name: str) -> bytes:
    if not isinstance(value, bytes) or len(value) != HASH_SIZE:
        msg = f"receipt: {name} has to be a SHA-256 digest"
        raise EvidenceError(msg)
    return value


def _bytes(fields: dict[str, Any], name: str, *, at_most: int) -> bytes:
    value = fields[name]
    if not isinstance(value, bytes) or len(value) > at_most:
        msg = f"receipt: {name} has to be at most {at_most} bytes"
        raise EvidenceError(msg)
    return value


def _text(value: object, name: str, at_most: int) -> str:
    if not isinstance(value, str) or len(value) > at_most:
        msg = f"receipt: {name} has to be text of at most {at_most} characters"
        raise EvidenceError(msg)
    return value


def _one_of(fields: dict[str, Any], name: str, kinds: type[StrEnum]) -> str:
    value = fields[name]
    known = [str(kind) for kind in kinds]
    if not isinstance(value, str) or value not in known:
        msg = f"receipt: {name} has to be one of {', '.join(known)}"
        raise EvidenceError(msg)
    return value


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields[name]
    if type(value) is not bool:
        msg = f"receipt: {name} has to be true or false"
        raise EvidenceError(msg)
    return value


def _time(value: object) -> datetime:
    if type(value) is not int or not 0 <= value <= _MAX_TIME_MS:
        msg = "receipt: time has to be Unix milliseconds"
        raise EvidenceError(msg)
    return _EPOCH + value * _MILLISECOND


def _dump_or_refuse(statement: Statement) -> bytes:
    try:
        return statement.dump()
    except LimitExceeded as error:
        raise EvidenceError(str(error)) from error
