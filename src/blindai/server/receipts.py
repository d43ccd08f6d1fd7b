"""Receipts as requests ask for them: what is stated is gathered where it is at hand.

Digests are taken on the thread of the run. The event loop signs: all that finish in the same
turn of it are leaves of one Merkle tree, under one signature. A receipt travels in the header
`X-BlindAI-Receipt`, in base64, so the body is what it is without one.

A request asks by the parameter `receipt`; `receipt_nonce` goes into the receipt as it came,
and `receipt_evidence` is the digest of the evidence in which the caller verified these keys
(`blindai.channel.statement.digest_evidence`); without it, the server's own latest is named.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

from blindai.attestation import wire
from blindai.attestation.model import Platform
from blindai.channel.receipts import sign_batch
from blindai.channel.statement import (
    MAX_NONCE,
    Kind,
    Statement,
    TensorDigest,
    digest_evidence,
    digest_tensor,
)
from blindai.errors import InvalidInput, LimitExceeded
from blindai.inference.tensors import to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from blindai.channel.receipts import Receipt
    from blindai.inference.tensors import Tensor
    from blindai.server.identity import EvidenceDesk

RECEIPT_HEADER: Final = b"x-blindai-receipt"
# Clients bound the headers that they read; this is room for some hundred tensors.
MAX_HEADER_VALUE: Final = 16 << 10
_VERSION: Final = metadata.version("blindai")
_TOO_LARGE: Final = (
    f"a header holds a receipt of at most {MAX_HEADER_VALUE} bytes, this one takes more: ask for "
    "fewer or shorter-named outputs, or for no receipt"
)
# Of a tensor's digest and the CBOR around it, at least.
_TENSOR_BYTES: Final = 40
_NONCE: Final = re.compile(f"(?:[0-9a-f]{{2}}){{0,{MAX_NONCE}}}")
_DIGEST: Final = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ReceiptWish:
    """What a caller wants in a receipt.

    Attributes:
        nonce: Of the caller's choice; may be empty.
        evidence: Digest of the evidence that the caller verified; `None`: the server's latest.
    """

    nonce: bytes
    evidence: bytes | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a receipt will state of one run or upload.

    Attributes:
        wish: Of the caller.
        kind: Run or upload.
        model_sha256: Of the model's file.
        model_form: Engine and precision that run it.
        inputs: That it got.
        outputs: That it gave.
        request_sha256: Of the request's body.
        response_sha256: Of the answer's body.
    """

    wish: ReceiptWish
    kind: Kind
    model_sha256: bytes
    model_form: str
    inputs: tuple[TensorDigest, ...]
    outputs: tuple[TensorDigest, ...]
    request_sha256: bytes
    response_sha256: bytes


def parse_wish(parameters: Mapping[str, Any]) -> ReceiptWish | None:
    """Return what a request's parameters ask for; `None`: no receipt.

    Raises:
        InvalidInput: If they cannot be understood.
    """
    wanted = parameters.get("receipt", False)
    if type(wanted) is not bool:
        msg = "parameters.receipt: expected true or false"
        raise InvalidInput(msg)
    if not wanted:
        return None
    nonce = parameters.get("receipt_nonce", "")
    evidence = parameters.get("receipt_evidence")
    if not isinstance(nonce, str) or not _NONCE.fullmatch(nonce):
        msg = f"parameters.receipt_nonce: expected at most {MAX_NONCE} bytes in hexadecimal"
        raise InvalidInput(msg)
    if evidence is not None and (not isinstance(evidence, str) or not _DIGEST.fullmatch(evidence)):
        msg = "parameters.receipt_evidence: expected a SHA-256 in hexadecimal"
        raise InvalidInput(msg)
    return ReceiptWish(bytes.fromhex(nonce), bytes.fromhex(evidence) if evidence else None)


def digest_tensors(tensors: Sequence[Tensor]) -> tuple[TensorDigest, ...]:
    """Return what stands for tensors in a receipt."""
    return tuple(digest_tensor(t.name, t.datatype, t.shape, to_bytes(t)) for t in tensors)


def digest_parts(parts: Sequence[bytes | memoryview]) -> bytes:
    """Return the SHA-256 of a body that is in parts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


class ReceiptDesk:
    """Signs with one identity's receipt key. Its coroutines are for one event loop.

    Args:
        desk: Evidence of the identity.
        clock: Returns the time, with a time zone.
    """

    def __init__(self, desk: EvidenceDesk, *, clock: Callable[[], datetime] | None = None) -> None:
        self._desk = desk
        self._key = desk.identity.keys.receipt
        self._platform = desk.identity.attester.platform
        self._keyset = hashlib.sha256(desk.identity.keys.public.dump()).digest()
        self._clock = clock or _now
        self._waiting: list[tuple[Statement, asyncio.Future[Receipt]]] = []
        self._latest: tuple[bytes, bytes] = (b"", b"")

    async def sign(self, facts: Facts) -> tuple[bytes, bytes]:
        """Return the header, name and value, that carries a signed receipt.

        Raises:
            LimitExceeded: If there are more tensors than a receipt, or a header, can hold.
        """
        evidence = facts.wish.evidence or await self._latest_evidence()
        statement = Statement(
            kind=facts.kind,
            model_sha256=facts.model_sha256,
            model_form=facts.model_form,
            inputs=facts.inputs,
            outputs=facts.outputs,
            request_sha256=facts.request_sha256,
            response_sha256=facts.response_sha256,
            nonce=facts.wish.nonce,
            time=self._clock(),
            server_version=_VERSION,
            platform=self._platform,
            keyset_sha256=self._keyset,
            evidence_sha256=evidence,
            simulated=self._platform is Platform.SIMULATION,
        )
        _check_size(statement)  # here: one that is too large spoils no other's tree
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Receipt] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._sign_all)
        self._waiting.append((statement, future))
        value = base64.b64encode((await future).dump())
        if len(value) > MAX_HEADER_VALUE:
            raise LimitExceeded(_TOO_LARGE)
        return RECEIPT_HEADER, value

    def _sign_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        receipts = sign_batch([statement for statement, _ in waiting], self._key)
        for (_, future), receipt in zip(waiting, receipts, strict=True):
            if not future.done():
                future.set_result(receipt)

    async def _latest_evidence(self) -> bytes:
        bundle = await self._desk.cached()
        if self._latest[0] is not bundle:
            self._latest = bundle, digest_evidence(wire.parse_bundle(bundle))
        return self._latest[1]


def _check_size(statement: Statement) -> None:
    """Refuse what fits no header by its names and dimensions alone; cheaper than its encoding."""
    tensors = (*statement.inputs, *statement.outputs)
    if sum(len(t.name) + len(t.shape) + _TENSOR_BYTES for t in tensors) > MAX_HEADER_VALUE:
        raise LimitExceeded(_TOO_LARGE)


def _now() -> datetime:
    return datetime.now(UTC)
