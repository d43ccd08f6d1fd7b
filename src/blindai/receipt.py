"""Verify a receipt: whose key signed it, where that key lived, and what it speaks of.

A receipt is verified as of its own time: evidence and endorsements had to hold then, and what
expires or is revoked later takes nothing from it. That time is the server's clock inside the
TEE. It has to lie in the life of the server's keys and of what their evidence rests on; within
that, it is the server's word. Whoever wants a time from elsewhere sends a nonce that did not
exist before.

Always true here: no network and no clock. The steps, in order, none left out:

1. receipt: the key in the evidence's keyset signed it, alone or under a Merkle root;
2. origin: it names this keyset, this evidence and this platform;
3. time: it was signed before the keys expired, and not in the caller's future;
4. the evidence, as of that time: every step of `blindai.verify`, the policy included;
5. content: it speaks of a model that the policy accepts, and of what the caller holds.

What a caller does not hold is not compared, and the result says what was.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from blindai.attestation.model import Endorsed, Mismatch
from blindai.attestation.policy import Policy
from blindai.attestation.steps import StepName, Steps
from blindai.attestation.trust import VENDOR_ROOTS, Anchors
from blindai.channel.keyset import Keyset
from blindai.channel.receipt_file import ReceiptFile
from blindai.channel.statement import TensorDigest, digest_evidence, digest_tensor
from blindai.errors import (
    AppraisalError,
    AttestationError,
    BindingError,
    ConfigurationError,
    SignatureError,
)
from blindai.inference.tensors import DataType, Tensor, TensorSpec, from_array, to_bytes
from blindai.verify import verify

if TYPE_CHECKING:
    from datetime import datetime

    from blindai.attestation.model import AttestationResult
    from blindai.attestation.steps import Step
    from blindai.channel.receipts import Receipt
    from blindai.channel.statement import Statement

__all__ = ["STEPS", "ReceiptFile", "ReceiptResult", "verify_receipt"]

# The server's clock, the hardware's and the caller's differ by no more than this.
MAX_CLOCK_SKEW: Final = timedelta(minutes=5)
STEPS: Final = (
    StepName("receipt", "The key in the evidence's keyset signed the receipt", "RFC 9052 §4.4"),
    StepName("origin", "It names this keyset, this evidence and this platform"),
    StepName("time", "It was signed before the keys expired, and not in the future"),
    StepName("evidence", "The evidence holds as of the receipt's time, and the policy accepts it"),
    StepName("content", "It speaks of the model and the tensors that it is compared with"),
)
# Handed over by `verify_receipt` alone: a result that anything else constructs raises.
_VERIFIED: Final = object()
_CHUNK: Final = 1 << 20

Tensors = Mapping[str, object] | Sequence[Tensor]
# Of a file: its content, or its path.
Content = bytes | str | os.PathLike[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptResult:
    """A receipt that holds. Only `verify_receipt` makes one.

    Attributes:
        statement: What the server stated.
        attestation: The server, as of the receipt's time.
        compared: What the receipt was compared with: "model", "inputs", "outputs", "request",
            "response", "nonce". Of anything else, it only says what the server states.
        steps: Every step that led here.
    """

    statement: Statement
    attestation: AttestationResult
    compared: tuple[str, ...]
    steps: tuple[Step, ...]
    # Not stored, so `dataclasses.replace` has nothing to hand on.
    _verified: InitVar[object]

    def __post_init__(self, _verified: object) -> None:
        if _verified is not _VERIFIED:
            msg = "a ReceiptResult is made by blindai.verify_receipt(), never by hand"
            raise TypeError(msg)

    @property
    def simulated(self) -> bool:
        """Whether no hardware stands behind this receipt."""
        return self.statement.simulated

    def __str__(self) -> str:
        stated = self.statement
        head = "SIMULATED, not protected by hardware" if self.simulated else "verified"
        lines = [
            f"{head}: receipt of {'an upload' if stated.kind == 'upload' else 'a run'}",
            f"  signed at   {stated.time:%Y-%m-%d %H:%M:%S}Z (the server's clock)",
            f"  platform    {stated.platform}, BlindAI {stated.server_version}",
            f"  model       sha256:{stated.model_sha256.hex()}, run by {stated.model_form}",
        ]
        for kind, tensors in (("input", stated.inputs), ("output", stated.outputs)):
            lines += [f"  {kind:<11} {_describe(tensor)}" for tensor in tensors]
        if stated.nonce:
            lines.append(f"  nonce       {stated.nonce.hex()}")
        lines.append(f"  compared    {', '.join(self.compared) or 'with nothing that you hold'}")
        return "\n".join(lines)


def verify_receipt(  # noqa: PLR0913 - all but two are keywords
    file: ReceiptFile | Content,
    policy: Policy | str | os.PathLike[str],
    *,
    index: int | None = None,
    inputs: Tensors | None = None,
    outputs: Tensors | None = None,
    model: Content | None = None,
    request: Content | None = None,
    response: Content | None = None,
    nonce: bytes | None = None,
    now: datetime | None = None,
    anchors: Anchors = VENDOR_ROOTS,
) -> ReceiptResult:
    """Verify a receipt as of its own time, offline, and compare it with what the caller holds.

    Args:
        file: A receipt file: its path, its content, or what was read of it.
        policy: What the caller accepts: a `Policy` or the path of a policy file.
        index: Which of the file's receipts, from 0; needed only where there are several.
        inputs: What the model got: name → array, or tensors; in the order of the receipt.
        outputs: What it gave, likewise.
        model: The model's file: its path, or its content.
        request: The request's body as it was sent, likewise.
        response: The answer's body as it was sent, likewise.
        nonce: That the client sent along.
        now: The present, with a time zone: a receipt of its future is refused. `None`: no
            matter. It moves nothing else; the evidence is verified as of the receipt's time.
        anchors: The vendors' roots that count; tests bring their own.

    Raises:
        EvidenceError: If the file or the evidence in it is malformed.
        SignatureError: If another key signed it, or another statement; or the evidence is not
            genuine.
        BindingError: If it is genuine, but speaks of another server, time, model, input or
            output; the message names all that differ.
        AppraisalError: If the policy accepts neither the server nor the model.
        AttestationError: Any other of its subclasses: see `blindai.verify`. All have `.steps`.
        ConfigurationError: If an argument cannot be used.
        InvalidInput: If a value of `inputs` or `outputs` is no tensor.
    """
    file = _load(file)
    policy = policy if isinstance(policy, Policy) else Policy.load(policy)
    if now is not None and now.utcoffset() is None:
        msg = "now has to have a time zone: datetime.now(UTC)"
        raise ConfigurationError(msg)
    receipt = _select(file, index)
    stated = receipt.statement
    held: dict[str, list[Mismatch]] = {}
    for name, value in (("model", model), ("request", request), ("response", response)):
        if value is not None:
            held[name] = _compare_bytes(name, _digest(name, value), stated)
    if inputs is not None:
        held["inputs"] = _compare_tensors("inputs", inputs, stated.inputs)
    if outputs is not None:
        held["outputs"] = _compare_tensors("outputs", outputs, stated.outputs)
    if nonce is not None and nonce != stated.nonce:
        held["nonce"] = [Mismatch("nonce", nonce.hex(), stated.nonce.hex() or "none")]
    elif nonce is not None:
        held["nonce"] = []
    return _take_steps(file, receipt, policy, held, now, anchors)


def _take_steps(
    file: ReceiptFile,
    receipt: Receipt,
    policy: Policy,
    held: Mapping[str, list[Mismatch]],
    now: datetime | None,
    anchors: Anchors,
) -> ReceiptResult:
    stated, steps = receipt.statement, Steps(STEPS)
    content = [mismatch for mismatches in held.values() for mismatch in mismatches]
    # 1. The key in the evidence's keyset signed it.
    with steps.take("receipt") as step:
        keyset = Keyset.parse(file.bundle.keyset)
        origin = _compare_origin(file, stated)
        if receipt.inclusion is not None:
            step.note(f"leaf {receipt.inclusion.index} under a signed Merkle root")
        try:
            receipt.check_signature(keyset.receipt_public_key)
        except SignatureError as error:
            raise SignatureError(_with_names(str(error), [*origin, *content])) from error
    # 2. It names this keyset, this evidence and this platform.
    with steps.take("origin") as step:
        _refuse("speaks of another server", origin, step)
    # 3. It was signed in the life of the keys, and not in the future.
    with steps.take("time") as step:
        step.note(f"{stated.time.isoformat()}, by the server's clock")
        _check_time(stated.time, keyset, now)
    # 4. The evidence holds as of then, and the policy accepts it.
    inner: list[Step] = []
    try:
        with steps.take("evidence"):
            attestation = _verify_evidence(file, policy, stated.time, anchors, inner)
            _check_life(stated, attestation)
    except AttestationError as error:
        error.steps = (*steps.taken, *inner)
        raise
    # 5. It speaks of what the policy and the caller say.
    with steps.take("content") as step:
        _check_model(stated, policy)
        _refuse("is genuine, but speaks of something else", content, step)
        step.note(", ".join(held) or "you gave nothing to compare it with")
    return ReceiptResult(
        statement=stated,
        attestation=attestation,
        compared=tuple(held),
        steps=(*steps.taken, *inner),
        _verified=_VERIFIED,
    )


def _load(file: ReceiptFile | Content) -> ReceiptFile:
    if isinstance(file, ReceiptFile):
        return file
    return ReceiptFile.parse(file) if isinstance(file, bytes) else ReceiptFile.load(file)


def _select(file: ReceiptFile, index: int | None) -> Receipt:
    count = len(file.receipts)
    if index is None and count > 1:
        msg = f"the file holds {count} receipts: say which with index, 0 to {count - 1}"
        raise ConfigurationError(msg)
    if index is not None and not 0 <= index < count:
        msg = f"no receipt {index}: the file holds {count}, counted from 0"
        raise ConfigurationError(msg)
    return file.receipts[index or 0]


def _compare_origin(file: ReceiptFile, stated: Statement) -> list[Mismatch]:
    bundle = file.bundle
    digests = (
        ("keyset", hashlib.sha256(bundle.keyset).digest(), stated.keyset_sha256),
        ("evidence", digest_evidence(bundle), stated.evidence_sha256),
    )
    found = [
        Mismatch(name, expected.hex(), signed.hex())
        for name, expected, signed in digests
        if expected != signed
    ]
    platform = bundle.evidence.platform
    if stated.platform is not platform:
        found.append(Mismatch("platform", str(platform), str(stated.platform)))
    return found


def _check_time(time: datetime, keyset: Keyset, now: datetime | None) -> None:
    if time >= keyset.not_after:
        msg = (
            f"time: the receipt says {time.isoformat()}, its key expired at "
            f"{keyset.not_after.isoformat()}"
        )
        raise BindingError(msg)
    if now is not None and time > now + MAX_CLOCK_SKEW:
        msg = f"time: the receipt says {time.isoformat()}, now it is {now.isoformat()}"
        raise BindingError(msg)


def _verify_evidence(
    file: ReceiptFile, policy: Policy, time: datetime, anchors: Anchors, taken: list[Step]
) -> AttestationResult:
    """Verify the evidence as of `time`, and add every step of that to `taken`."""
    try:
        result = verify(
            file.bundle,
            policy,
            nonce=file.nonce,
            now=time,
            anchors=anchors,
            endorsed=Endorsed(device_attachments=file.device_attachments),
        )
    except AttestationError as error:
        taken += error.steps  # type: ignore[arg-type]  # errors.py imports nothing, `Step` included
        raise
    taken += result.steps
    return result


def _check_life(stated: Statement, attestation: AttestationResult) -> None:
    """Refuse a time that the evidence does not cover, and a statement that hides simulation."""
    if attestation.simulated is not stated.simulated:
        found, says = attestation.simulated, stated.simulated
        msg = f"simulated: the receipt says {says}, its evidence says {found}"
        raise BindingError(msg)
    if not attestation.holds_at(stated.time):
        msg = (
            f"time: the receipt says {stated.time.isoformat()}, what its evidence rests on "
            f"ended at {attestation.not_after.isoformat()}"
        )
        raise BindingError(msg)
    issued_at = attestation.claims.issued_at
    if issued_at is not None and stated.time < issued_at - MAX_CLOCK_SKEW:
        msg = (
            f"time: the receipt says {stated.time.isoformat()}, its evidence was made at "
            f"{issued_at.isoformat()}"
        )
        raise BindingError(msg)


def _check_model(stated: Statement, policy: Policy) -> None:
    accepted = frozenset[bytes]().union(*policy.models.values())
    if not accepted or stated.model_sha256 in accepted:
        return
    names = ", ".join(sorted(policy.models))
    mismatch = Mismatch("models", f"one of {names}", f"sha256:{stated.model_sha256.hex()}")
    msg = f"the policy does not accept the receipt's model: {mismatch}"
    raise AppraisalError(msg, [mismatch])


def _compare_bytes(name: str, digest: bytes, stated: Statement) -> list[Mismatch]:
    signed: bytes = getattr(stated, f"{name}_sha256")
    if digest == signed:
        return []
    return [Mismatch(name, f"sha256:{digest.hex()}", f"sha256:{signed.hex()}")]


def _compare_tensors(what: str, held: Tensors, stated: tuple[TensorDigest, ...]) -> list[Mismatch]:
    names = list(held) if isinstance(held, Mapping) else [tensor.name for tensor in held]
    signed = [tensor.name for tensor in stated]
    if names != signed:
        order = " in this order" if sorted(names) == sorted(signed) else ""
        expected = ", ".join(names) or "none"
        return [Mismatch(what, f"{expected}{order}", ", ".join(signed) or "none")]
    values = held.values() if isinstance(held, Mapping) else held
    return [
        mismatch
        for value, tensor in zip(values, stated, strict=True)
        if (mismatch := _compare_tensor(f"{what}.{tensor.name}", value, tensor)) is not None
    ]


def _compare_tensor(where: str, value: object, stated: TensorDigest) -> Mismatch | None:
    tensor = value if isinstance(value, Tensor) else _to_tensor(value, stated)
    held = digest_tensor(tensor.name, tensor.datatype, tensor.shape, to_bytes(tensor))
    if held == stated:
        return None
    if held.datatype != stated.datatype:
        return Mismatch(f"{where}.datatype", held.datatype, stated.datatype)
    if held.shape != stated.shape:
        return Mismatch(f"{where}.shape", str(list(held.shape)), str(list(stated.shape)))
    return Mismatch(f"{where}.sha256", held.sha256.hex(), stated.sha256.hex())


def _to_tensor(value: object, stated: TensorDigest) -> Tensor:
    # Python values have no exact type of their own and take the receipt's; arrays keep theirs.
    known = stated.datatype in set(DataType)
    spec = TensorSpec(stated.name, DataType(stated.datatype), None) if known else None
    return from_array(stated.name, value, spec)


def _digest(name: str, content: Content) -> bytes:
    if isinstance(content, bytes):
        return hashlib.sha256(content).digest()
    digest = hashlib.sha256()
    try:
        with Path(content).open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        msg = f"cannot read the {name} {os.fspath(content)}: {error.strerror}"
        raise ConfigurationError(msg) from error
    return digest.digest()


def _refuse(why: str, mismatches: Sequence[Mismatch], step: Step) -> None:
    for mismatch in mismatches:
        step.compare(mismatch.rule, expected=mismatch.expected, found=mismatch.found)
    if mismatches:
        msg = f"the receipt {why}: {'; '.join(map(str, mismatches))}"
        raise BindingError(msg)


def _with_names(message: str, mismatches: Sequence[Mismatch]) -> str:
    """Return the message with the names of what differs, where anything is known to."""
    if not mismatches:
        return message
    return f"{message}; it differs in {', '.join(mismatch.rule for mismatch in mismatches)}"


def _describe(tensor: TensorDigest) -> str:
    dims = ", ".join(map(str, tensor.shape))
    return f"{tensor.name}: {tensor.datatype}[{dims}] sha256:{tensor.sha256.hex()[:16]}…"
