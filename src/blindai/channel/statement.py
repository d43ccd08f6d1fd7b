"""What a server states of one run or one upload: deterministic CBOR that has one encoding.

No data is in it, only digests. Nothing is to be believed of a statement that was read before
its signature was checked (`blindai.channel.receipts`).

Specification: RFC 8949 §4.2 (deterministic CBOR), design.md §9.7.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self

import cbor2

from blindai.attestation.model import Platform
from blindai.attestation.wire import load_cbor
from blindai.errors import EvidenceError, LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blindai.attestation.model import EvidenceBundle

RECEIPT_VERSION: Final = 1
MAX_NONCE: Final = 64
MAX_STATEMENT_BYTES: Final = 256 << 10
# Names, types, sizes and digests: what `load_cbor` reads of one statement, with some room.
_MAX_TENSOR_ITEMS: Final = 8000
_MAX_WORD: Final = 64
_MAX_TIME_MS: Final = 253_402_300_799_999  # 9999-12-31, the last moment datetime can hold
_TENSOR_CONTEXT: Final = "blindai tensor v1"
_EVIDENCE_CONTEXT: Final = "blindai evidence v1"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_TENSOR_PARTS: Final = 4
_DIGEST_SIZE: Final = 32


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
        model_form: Engine and precision that ran it, such as "onnx.fp32".
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
    model_form: str
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
        # In the canonical order of the keys (RFC 8949 §4.2.1), so that nothing has to be sorted.
        data = cbor2.dumps(
            {
                "kind": str(self.kind),
                "time": (self.time - _EPOCH) // _MILLISECOND,
                "nonce": self.nonce,
                "inputs": [_tensor_to_data(tensor) for tensor in self.inputs],
                "outputs": [_tensor_to_data(tensor) for tensor in self.outputs],
                "version": RECEIPT_VERSION,
                "platform": str(self.platform),
                "simulated": self.simulated,
                "model_form": self.model_form,
                "model_sha256": self.model_sha256,
                "keyset_sha256": self.keyset_sha256,
                "request_sha256": self.request_sha256,
                "server_version": self.server_version,
                "evidence_sha256": self.evidence_sha256,
                "response_sha256": self.response_sha256,
            }
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
        fields = read_fields(document, {"version", *cls.__slots__})
        if fields["version"] != RECEIPT_VERSION:
            msg = f"receipt: expected version {RECEIPT_VERSION}"
            raise EvidenceError(msg)
        statement = cls(
            kind=Kind(_one_of(fields, "kind", Kind)),
            inputs=_tensors(fields["inputs"], "inputs"),
            outputs=_tensors(fields["outputs"], "outputs"),
            nonce=read_bytes(fields, "nonce", at_most=MAX_NONCE),
            time=_time(fields["time"]),
            model_form=_text(fields["model_form"], "model_form", _MAX_WORD),
            server_version=_text(fields["server_version"], "server_version", _MAX_WORD),
            platform=Platform(_one_of(fields, "platform", Platform)),
            simulated=_flag(fields, "simulated"),
            model_sha256=read_digest(fields["model_sha256"], "model_sha256"),
            request_sha256=read_digest(fields["request_sha256"], "request_sha256"),
            response_sha256=read_digest(fields["response_sha256"], "response_sha256"),
            keyset_sha256=read_digest(fields["keyset_sha256"], "keyset_sha256"),
            evidence_sha256=read_digest(fields["evidence_sha256"], "evidence_sha256"),
        )
        if _dump_or_refuse(statement) != data:
            msg = "receipt: not in canonical form"
            raise EvidenceError(msg)
        return statement


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
        _text(datatype, f"the datatype of {name}", _MAX_WORD),
        tuple(shape),
        read_digest(digest, name),
    )


def read_fields(data: object, expected: set[str]) -> dict[str, Any]:
    """Return a map of exactly the fields that are expected."""
    if not isinstance(data, dict) or set(data) != expected:
        msg = f"receipt: expected a map of exactly {', '.join(sorted(expected))}"
        raise EvidenceError(msg)
    return data


def read_digest(value: object, name: str) -> bytes:
    """Return a SHA-256 digest."""
    if not isinstance(value, bytes) or len(value) != _DIGEST_SIZE:
        msg = f"receipt: {name} has to be a SHA-256 digest"
        raise EvidenceError(msg)
    return value


def read_bytes(fields: dict[str, Any], name: str, *, at_most: int) -> bytes:
    """Return a field that is a byte string of bounded size."""
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
